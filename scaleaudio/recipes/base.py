"""What a recipe says of its data set, and how it sees the files of one."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from scaleaudio.data import storage
from scaleaudio.errors import InputError

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".au", ".aif", ".aiff", ".m4a")
Row = dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """One public data set: what a user has to know before the download, and how its rows come about.

    Attributes:
        name: what it is called on the command line.
        title: its own name, and in a few words what it is.
        task: what is to be predicted, or "corpus".
        licence: as its authors state it; the audio's, not this program's.
        gigabytes: size of the archives, rounded.
        url: where its authors offer it.
        archives: names of the official archives, or patterns; they may lie in one folder, unpacked or not.
        layout: a path inside it that shows what an unpacked folder looks like.
        protocol: who trains and who tests, and who says so.
        metric: what results are reported in.
        columns: of labels.csv after `filename`.
        rows: a row for each clip that the data set has by its own tables, with `filename` below the unpacked folder.
        expected: official number of clips by `counted`; empty where none is published.
        num_labels: official number of classes in the column `label`; 0 where it has none.
        counted: the column whose values the official numbers belong to.
        separator: what stands between the labels of a clip that has several.
    """

    name: str
    title: str
    task: str
    licence: str
    gigabytes: float
    url: str
    archives: tuple[str, ...]
    layout: str
    protocol: str
    metric: str
    columns: tuple[str, ...]
    rows: Callable[[Tree], Iterable[Row]]
    expected: Mapping[str, int] = field(default_factory=dict)
    num_labels: int = 0
    counted: str = "split"
    separator: str = ""


class Tree:
    """The files of an unpacked data set, and the tables that lie loose beside its archives.

    Attributes:
        sizes: bytes of each file by its path below the root, "/" between folders; hidden ones are left out, and
            those whose name is no UTF-8.
    """

    def __init__(self, root: Path, beside: Path | None = None, *, outside: Path | None = None) -> None:
        """Lists what lies below `root`, but not below `outside`; `beside` is looked into for tables only."""
        self.root = root
        self._beside = beside
        prefix = len(str(root.resolve())) + 1
        entries = storage.list_entries(str(root.resolve()), outside=str(outside) if outside else None)
        sizes = {entry.url[prefix:]: entry.size for entry in entries}
        self.sizes = {name: size for name, size in sizes.items() if not _is_hidden(name)}

    def audio(self) -> list[PurePosixPath]:
        """Every audio file by its suffix, sorted."""
        return [PurePosixPath(name) for name in sorted(self.sizes) if name.lower().endswith(AUDIO)]

    def base(self, name: str) -> str:
        """What precedes the path `name`, such as the folder that the archive wraps everything in: "" or ".../".

        Raises:
            InputError: there is no such file, or there are several that differ.
        """
        return self._locate(name)[1]

    def text(self, name: str) -> str:
        """The text of the one file whose path ends in `name`.

        Raises:
            InputError: there is none, there are several that differ, or it is not UTF-8.
        """
        path = self._locate(name)[0]
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as text ({error}). Download it again") from error

    def lines(self, name: str) -> list[str]:
        """The lines of such a file that are not empty."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def table(self, name: str, columns: Sequence[str], *, header: Sequence[str] | None = None) -> Iterator[Row]:
        """The rows of such a CSV file, which has at least `columns`; `header` names them where the file does not.

        Raises:
            InputError: as for `text`, or a column is missing.
        """
        reader = csv.DictReader(io.StringIO(self.text(name), newline=""), fieldnames=header, skipinitialspace=True)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise InputError(f"{self._locate(name)[0]}: no column {missing[0]!r}; its columns are {found}")
        for number, row in enumerate(reader, start=1):
            if any(row[column] is None for column in columns):
                raise InputError(f"{self._locate(name)[0]}: row {number} is cut off. Download it again")
            yield row

    def has(self, name: str) -> bool:
        """Whether a file's path ends in `name`."""
        return bool(self._found(name))

    def _locate(self, name: str) -> tuple[Path, str]:
        found = self._found(name)
        copies = len(found) > 1 and len({path.read_bytes() for path, _ in found}) == 1
        if len(found) != 1 and not copies:
            where = self._beside or self.root.resolve()
            several = f"{len(found)} files {name}, such as {found[0][0]}: expected one" if found else f"no file {name}"
            raise InputError(f"{where}: {several}. Give the data set as it is offered, all in one folder")
        return found[0]

    def _found(self, name: str) -> list[tuple[Path, str]]:
        inside = [path for path in self.sizes if path == name or path.endswith(f"/{name}")]
        if inside or self._beside is None:
            return [(self.root / path, path.removesuffix(name)) for path in inside]
        loose = sorted(self._beside.glob(f"**/{PurePosixPath(name).name}"))
        return [(path, "") for path in loose if path.is_file()]


def split_by_hash(group: str, *, val: float = 0.1, test: float = 0.2) -> str:
    """train, val or test for everything of one group, the same on every machine; for data sets without a split."""
    place = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def _is_hidden(name: str) -> bool:
    no_text = any("\ud800" <= char <= "\udfff" for char in name)
    return no_text or any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
