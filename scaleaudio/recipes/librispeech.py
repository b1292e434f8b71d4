"""LibriSpeech (Panayotov et al., 2015): 292,367 utterances of read English, 982 hours; a corpus.

`subset` is the official one (train-clean-100, ...), `group` the speaker, `sex` from SPEAKERS.TXT. No speaker is in two
of train, dev (here val) and test.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.recipes.base import Recipe, Row, Tree

SUBSETS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
_SPLITS = {"train": "train", "dev": "val", "test": "test"}


def _rows(tree: Tree) -> Iterator[Row]:
    sexes = _sexes(tree)
    for path in tree.audio():
        if len(path.parts) < 4 or path.parts[-4] not in SUBSETS:
            continue
        subset, speaker = path.parts[-4], path.parts[-3]
        yield {
            "filename": str(path),
            "split": _SPLITS[subset.partition("-")[0]],
            "group": speaker,
            "subset": subset,
            "sex": sexes.get(speaker, ""),
        }


def _sexes(tree: Tree) -> dict[str, str]:
    if not tree.has("SPEAKERS.TXT"):
        return {}
    rows = [line.split("|") for line in tree.lines("SPEAKERS.TXT") if not line.startswith(";")]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


RECIPE = Recipe(
    name="librispeech",
    title="LibriSpeech: read English",
    task="corpus; sex as a column",
    licence="CC BY 4.0",
    gigabytes=60,
    url="https://www.openslr.org/12",
    archives=tuple(f"{subset}.tar.gz" for subset in SUBSETS),
    layout="LibriSpeech/dev-clean/84/121123/84-121123-0000.flac",
    protocol="the official subsets: train-*, dev-* (val), test-*",
    metric="none of its own",
    columns=("split", "group", "subset", "sex"),
    rows=_rows,
    counted="subset",
    expected=SUBSETS,
)
