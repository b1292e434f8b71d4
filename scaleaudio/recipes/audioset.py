"""AudioSet (Gemmeke et al., 2017): 10 s pieces of videos with several of 527 labels each.

Its authors publish tables, not audio: the pieces have to be fetched from YouTube, and many are gone. A piece is known
by its video's eleven characters: YTID.flac, YYTID.wav, YTID_30.000.wav and YTID_30.000_40.000.wav are all found, in any
folder. Labels are display names joined by ";", from class_labels_indices.csv; without that table, the ontology's codes.
`subset` says which table a clip is from; a corpus for pre-training is that of all three, or `--where
subset=unbalanced_train`. The official numbers are those in the tables' own headers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from scaleaudio.errors import InputError
from scaleaudio.recipes.base import Recipe, Row, Tree

_TABLES = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}
_STEM = re.compile(r"Y?([\w-]{11})(_[\d.]+){0,2}")
_FALLBACK = "{}.wav"


def _rows(tree: Tree) -> Iterator[Row]:
    names = _display_names(tree)
    there = {clip: str(path) for path in reversed(tree.audio()) if (clip := _clip(path.name)) is not None}
    if not any(tree.has(f"{table}_segments.csv") for table in _TABLES):
        raise InputError("no balanced_train_segments.csv, eval_segments.csv or unbalanced_train_segments.csv here")
    for table, split in _TABLES.items():
        if not tree.has(f"{table}_segments.csv"):
            continue
        lines = (line for line in tree.lines(f"{table}_segments.csv") if not line.startswith("#"))
        for fields in csv.reader(lines, skipinitialspace=True):
            if len(fields) != 4 or len(fields[0]) != 11:
                raise InputError(f"{table}_segments.csv: expected video, start, end, labels; came {fields}")
            clip, _, _, codes = fields
            yield {
                "filename": there.get(clip, _FALLBACK.format(clip)),
                "label": ";".join(names.get(code, code) for code in codes.split(",")),
                "split": split,
                "group": clip,
                "subset": table,
            }


def _clip(name: str) -> str | None:
    """The video that a file name stands for; a leading Y is a prefix where eleven characters follow it."""
    stem = name.rpartition(".")[0]
    match = _STEM.fullmatch(stem)
    return match[1] if match else None


def _display_names(tree: Tree) -> dict[str, str]:
    if not tree.has("class_labels_indices.csv"):
        return {}
    return {row["mid"]: row["display_name"] for row in tree.table("class_labels_indices.csv", ("mid", "display_name"))}


RECIPE = Recipe(
    name="audioset",
    title="AudioSet: sound events in videos",
    task="527 labels, several a clip; also a corpus",
    licence="tables CC BY 4.0; the videos belong to their owners",
    gigabytes=0.1,
    url="https://research.google.com/audioset/download.html (tables alone)",
    archives=("bal_train*.tar", "eval*.tar", "unbal_train*.tar"),
    layout="-0RWZT-miFs.flac in any folder and balanced_train_segments.csv, eval_segments.csv",
    protocol="the official tables: balanced and unbalanced train, eval tests",
    metric="mAP (macro)",
    columns=("label", "split", "group", "subset"),
    rows=_rows,
    counted="subset",
    expected={"balanced_train": 22_160, "unbalanced_train": 2_041_789, "eval": 20_371},
    separator=";",
    num_labels=527,
)
