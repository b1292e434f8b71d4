"""NSynth (Engel et al., 2017, arXiv 1704.01279): 305,979 notes of 4 s from 1,006 instruments.

`label` is the instrument's family; `pitch` (MIDI), `velocity` and `source` are further columns. No instrument of the
training set is in the others; the family synth_lead is in the training set alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from scaleaudio.errors import InputError
from scaleaudio.recipes.base import Recipe, Row, Tree

_SPLITS = {"train": "train", "valid": "val", "test": "test"}


def _rows(tree: Tree) -> Iterator[Row]:
    for official, split in _SPLITS.items():
        name = f"nsynth-{official}/examples.json"
        if not tree.has(name):
            continue
        base = tree.base(name)
        try:
            notes = json.loads(tree.text(name))
            for key, note in notes.items():
                yield {
                    "filename": f"{base}nsynth-{official}/audio/{key}.wav",
                    "label": note["instrument_family_str"],
                    "split": split,
                    "group": note["instrument_str"],
                    "pitch": str(note["pitch"]),
                    "velocity": str(note["velocity"]),
                    "source": note["instrument_source_str"],
                }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{name}: not the table of NSynth ({error!r}). Download it again") from error


RECIPE = Recipe(
    name="nsynth",
    title="NSynth: musical notes",
    task="11 instrument families; pitch, velocity and source as columns",
    licence="CC BY 4.0",
    gigabytes=25,
    url="https://magenta.tensorflow.org/datasets/nsynth",
    archives=("nsynth-*.jsonwav.tar.gz",),
    layout="nsynth-test/audio/bass_electronic_018-022-025.wav and nsynth-test/examples.json",
    protocol="the official train, valid and test archives",
    metric="accuracy",
    columns=("label", "split", "group", "pitch", "velocity", "source"),
    rows=_rows,
    expected={"train": 289_205, "val": 12_678, "test": 4_096},
    num_labels=11,
)
