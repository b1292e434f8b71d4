"""Surge pitch (Turian et al., 2021, arXiv 2104.12922): the note that a preset of the Surge synthesizer plays.

A folder a preset, a file a MIDI note: PRESET/60.ogg. There is no official split. EVAR's is a table of presets,
dataset_surge_tone_splits.csv (columns tone, split): where it lies beside the archive it decides. Otherwise a preset
goes to test (10 %), val (10 %) or train by a hash of its name. Not verified: the number of presets (a little over
2,000, 88 notes each), so counts are not checked; the name of the archive, its size and licence.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.recipes.base import Recipe, Row, Tree, split_by_hash

_SPLITS = "dataset_surge_tone_splits.csv"


def _rows(tree: Tree) -> Iterator[Row]:
    by_preset = {}
    if tree.has(_SPLITS):
        by_preset = {row["tone"]: row["split"] for row in tree.table(_SPLITS, ("tone", "split"))}
    for path in tree.audio():
        preset, note = path.parent.name, path.stem
        if not preset or not (note.isdigit() and int(note) < 128):
            continue
        split = by_preset.get(preset, "") if by_preset else split_by_hash(preset, val=0.1, test=0.1)
        yield {
            "filename": str(path),
            "label": str(int(note)),
            "split": "val" if split == "valid" else split,
            "group": preset,
        }


RECIPE = Recipe(
    name="surge",
    title="Surge pitch: notes of a synthesizer",
    task="88 MIDI notes",
    licence="see its record (not verified)",
    gigabytes=6,
    url="https://zenodo.org/record/4677097",
    archives=("surge*.tar", "surge*.tar.gz", "surge*.tgz", "surge*.zip"),
    layout="PRESET/60.ogg",
    protocol="none official; EVAR's table of presets where it is given, else by preset, 80 : 10 : 10 by a hash",
    metric="accuracy",
    columns=("label", "split", "group"),
    rows=_rows,
    num_labels=88,
)
