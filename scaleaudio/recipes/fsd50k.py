"""FSD50K (Fonseca et al., 2022, arXiv 2010.00475): 51,197 Freesound clips with several of 200 labels each.

Labels are joined by ";". `group` is the uploader where FSD50K.metadata lies beside the audio. The two audio archives
are split zips (.z01 ... .zip), which have to be joined: zip -s 0 FSD50K.dev_audio.zip --out dev.zip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from scaleaudio.errors import InputError
from scaleaudio.recipes.base import Recipe, Row, Tree


def _rows(tree: Tree) -> Iterator[Row]:
    for part in ("dev", "eval"):
        table = f"FSD50K.ground_truth/{part}.csv"
        if not tree.has(table):
            continue
        base, uploaders = _base(tree, f"FSD50K.{part}_audio"), _uploaders(tree, part)
        for row in tree.table(table, ("fname", "labels", "split") if part == "dev" else ("fname", "labels")):
            yield {
                "filename": f"{base}FSD50K.{part}_audio/{row['fname']}.wav",
                "label": row["labels"].replace(",", ";"),
                "split": row["split"] if part == "dev" else "test",
                "group": uploaders.get(row["fname"], ""),
            }


def _base(tree: Tree, folder: str) -> str:
    for path in tree.audio():
        if folder in path.parts:
            return "".join(f"{part}/" for part in path.parts[: path.parts.index(folder)])
    return ""


def _uploaders(tree: Tree, part: str) -> dict[str, str]:
    name = f"FSD50K.metadata/{part}_clips_info_FSD50K.json"
    if not tree.has(name):
        return {}
    try:
        return {clip: str(info["uploader"]) for clip, info in json.loads(tree.text(name)).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: not the table of FSD50K ({error!r}). Download it again") from error


RECIPE = Recipe(
    name="fsd50k",
    title="FSD50K: sound events of Freesound",
    task="200 labels, several a clip",
    licence="CC BY 4.0 as a whole; the clips CC0, CC BY, CC BY-NC or Sampling+",
    gigabytes=25,
    url="https://zenodo.org/record/4060432",
    archives=("FSD50K.*.zip", "dev.zip", "eval.zip"),
    layout="FSD50K.dev_audio/64760.wav and FSD50K.ground_truth/dev.csv",
    protocol="the official train and val of the development set; the evaluation set tests",
    metric="mAP (macro), d', lwlrap",
    columns=("label", "split", "group"),
    rows=_rows,
    expected={"train": 36_796, "val": 4_170, "test": 10_231},
    separator=";",
    num_labels=200,
)
