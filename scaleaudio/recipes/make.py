"""A recipe carried out: OUT/audio (a link to the unpacked folder, or what was unpacked) and OUT/labels.csv.

OUT/labels.csv    filename, label, split or fold, group, ...: what evaluate and `shards build` read
    audio         the clips, never copied: a link, unless they came out of an archive
    missing.csv   clips that the data set's own tables name and that are not there
    recipe.json   which recipe, its licence, and the counts beside the official ones
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import soundfile
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.recipes.base import AUDIO, Recipe, Row, Tree
from scaleaudio.recipes.unpack import is_archive, unpack

_HALF_WRITTEN = re.compile(r"\.[0-9a-f]{8}\.tmp$")
_AT_WORK_SECONDS = 60
_LABELS, _MISSING, _ABOUT, _AUDIO = "labels.csv", "missing.csv", "recipe.json", "audio"


@dataclass(frozen=True)
class Made:
    """What came of a recipe.

    Attributes:
        out: the labelled folder.
        parts: clips by fold, split or subset, with the official number where there is one.
        num_labels: classes in the column `label`.
        warnings: what is missing or was refused, a line each.
    """

    out: Path
    parts: dict[str, tuple[int, int | None]]
    num_labels: int
    warnings: tuple[str, ...]

    @property
    def num_clips(self) -> int:
        """Rows of labels.csv."""
        return sum(found for found, _ in self.parts.values())


def make(recipe: Recipe, src: Path, out: Path, *, progress: bool = False) -> Made:
    """Writes the labelled folder `out` of the data set whose archive, archives or unpacked folder is `src`.

    An unpacked `src` is linked to; archives are unpacked into `out`, and what an interrupted call unpacked is kept.

    Raises:
        InputError: `src` is not that data set, an archive is damaged, or `out` holds something else.
        OSError: `out` cannot be written.
    """
    if src.resolve() == out.resolve():
        raise InputError(f"{out}: is the source itself; give another folder to write to, such as {out}/labelled")
    archives = _archives(recipe, src, out)
    _claim(recipe, src, out, linked=not archives)
    warnings = _unpack(archives, src, out / _AUDIO, progress) if archives else _link(recipe, src, out)
    beside = src if src.is_dir() else None
    with Console(stderr=True).status("listing files") if progress else nullcontext():
        tree = Tree(out / _AUDIO, beside if archives else None, outside=out if not archives else None)
        rows, missing = _rows(recipe, tree, src)
    _check_audio(recipe, tree, rows[0])
    for row in rows:
        row["filename"] = f"{_AUDIO}/{row['filename']}"
    made = _checked(recipe, out, rows, missing, warnings)
    _write_csv(out / _MISSING, ["filename"], missing)
    _write_csv(out / _LABELS, ["filename", *recipe.columns], rows)
    _write_about(recipe, made)
    return made


def _archives(recipe: Recipe, src: Path, out: Path) -> list[Path]:
    """What is to be unpacked: `src` itself, or the official archives in a folder that holds no audio yet."""
    if not src.exists():
        raise InputError(f"{src}: no such file or folder. {recipe.title}: {recipe.url}")
    if src.is_file():
        return [src]
    if not src.is_dir():
        raise InputError(f"{src}: neither a file nor a folder")
    below = [Path(entry.url) for entry in storage.list_entries(str(src), outside=str(out))]
    if any(path.name.lower().endswith(AUDIO) for path in below):
        return []
    found = [path for path in below if any(fnmatch(path.name, pattern) for pattern in recipe.archives)]
    if found:
        return found
    others = [path.name for path in below if is_archive(path)]
    raise InputError(
        f"{src}: neither audio nor an official archive of {recipe.name} ({', '.join(recipe.archives) or 'it has none'})"
        + (f"; there is {others[0]}: give it by its name if it is the one" if others else f". Get it from {recipe.url}")
    )


def _claim(recipe: Recipe, src: Path, out: Path, *, linked: bool) -> None:
    """Makes the folder `out`, unless it holds what this recipe did not write."""
    about = out / _ABOUT
    before = _recipe_of(about) if about.exists() else None
    if before not in (None, recipe.name):
        raise InputError(f"{out}: holds the recipe {before}. Give another folder")
    if before is None and (out / _LABELS).exists():
        raise InputError(f"{out}: holds a {_LABELS} that no recipe wrote. Give another folder")
    audio = out / _AUDIO
    if linked and audio.exists() and not audio.is_symlink():
        raise InputError(f"{audio}: holds files already; cannot link to {src}. Give another folder, or remove it")
    if audio.is_symlink():
        audio.unlink()
    out.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(str(about), json.dumps({"recipe": recipe.name}).encode())


def _recipe_of(about: Path) -> str:
    try:
        return str(json.loads(about.read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{about}: not what a recipe writes ({error!r}). Give another folder") from error


def _link(recipe: Recipe, src: Path, out: Path) -> list[str]:
    (out / _AUDIO).symlink_to(src.resolve(), target_is_directory=True)
    packed = [path.name for path in sorted(src.iterdir()) if any(fnmatch(path.name, p) for p in recipe.archives)]
    return [f"{src}: {name} was not unpacked, since there is audio beside it" for name in packed]


def _unpack(archives: Sequence[Path], src: Path, folder: Path, progress: bool) -> list[str]:
    total = sum(archive.stat().st_size for archive in archives)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > free and not any(folder.iterdir()):
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free; what is to be unpacked has {total / 1e9:.1f} GB packed"
        )
    warnings = []
    with _bar(total, progress) as advance:
        for archive in archives:
            below = archive.parent.relative_to(src) if src.is_dir() else Path()
            done = unpack(archive, folder / below, advance)
            warnings += [f"{archive.name}: {name}: {reason}; left out" for name, reason in done.refused[:5]]
            if len(done.refused) > 5:
                warnings.append(f"{archive.name}: and {len(done.refused) - 5} more members left out")
    _sweep(folder)
    return warnings


def _sweep(folder: Path) -> None:
    """Removes half-written files of calls that were killed; not those of a call that is still at work."""
    for path in folder.rglob(".*.tmp"):
        if _HALF_WRITTEN.search(path.name) and time.time() - path.stat().st_mtime > _AT_WORK_SECONDS:
            path.unlink(missing_ok=True)


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("unpacking"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)


def _rows(recipe: Recipe, tree: Tree, src: Path) -> tuple[list[Row], list[Row]]:
    """The rows whose clips are there, and those whose clips are not; both by name, each clip once."""
    by_name = {row["filename"]: row for row in recipe.rows(tree)}
    rows = [by_name[name] for name in sorted(by_name) if tree.sizes.get(name)]
    missing = [{"filename": name} for name in sorted(by_name) if not tree.sizes.get(name)]
    if not rows:
        raise InputError(
            f"{src}: no clip of {recipe.name} here; expected a folder with {recipe.layout}"
            + (f"; its tables name {len(missing)}, such as {missing[0]['filename']}" if missing else "")
        )
    return rows, missing


def _check_audio(recipe: Recipe, tree: Tree, row: Row) -> None:
    """Refuses clips that are pointers into a large-file store, or no audio."""
    path = tree.root / row["filename"]
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise InputError(f"{path}: a Git LFS pointer, not the audio. Run `git lfs pull` in a clone of {recipe.url}")
    try:
        soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in (".wav", ".flac", ".ogg", ".au"):
            raise InputError(f"{path}: cannot be read as audio ({error}). Download it again") from error


def _checked(recipe: Recipe, out: Path, rows: list[Row], missing: list[Row], warnings: list[str]) -> Made:
    column = recipe.counted
    found = Counter(row.get(column, "") for row in rows)
    names = sorted(found.keys() | recipe.expected.keys(), key=_part_order)
    parts = {f"{column} {name}" if name else "in no split": (found[name], recipe.expected.get(name)) for name in names}
    said = [*warnings]
    if missing:
        said.append(f"{len(missing)} clips that its tables name are not there: {out / _MISSING}")
    said += [
        f"{part}: {count or 'no'} clips; officially there are {official}"
        for part, (count, official) in parts.items()
        if official is not None and count != official
    ]
    cells = {row.get("label", "") for row in rows}
    several = {label for cell in cells for label in cell.split(recipe.separator)} if recipe.separator else cells
    labels = several - {""}
    if recipe.num_labels and len(labels) != recipe.num_labels:
        said.append(f"{len(labels)} classes; officially there are {recipe.num_labels}")
    return Made(out, parts, len(labels), tuple(said))


def _part_order(name: str) -> tuple[int, str]:
    order = ("train", "val", "test")
    return (int(name) if name.isdigit() else order.index(name) if name in order else len(order), name)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_atomic(str(path), text.getvalue().encode("utf-8", "surrogateescape"))


def _write_about(recipe: Recipe, made: Made) -> None:
    about = {
        "recipe": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "url": recipe.url,
        "protocol": recipe.protocol,
        "metric": recipe.metric,
        "clips": {part: {"found": found, "official": official} for part, (found, official) in made.parts.items()},
        "labels": made.num_labels,
        "warnings": list(made.warnings),
    }
    storage.write_atomic(str(made.out / _ABOUT), json.dumps(about, indent=1, ensure_ascii=False).encode())
