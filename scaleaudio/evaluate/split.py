"""Who trains and who tests: filters, folds, or a `split` column, as index lists into a label table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scaleaudio.errors import InputError
from scaleaudio.evaluate.tasks import LabelTable, Task
from scaleaudio.types import Reject

Rows = npt.NDArray[np.int64]
TRAIN_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Fold:
    """Rows of a label table to fit on, and rows to test on."""

    train: Rows
    test: Rows


@dataclass(frozen=True)
class Plan:
    """The folds of a task (one for a plain split) and the rows that take no part.

    Attributes:
        task: what was asked for.
        labels: the class of each row of the table; "" where it has none.
        groups: what each row must not be parted from when a training set is divided further; "" where unknown.
        folds: row numbers of the label table.
        protocol: how they came about, in words.
        num_unlabelled: rows without a label.
        num_unused: labelled rows in no fold.
        rejects: files that took part until they turned out to be unusable.
    """

    task: Task
    labels: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    folds: tuple[Fold, ...]
    protocol: str
    num_unlabelled: int
    num_unused: int
    rejects: tuple[Reject, ...] = ()

    def rows(self) -> Rows:
        """Every row that takes part, once, in order."""
        return np.unique(np.concatenate([part for fold in self.folds for part in (fold.train, fold.test)]))

    def without(self, unusable: Mapping[int, Reject]) -> Plan:
        """The same plan less the rows whose files turned out to be unusable.

        Raises:
            InputError: too little is left.
        """
        bad = np.fromiter(unusable, dtype=np.int64)
        folds = tuple(Fold(np.setdiff1d(f.train, bad), np.setdiff1d(f.test, bad)) for f in self.folds)
        rejects = tuple(unusable[row] for row in self.rows().tolist() if row in unusable)
        plan = replace(self, folds=folds, rejects=rejects)
        _check(plan)
        return plan


def plan_task(task: Task, table: LabelTable) -> Plan:
    """Which rows of the table the task fits and tests on.

    Filters decide where there are any; else a fold column; else `split`, where val joins train.

    Raises:
        InputError: a column or value that the table lacks, an empty part, a row in both parts, fewer than two classes.
    """
    cells = (cell.strip() for cell in _column(task, table, task.label))
    labels = np.array([cell if _has_class(cell, task.separator) else "" for cell in cells])
    folds, protocol = _divide(task, table, labels)
    has_label = labels != ""
    folds = [Fold(f.train[has_label[f.train]], f.test[has_label[f.test]]) for f in folds]
    used = {int(row) for fold in folds for part in (fold.train, fold.test) for row in part}
    plan = Plan(
        task=task,
        labels=labels,
        groups=np.array(_column(task, table, "group") if "group" in table.columns else [""] * len(labels)),
        folds=tuple(folds),
        protocol=protocol,
        num_unlabelled=int((~has_label).sum()),
        num_unused=int(has_label.sum()) - len(used),
    )
    _check(plan)
    return plan


def _has_class(cell: str, separator: str) -> bool:
    return any(part.strip() for part in (cell.split(separator) if separator else [cell]))


def _divide(task: Task, table: LabelTable, labels: npt.NDArray[np.str_]) -> tuple[list[Fold], str]:
    filtered = bool(task.train or task.test)
    if filtered and task.folds:
        raise InputError(f"task {task.title}: give either folds or train/test filters")
    if filtered:
        return _by_filters(task, table)
    if task.folds or "fold" in table.columns:
        return _by_folds(task, table, task.folds or "fold", labels)
    if "split" in table.columns:
        split = np.array(_column(task, table, "split"))
        fold = Fold(_where(np.isin(split, TRAIN_SPLITS)), _where(split == "test"))
        return [fold], "column split: train and val against test"
    raise InputError(
        f"task {task.title}: {table.path} has no column `split` (train, val, test) and no `fold`; "
        "add one, or say who trains: --train 'group=a,b'"
    )


def _by_folds(task: Task, table: LabelTable, column: str, labels: npt.NDArray[np.str_]) -> tuple[list[Fold], str]:
    cells = np.array(_column(task, table, column))
    names = sorted(set(cells[(cells != "") & (labels != "")]))
    if len(names) < 2:
        raise InputError(f"task {task.title}: column {column!r} of {table.path} names {len(names)} fold; at least 2")
    folds = [Fold(_where((cells != name) & (cells != "")), _where(cells == name)) for name in names]
    return folds, f"{len(names)}-fold cross-validation by column {column}"


def _by_filters(task: Task, table: LabelTable) -> tuple[list[Fold], str]:
    train, test = (_passing(task, table, filters) for filters in (task.train, task.test))
    if not task.test:
        return [Fold(_where(train), _where(~train))], f"train on {' and '.join(task.train)}, test on the rest"
    if task.train:
        if both := int((train & test).sum()):
            raise InputError(f"task {task.title}: {both} rows pass both the train and the test filters")
        said = f"train on {' and '.join(task.train)}, test on {' and '.join(task.test)}"
        return [Fold(_where(train), _where(test))], said
    rest, said = ~test, "train on the rest"
    if "split" in table.columns:
        rest &= np.isin(_column(task, table, "split"), TRAIN_SPLITS)
        said = "train on the rest of split train and val"
    return [Fold(_where(rest), _where(test))], f"{said}, test on {' and '.join(task.test)}"


def _passing(task: Task, table: LabelTable, filters: Sequence[str]) -> npt.NDArray[np.bool_]:
    passing = np.ones(len(table.rows), dtype=np.bool_)
    for text in filters:
        keep = parse_filter(text)
        passing &= keep(task, table)
    return passing


def parse_filter(text: str) -> Callable[[Task, LabelTable], npt.NDArray[np.bool_]]:
    """A function that says which rows of a table pass `column=a,b` or `column!=a,b`.

    Raises:
        InputError: another form; and, when it is applied, a column or value that the table does not have.
    """
    match = re.fullmatch(r"\s*([^=!]+?)\s*(!?=)(.*)", text)
    if not match:
        raise InputError(f"filter {text!r}: expected COLUMN=VALUE, COLUMN!=VALUE or several values by comma")
    column, sign, values = match[1], match[2], [value.strip() for value in match[3].split(",")]

    def keep(task: Task, table: LabelTable) -> npt.NDArray[np.bool_]:
        cells = np.array(_column(task, table, column))
        for value in values:
            if value not in cells:
                known = ", ".join(sorted(set(cells))[:20])
                raise InputError(f"filter {text!r}: no row of {table.path} has {column} {value!r}; it has {known}")
        return np.isin(cells, values, invert=sign == "!=")

    return keep


def _column(task: Task, table: LabelTable, column: str) -> list[str]:
    if column not in table.columns:
        raise InputError(
            f"task {task.title}: {table.path} has no column {column!r}; its columns are {', '.join(table.columns)}"
        )
    return [row[column] for row in table.rows]


def _where(mask: npt.NDArray[np.bool_]) -> Rows:
    return np.flatnonzero(mask).astype(np.int64)


def _named(reject: Reject) -> str:
    return f"{reject.shard}/{reject.key}: {reject.reason}"


def _check(plan: Plan) -> None:
    for fold in plan.folds:
        for part, rows in (("train", fold.train), ("test", fold.test)):
            if not len(rows):
                first = f"; {len(plan.rejects)} unusable, such as {_named(plan.rejects[0])}" if plan.rejects else ""
                raise InputError(f"task {plan.task.title}: no labelled clip to {part} on ({plan.protocol}){first}")
        classes = Counter(plan.labels[fold.train].tolist())
        if len(classes) < 2:
            raise InputError(
                f"task {plan.task.title}: all {len(fold.train)} training clips have {plan.task.label} "
                f"{next(iter(classes))!r}; a probe needs at least two classes ({plan.protocol})"
            )
