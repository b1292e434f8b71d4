"""`scaleaudio export`: a trained encoder as a folder that says what it is.

OUT/config.json, model.safetensors   what `scaleaudio.load` reads: torch and torchaudio are enough
    README.md                        the model card
    xares_encoder.py                 what X-ARES takes
    audio_ntt.pth                    when asked for: the weights in BYOL-A's layout
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from scaleaudio import bundle
from scaleaudio.embedder import AudioEncoder
from scaleaudio.errors import InputError
from scaleaudio.export import evar, xares
from scaleaudio.export import onnx as graph
from scaleaudio.export.card import CardNotes, model_card
from scaleaudio.frontend import FrontendConfig

STATE_DICT = "audio_ntt.pth"


def export(
    model: str,
    out: str | Path,
    notes: CardNotes | None = None,
    *,
    frontend: Mapping[str, Any] | None = None,
    state_dict: bool = False,
    onnx: bool = False,
    program: bool = False,
) -> Path:
    """Writes the encoder of `model` to the folder `out`, and gives the folder.

    Args:
        model: a run folder, a checkpoint, an exported folder, or a .pth file with an AudioNTT in BYOL-A's layout.
        out: a folder; what an earlier export left there is replaced.
        notes: what the card says beside what the run knows of itself.
        frontend: keys of the front-end of a .pth file, which does not say what it was trained with.
        state_dict: write STATE_DICT too.
        onnx: write an ONNX model too.
        program: write a program of torch.export too.

    Raises:
        InputError: no such model, scores of another model, or `out` is a run folder or checkpoint.
        RunFailed: this encoder cannot be written as one graph; all else is written.
    """
    encoder = _encoder(model, frontend or {})
    name = str(encoder.origin.get("name") or Path(model).stem)
    card = model_card(encoder, notes or CardNotes(), name=name)
    weights = evar.audio_ntt_state_dict(encoder) if state_dict else None
    folder = write_folder(encoder, Path(out), name, card)
    if weights is not None:
        torch.save(weights, folder / STATE_DICT)
    if onnx:
        graph.write_onnx(encoder, folder / graph.ONNX_FILE)
    if program:
        graph.write_program(encoder, folder / graph.PROGRAM_FILE)
    return folder


def write_folder(encoder: AudioEncoder, out: Path, name: str, card: str | None = None) -> Path:
    """Writes the files that every exported folder has; without a card, one that says what the encoder knows.

    The other weights that an earlier export left in `out` are removed.
    """
    folder = bundle.save(encoder, out)
    for stale in (STATE_DICT, graph.ONNX_FILE, graph.PROGRAM_FILE):
        (folder / stale).unlink(missing_ok=True)
    _write_text(folder / "README.md", card or model_card(encoder, CardNotes(), name=name))
    _write_text(folder / xares.FILE, xares.class_file(encoder, name))
    return folder


def _encoder(model: str, frontend: Mapping[str, Any]) -> AudioEncoder:
    if not model.endswith((".pth", ".pt")):
        if frontend:
            raise InputError(f"{model}: knows its front-end; --frontend is for the weights of a .pth file alone")
        return bundle.load(model)
    try:
        return evar.from_audio_ntt(model, FrontendConfig.model_validate(frontend))
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(f"--frontend: {said}") from error


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
