"""Models by tasks: embed every clip once, fit the probes on each task's folds, and say what that is worth."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track
from sklearn.metrics import confusion_matrix
from torch import nn

from scaleaudio.evaluate.answers import Answer, Named, answers, seed_of
from scaleaudio.evaluate.compare import compare
from scaleaudio.evaluate.embeddings import dim_of, rate_of
from scaleaudio.evaluate.fewshot import few_shot
from scaleaudio.evaluate.layout import clip_map
from scaleaudio.evaluate.several import classes_of
from scaleaudio.evaluate.split import Plan, plan_task
from scaleaudio.evaluate.stages import EMBEDDING, Staged
from scaleaudio.evaluate.store import embed_stored
from scaleaudio.evaluate.tasks import LabelTable, Task, read_labels
from scaleaudio.findings import ClipMap, Comparison, Confusion, FewShot, StageScore
from scaleaudio.scores import METRICS, ModelFacts, Results, Score, TaskFacts
from scaleaudio.types import Reject

# BYOL-A's unit of 96 frames. What is read off short clips depends on it: change it for all models or for none.
MIN_SECONDS = 0.96
MOST_CLASSES_CONFUSED = 100
PACKAGES = ("scaleaudio", "torch", "torchaudio", "numpy", "scikit-learn", "soundfile")


def evaluate(
    models: Mapping[str, nn.Module],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    min_seconds: float = MIN_SECONDS,
    linear: bool = True,
    shots: Sequence[int] = (),
    stages: Sequence[str] = (),
    maps: Sequence[str] = (),
    store: Path | None = None,
    progress: bool = False,
) -> Results:
    """The score of every probe on every model's embeddings of every task, and every pair of models compared.

    Args:
        models: encoders by the name that they have in tables; see `embed_files` for what they must have.
        tasks: as from `parse_tasks`, of different titles; those that share a label table share its embeddings.
        seed: of the bootstrap and of the folds in which C is chosen; 0 to 2**32 - 1.
        min_seconds: clips shorter than this get silence at their end; 0 takes every clip as it is.
        linear: whether linear probes are fitted besides kNN, which costs nearly nothing.
        shots: also scores of probes fitted on so many clips of each class, such as (1, 4, 16).
        stages: models of which each stage is probed as well.
        maps: models of whose test clips a map is made.
        store: a folder of embeddings made before, to read from and add to; see `scaleaudio.evaluate.store`.
        progress: show progress bars.

    Raises:
        InputError: a task that cannot be set up; all are checked before the first clip is embedded.
        ValueError: a model whose output is of the wrong shape or not finite, or whose stages cannot be looked into.
    """
    tables = {task.table_path: read_labels(task.table_path) for task in tasks}
    plans = [plan_task(task, tables[task.table_path]) for task in tasks]
    opened = {name: Staged(model) if name in stages else model for name, model in models.items()}
    corpora = _embed_tables(opened, tables, plans, min_seconds, store, progress)
    plans = [plan.without(corpora[plan.task.table_path].unusable) for plan in plans]
    found, by_model = _Found(), dict[str, dict[str, Answer]]()
    cells = [(plan, model) for plan in plans for model in models]
    for plan, model in track(cells, "probing", disable=not progress, transient=True):
        z_ND, module = corpora[plan.task.table_path].by_model[model], opened[model]
        cell = _Cell(model, plan, z_ND, module.columns if isinstance(module, Staged) else {})
        by_model[model] = answers(plan, cell.kept_ND, seed, "all" if linear else "nearest")
        found.add(cell, by_model[model], seed, shots, model in maps)
        if len(by_model) == len(models):
            found.comparisons += compare(plan, by_model, seed)
            by_model = {}
    return Results(
        tasks=tuple(_facts(plan, found.scores) for plan in plans),
        models=tuple(_model_facts(name, model) for name, model in models.items()),
        seed=seed,
        min_seconds=min_seconds,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        **{name: tuple(rows) for name, rows in vars(found).items()},
    )


@dataclass(frozen=True)
class _Cell:
    """One model on one task: a row a row of the label table, and where in it each stage is that is looked into."""

    model: str
    plan: Plan
    z_ND: npt.NDArray[np.float32]
    columns: Mapping[str, slice]

    @property
    def kept_ND(self) -> npt.NDArray[np.float32]:
        """The embeddings without the stages before them."""
        return self.z_ND[:, self.columns[EMBEDDING]] if self.columns else self.z_ND


@dataclass
class _Found:
    """What has been found so far, under the names that it has in `Results`."""

    scores: list[Score] = field(default_factory=list)
    few_shot: list[FewShot] = field(default_factory=list)
    stages: list[StageScore] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    maps: list[ClipMap] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def add(self, cell: _Cell, given: Mapping[str, Answer], seed: int, shots: Sequence[int], with_map: bool) -> None:
        """All that is said of one model on one task, whose probes gave those answers."""
        model, plan = cell.model, cell.plan
        self.scores += _scores(model, plan, given, seed)
        self.few_shot += few_shot(model, plan, cell.kept_ND, shots, seed)
        self.stages += _stage_scores(model, plan, cell.z_ND, cell.columns, seed)
        self.confusions += _confusions(model, plan, given)
        laid = clip_map(model, plan, cell.kept_ND, seed) if with_map else None
        self.maps += [laid] if laid else []


@dataclass(frozen=True)
class _Corpus:
    """The embeddings (rows of the table, D) of one label table by model, and the rows whose file cannot be used."""

    by_model: dict[str, npt.NDArray[np.float32]]
    unusable: dict[int, Reject]


def _embed_tables(
    models: Mapping[str, nn.Module],
    tables: Mapping[Path, LabelTable],
    plans: Sequence[Plan],
    min_seconds: float,
    store: Path | None,
    progress: bool,
) -> dict[Path, _Corpus]:
    """By table, those of its rows that any plan needs."""
    corpora = {}
    for path, table in tables.items():
        rows = np.unique(np.concatenate([plan.rows() for plan in plans if plan.task.table_path == path]))
        files = [path.parent / table.rows[row]["filename"] for row in rows]
        embedded = embed_stored(models, files, store, min_seconds=min_seconds, progress=progress)
        by_model = {}
        for name, made in embedded.by_model.items():
            by_model[name] = np.full((len(table.rows), made.shape[1]), np.nan, np.float32)
            by_model[name][rows] = made
        corpora[path] = _Corpus(by_model, {int(rows[place]): reject for place, reject in embedded.rejects.items()})
    return corpora


def _scores(model: str, plan: Plan, found: Mapping[str, Answer], seed: int) -> Iterator[Score]:
    for metric in METRICS:
        if metric not in found:
            continue
        answer = found[metric]
        low, high = answer.interval(seed_of(seed, plan, metric))
        yield Score(
            model=model,
            task=plan.task.title,
            metric=metric,
            score=answer.score,
            low=low,
            high=high,
            num_train=_mean_train(plan),
            num_test=len(answer),
            setting=answer.setting,
        )


def _stage_scores(
    model: str, plan: Plan, z_ND: npt.NDArray[np.float32], columns: Mapping[str, slice], seed: int
) -> Iterator[StageScore]:
    """Both probes, the linear one at C = 0.05, on each stage; the embedding is the last."""
    for place, (stage, column) in enumerate(columns.items()):
        for metric, answer in answers(plan, z_ND[:, column], seed, "fixed").items():
            low, high = answer.interval(seed_of(seed, plan, metric))
            width = column.stop - column.start
            yield StageScore(model, plan.task.title, metric, stage, place, width, answer.score, low, high)


def _confusions(model: str, plan: Plan, found: Mapping[str, Answer]) -> Iterator[Confusion]:
    """Of the best probe that was run."""
    metric = next(metric for metric in ("linear", "linear_c0.05", "knn") if metric in found)
    answer = found[metric]
    if not isinstance(answer, Named):
        return
    classes = sorted(set(answer.true_N.tolist()) | set(answer.given_N.tolist()))
    if len(classes) > MOST_CLASSES_CONFUSED:
        return
    count_CC = confusion_matrix(answer.true_N, answer.given_N, labels=classes)
    yield Confusion(model, plan.task.title, metric, tuple(classes), tuple(map(tuple, count_CC.tolist())))


def _facts(plan: Plan, scores: Sequence[Score]) -> TaskFacts:
    task, test = plan.task, np.concatenate([fold.test for fold in plan.folds])
    by_row = _classes_by_row(plan)
    counts = Counter(name for row in test.tolist() for name in by_row[row])
    majority = max(counts.values()) if not task.separator else sum(counts.values()) / len(counts)
    num_unseen = sum(_num_unseen(by_row, fold.train.tolist(), fold.test.tolist()) for fold in plan.folds)
    run = {score.metric for score in scores if score.task == task.title}
    return TaskFacts(
        name=task.title,
        source=str(task.table_path),
        label=task.label,
        protocol=plan.protocol,
        train=task.train,
        test=task.test,
        num_folds=len(plan.folds),
        num_train=_mean_train(plan),
        num_test=len(test),
        num_classes=len({name for row in plan.rows().tolist() for name in by_row[row]}),
        majority=majority / len(test),
        num_unlabelled=plan.num_unlabelled,
        num_unused=plan.num_unused,
        num_unseen=num_unseen,
        rejects=plan.rejects,
        notes=tuple(_notes(plan, run)),
        measure="mAP" if task.separator else "accuracy",
    )


def _notes(plan: Plan, run: set[str]) -> Iterator[str]:
    if "linear" not in run and "linear_c0.05" in run:
        yield "C is not chosen: a class has fewer than two training clips"
    labels = plan.labels[plan.rows()].tolist()
    if not plan.task.separator and any(";" in label for label in labels):
        yield 'some labels hold ";": if those are several classes of a clip, say so with the separator ";"'


def _classes_by_row(plan: Plan) -> list[list[str]]:
    separator = plan.task.separator
    return classes_of(plan.labels, separator) if separator else [[label] for label in plan.labels.tolist()]


def _num_unseen(by_row: Sequence[Sequence[str]], train: Sequence[int], test: Sequence[int]) -> int:
    """Test clips none of whose classes was trained on."""
    seen = {name for row in train for name in by_row[row]}
    return sum(seen.isdisjoint(by_row[row]) for row in test)


def _mean_train(plan: Plan) -> int:
    return round(sum(len(fold.train) for fold in plan.folds) / len(plan.folds))


def _model_facts(name: str, model: nn.Module) -> ModelFacts:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelFacts(name, dim_of(model), rate_of(model), num_parameters)
