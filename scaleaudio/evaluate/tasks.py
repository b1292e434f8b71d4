"""A task: a folder of audio with a labels.csv, the column to predict, and who trains and who tests.

On the command line a task is `FOLDER`, `FOLDER:COLUMN` or `FOLDER:COLUMN,COLUMN` (a task each), or a YAML file that
holds one task or a list of them with the keys of `Task`; FOLDER may be the CSV file itself.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scaleaudio.errors import InputError
from scaleaudio.types import Settings


class Task(Settings):
    """What to predict, and from which clips.

    Attributes:
        folder: a folder with a labels.csv (columns `filename`, relative to it, and labels), or a CSV file.
        label: the column that holds the class; rows where it names none are left out and counted.
        separator: what stands between the classes of a clip that may have several, such as ";" in "dog;rain"; the
            measure is then mAP.
        train: filters such as "group=v16" or "group!=v1,v2" (alternatives by comma); a row must pass all of them.
        test: likewise. With one of the two, the other is the rest; tests alone never train on `split` = test.
        folds: the column for cross-validation; by default `fold` where there is one and no filter is given.
        name: by default the folder's name, and the column's where it is not "label".
    """

    folder: str
    label: str = "label"
    separator: str = ""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    folds: str | None = None
    name: str = ""

    @property
    def title(self) -> str:
        """The name that this task has in tables."""
        path = Path(self.folder)
        stem = path.stem if path.suffix == ".csv" else path.resolve().name
        return self.name or (stem if self.label == "label" else f"{stem}:{self.label}")

    @property
    def table_path(self) -> Path:
        """The CSV file that this task reads."""
        path = Path(self.folder)
        return path if path.suffix == ".csv" else path / "labels.csv"


def parse_tasks(
    words: Sequence[str],
    *,
    label: str | None = None,
    separator: str = "",
    train: Sequence[str] = (),
    test: Sequence[str] = (),
) -> list[Task]:
    """The tasks that the words of a command line name, in order.

    Args:
        words: folders, folder:column, or YAML files.
        label: the column for those words that name none.
        separator: what stands between the classes of a clip, for every folder named here.
        train: training filters for every folder named here; a YAML file's tasks have their own.
        test: test filters, likewise.

    Raises:
        InputError: no tasks, an unusable YAML file, options that would apply to nothing, or two tasks of one name.
    """
    shared = {"separator": separator, "train": tuple(train), "test": tuple(test)}
    tasks = [task for word in words for task in _parse_word(word, label, shared)]
    if not tasks:
        raise InputError("no task: name at least one folder with a labels.csv, e.g. scaleaudio evaluate MODEL clips/")
    if (label or separator or train or test) and all(_is_yaml(word) for word in words):
        raise InputError(
            "--label, --separator, --train and --test apply to folders; tasks in a YAML file have keys of these names"
        )
    names = [task.title for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two tasks are called {sorted(twice)[0]!r}: give one a `name` in a YAML file")
    return tasks


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _parse_word(word: str, label: str | None, shared: Mapping[str, Any]) -> list[Task]:
    if "://" in word:
        raise InputError(f"task {word!r}: tasks are read from local folders; copy it here first")
    if _is_yaml(word):
        return _read_yaml(Path(word))
    has_columns = ":" in word and not Path(word).exists()
    folder, columns = word.rsplit(":", 1) if has_columns else (word, label or "label")
    return [Task(folder=folder, label=column.strip(), **shared) for column in columns.split(",")]


def _read_yaml(path: Path) -> list[Task]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = content if isinstance(content, list) else [content]
        tasks = [Task.model_validate(entry) for entry in entries]
    except OSError as error:
        raise InputError(f"task file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"task file {path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "task"
        raise InputError(f"task file {path}: {key}: {first['msg']}; keys are {', '.join(Task.model_fields)}") from error
    return [task.model_copy(update={"folder": str(path.parent / task.folder)}) for task in tasks]


@dataclass(frozen=True)
class LabelTable:
    """A label table as read: one dict of texts a row, each with a file name of its own."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def read_labels(path: Path) -> LabelTable:
    """The rows of a labels.csv.

    Raises:
        InputError: no such file, not UTF-8 CSV, no `filename` column, no rows, a ragged row, or a file named twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a task is a folder with a labels.csv") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file: {error}") from error
    if "filename" not in columns:
        raise InputError(f"{path}: no column `filename`; its columns are {', '.join(columns) or 'none'}")
    _check_rows(path, rows)
    return LabelTable(path, columns, tuple(rows))


def _check_rows(path: Path, rows: list[dict[str, str]]) -> None:
    if not rows:
        raise InputError(f"{path}: no rows below the header")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise InputError(f"{path}: row {number} has more cells than the header; quote cells that hold commas")
        if row["filename"] in seen:
            raise InputError(f"{path}: row {number} names {row['filename']!r} a second time; a clip may have one row")
        seen.add(row["filename"])
