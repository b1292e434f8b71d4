"""VoxCeleb1 (Nagrani, Chung, Zisserman, 2017, arXiv 1706.08612): who speaks, of 1,251 people on YouTube.

The identification split is iden_split.txt (1 trains, 2 validates, 3 tests), a file of its own beside the archives; it
keeps the utterances of one video together. Both archives unpack to `wav/`.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.errors import InputError
from scaleaudio.recipes.base import Recipe, Row, Tree

_LIST = "iden_split.txt"
_SPLITS = {"1": "train", "2": "val", "3": "test"}


def _rows(tree: Tree) -> Iterator[Row]:
    base = _base(tree)
    for line in tree.lines(_LIST):
        number, _, name = line.partition(" ")
        if number not in _SPLITS or name.count("/") != 2:
            raise InputError(f"{_LIST}: expected lines such as `3 id10001/7gWzIy6yIIk/00001.wav`, came {line[:80]!r}")
        speaker, video, _ = name.split("/")
        yield {
            "filename": base + name,
            "label": speaker,
            "split": _SPLITS[number],
            "group": f"{speaker}/{video}",
        }


def _base(tree: Tree) -> str:
    """What precedes id10001/...: wav/ in the archives."""
    for path in tree.audio():
        if len(path.parts) >= 3 and path.parts[-3].startswith("id1"):
            return "".join(f"{part}/" for part in path.parts[:-3])
    return "wav/"


RECIPE = Recipe(
    name="voxceleb1",
    title="VoxCeleb1: speakers",
    task="1,251 speakers",
    licence="the videos belong to their owners; the authors' metadata is CC BY 4.0",
    gigabytes=38,
    url="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html (with meta/iden_split.txt)",
    archives=("vox1_dev_wav.zip", "vox1_test_wav.zip"),
    layout="wav/id10001/1zcIwhmdeo4/00001.wav and iden_split.txt",
    protocol="the authors' identification split, iden_split.txt",
    metric="accuracy (top 1)",
    columns=("label", "split", "group"),
    rows=_rows,
    expected={"train": 138_361, "val": 6_904, "test": 8_251},
    num_labels=1251,
)
