"""What a sensitivity curve is measured at: every motion of either axis, from none to as far as it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scaleaudio.negatives.displace import (
    FLOOR,
    Family,
    Fill,
    displace,
    moves,
    random_lattice_size,
    returned,
    smooth_field,
    warp,
    way_back,
)
from scaleaudio.types import keyed_seed
from scaleaudio.views import Axis

SHIFTS = (1, 2, 3, 4, 6, 8)  # in places; besides multiples of the stride and eighths of half the axis
STRENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
MOTIONS: dict[Axis, dict[str, tuple[Family, Fill]]] = {
    "frequency": {
        "shift, floor": ("frequency_shift", "floor"),
        "shift, wrap": ("frequency_shift", "wrap"),
        "flip": ("frequency_flip", "floor"),
        "permutation": ("band_permutation", "floor"),
        "smooth field": ("smooth_field", "floor"),
    },
    "time": {
        "shift, floor": ("time_shift", "floor"),
        "shift, wrap": ("time_shift", "wrap"),
        "reversal": ("time_reversal", "floor"),
        "permutation": ("segment_permutation", "floor"),
        "smooth field": ("smooth_field", "floor"),
    },
}
FIELD_REACHES = 0.3
FIELD_RETURNS = 0.2  # beyond it the field folds, and what lies in a fold has no way back


class Trial(NamedTuple):
    """One point of a curve, to be measured."""

    axis: Axis
    motion: str
    places: int | None
    strength: float


def trials(lengths: Mapping[Axis, int], stride: int | None) -> Iterator[Trial]:
    """Every curve from displacement 0 up to half the axis, or to as far as its motion reaches."""
    for axis, motions in MOTIONS.items():
        length = lengths[axis]
        half = length // 2
        multiples = range(stride, half + 1, stride) if stride else ()
        eighths = (round(half * part / 8) for part in range(1, 9))
        shifts = sorted({0, *(step for step in (*SHIFTS, *multiples, *eighths) if 1 <= step <= half)})
        for motion, (family, fill) in motions.items():
            if family.endswith("shift"):
                yield from (Trial(axis, motion, step, step / length) for step in shifts)
                continue
            yield Trial(axis, motion, None, 0.0)
            if motion == "smooth field":
                yield from (Trial(axis, motion, None, strength) for strength in STRENGTHS if strength <= FIELD_REACHES)
                continue
            seen: list[Tensor] = []
            for strength in STRENGTHS:
                try:
                    rows = moves((family,), length, (strength,), fill).source_RN
                except ValueError:  # further than this motion reaches
                    break
                if not any(torch.equal(rows, before) for before in seen):
                    yield Trial(axis, motion, None, strength)
                seen.append(rows)


class Moved(NamedTuple):
    """The clips displaced, and displaced and moved back, with the strength that was reached.

    `back_NFS` is None where there is no way back; `loses_nothing` says that it would be the clips themselves.
    """

    there_NFS: Tensor
    back_NFS: Tensor | None
    loses_nothing: bool
    strength: float


def displaced(trial: Trial, mel_NFS: Tensor, seed: int) -> Moved:
    """One displacement of all clips; direction, window and lattice are the clip's own, the same at every distance."""
    num, device = len(mel_NFS), mel_NFS.device
    if trial.strength == 0:
        return Moved(mel_NFS.clone(), None, True, 0.0)
    generator = torch.Generator().manual_seed(keyed_seed(seed, trial.axis, trial.motion))
    family, fill = MOTIONS[trial.axis][trial.motion]
    if family == "smooth_field":
        lattice = 2 * torch.rand(num, *random_lattice_size(), generator=generator).to(device) - 1
        strengths = [trial.strength, 0.0] if trial.axis == "frequency" else [0.0, trial.strength]
        field = smooth_field(
            lattice, (mel_NFS.shape[1], mel_NFS.shape[2]), torch.tensor([strengths], device=device).expand(num, 2)
        )
        there_NFS = warp(mel_NFS, field)
        returns = trial.strength <= FIELD_RETURNS
        return Moved(there_NFS, warp(there_NFS, way_back(field)) if returns else None, False, trial.strength)
    length = mel_NFS.shape[1 if trial.axis == "frequency" else 2]
    uniform_N2 = torch.rand(num, 2, generator=generator)
    table = moves((family,), length, (trial.strength,), fill)
    source_NP = table.draw(torch.zeros(num, dtype=torch.long), uniform_N2).to(device)
    back_NP = returned(source_NP)
    return Moved(
        _along(trial.axis, mel_NFS, source_NP),
        _along(trial.axis, mel_NFS, back_NP),
        not bool((back_NP == FLOOR).any()),
        trial.strength if trial.places is not None else _rms(source_NP),
    )


def _along(axis: Axis, mel_NFS: Tensor, source_NP: Tensor) -> Tensor:
    other = torch.arange(mel_NFS.shape[2 if axis == "frequency" else 1], device=mel_NFS.device)
    still = other.expand(len(mel_NFS), len(other))
    return displace(mel_NFS, source_NP, still) if axis == "frequency" else displace(mel_NFS, still, source_NP)


def _rms(source_NP: Tensor) -> float:
    motion_NP = source_NP - torch.arange(source_NP.shape[1], device=source_NP.device)
    return float(motion_NP.double().square().mean(dim=1).sqrt().mean()) / source_NP.shape[1]
