"""Whether a checkpoint's steps are counted in the stream that is read now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaleaudio.errors import InputError


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any], step: int) -> None:
    """Refuses to go on at `step` in another stream than the one that a checkpoint was made with.

    The mixture may change from `step` on.

    Raises:
        InputError: naming each key that differs, with both values.
    """
    before, now = _past(saved, step), _past(current, step)
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {before.get(key)} and is now {now.get(key)}" for key in keys)
        raise InputError(
            f"the checkpoint counts its steps in another stream: {changes}. Set them back, or start anew with --fresh."
        )


def _past(fingerprint: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The fingerprint as far as the steps before `step` depend on it; what older checkpoints lack was the default."""
    past = {"crops_per_clip": 1, "short_clips": "pad", **fingerprint}
    index, phases = past.pop("index", None), past.pop("mixture", None)
    for from_step, sources in phases or [[0, [[0, index, 1]]]]:
        if [source[0] for source in sources] == [0] and from_step == 0:
            past["index"] = sources[0][1]
        elif from_step < step:
            past[f"mixture from step {from_step}"] = {f"source {at}, {index}": weight for at, index, weight in sources}
    return past
