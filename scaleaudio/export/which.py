"""Which encoder an adapter is to load where the program that runs it names none."""

from __future__ import annotations

import os

from scaleaudio import bundle
from scaleaudio.bundle import AudioEncoder
from scaleaudio.errors import InputError

VARIABLE = "SCALEAUDIO_MODEL"


def asked_for(path: str) -> AudioEncoder:
    """The encoder at `path`, or at the path in the environment variable SCALEAUDIO_MODEL where it is empty.

    Raises:
        InputError: neither names an encoder.
    """
    path = str(path) or os.environ.get(VARIABLE, "")
    if not path:
        raise InputError(f"no encoder named: give an exported folder as the model file, or set {VARIABLE} to it")
    return bundle.load(path)
