"""`scaleaudio export`: a trained encoder as a folder that says what it is.

OUT/config.json, model.safetensors   what `scaleaudio.load` reads: torch and torchaudio are enough
    README.md                        the model card
"""

from __future__ import annotations

import os
from pathlib import Path

from scaleaudio import bundle
from scaleaudio.export.card import CardNotes, model_card


def export(model: str, out: str | Path, notes: CardNotes | None = None) -> Path:
    """Writes the encoder of `model` to the folder `out`, and gives the folder.

    Args:
        model: a run folder, a checkpoint or an exported folder.
        out: a folder; what an earlier export left there is replaced.
        notes: what the card says beside what the run knows of itself.

    Raises:
        InputError: no such model, scores of another model, or `out` is a run folder or checkpoint.
    """
    encoder = bundle.load(model)
    card = model_card(encoder, notes or CardNotes(), name=str(encoder.origin.get("name") or Path(model).name))
    folder = bundle.save(encoder, out)
    partial = folder / "README.md.partial"
    partial.write_text(card, encoding="utf-8")
    os.replace(partial, folder / "README.md")
    return folder
