"""CREMA-D (Cao et al., 2014): six emotions, acted by 91 people in twelve sentences, 7,442 clips.

The authors publish no split. The one here is by actor, 63 train, 9 validate and 19 test: TensorFlow Datasets' (the
actors in NumPy's legacy shuffle of seed 0), whose sets of 5,144, 738 and 1,556 clips lack four of the 7,442 files. That
1076_MTI_SAD_XX.wav is silent, as is said, was not verified.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from scaleaudio.recipes.base import Recipe, Row, Tree

_ACTORS = range(1001, 1092)
_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})\.wav")


def _rows(tree: Tree) -> Iterator[Row]:
    split = _split_of_actors()
    for path in tree.audio():
        match = _NAME.fullmatch(path.name)
        if match and match[1] in split and match[3] in _EMOTIONS:
            yield {
                "filename": str(path),
                "label": _EMOTIONS[match[3]],
                "split": split[match[1]],
                "group": match[1],
                "sentence": match[2],
            }


def _split_of_actors() -> dict[str, str]:
    actors = [str(actor) for actor in _ACTORS]
    np.random.RandomState(0).shuffle(actors)  # NumPy keeps the legacy generator as it is, for ever
    return {actor: "train" if at < 63 else "val" if at < 72 else "test" for at, actor in enumerate(actors)}


RECIPE = Recipe(
    name="cremad",
    title="CREMA-D: acted emotions",
    task="6 emotions",
    licence="Open Database License (ODbL) 1.0",
    gigabytes=0.6,
    url="https://github.com/CheyneyComputerScience/CREMA-D",
    archives=("CREMA-D*.zip", "AudioWAV*.zip", "crema-d*.tar.gz"),
    layout="AudioWAV/1001_DFA_ANG_XX.wav",
    protocol="by actor, 63 : 9 : 19, as TensorFlow Datasets divides them; the authors give none",
    metric="accuracy",
    columns=("label", "split", "group", "sentence"),
    rows=_rows,
    expected={"train": 5_146, "val": 738, "test": 1_558},
    num_labels=6,
)
