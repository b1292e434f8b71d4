"""Displacements: changes of position only, batched, with parameters of their own for each clip.

Every structured displacement is a map along one axis that says for each place where its content comes from. A family
is a list of such maps, all of one strength; a draw picks a map and where its window starts. So shifts, flips and
permutations of either axis share one gather, and their strength is read off the map itself.

*Strength* is the root mean square, over the cells of the spectrogram, of displacement / axis length. A shift moves
everything by as much as that; a flip or a permutation has a fixed motion, so it acts on a window sized to the strength.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleaudio.views import Axis

Family = Literal[
    "frequency_shift",
    "frequency_flip",
    "band_permutation",
    "time_shift",
    "time_reversal",
    "segment_permutation",
    "smooth_field",
]
Fill = Literal["floor", "wrap"]

FREQUENCY_FAMILIES: tuple[Family, ...] = ("frequency_shift", "frequency_flip", "band_permutation")
TIME_FAMILIES: tuple[Family, ...] = ("time_shift", "time_reversal", "segment_permutation")

_SHIFTS = ("frequency_shift", "time_shift")
_CPU = torch.device("cpu")
FLOOR = -1  # source of a place whose content is the clip's minimum
_NUM_SEGMENTS = {"band_permutation": (4,), "segment_permutation": (2, 3, 4, 5, 6)}
_MAX_ROWS = 64
_MAX_OVERSHOOT = 1.25  # segments are whole places, so a permutation can miss the strength by a little
_LATTICE = 4
_RETURN_STEPS = 12


@dataclass(frozen=True)
class Moves:
    """The maps of some families along one axis, all of (at least) one strength.

    Attributes:
        source_RN: row, place in the window -> place in the window that it takes its content from, or FLOOR.
        width_R: length of each row's window; outside it nothing moves.
        first_Q, count_Q: where the rows of each family begin, and how many there are; all families of the first
            strength, then all of the next.
    """

    source_RN: Tensor
    width_R: Tensor
    first_Q: Tensor
    count_Q: Tensor

    def draw(self, family_B: Tensor, uniform_B2: Tensor) -> Tensor:
        """One map for each clip: (B, N) indices into the axis, or FLOOR.

        Args:
            family_B: index into the families; outside their range the clip is left alone.
            uniform_B2: in [0, 1): which row of the family, and where its window starts.
        """
        length = self.source_RN.shape[1]
        place_N = torch.arange(length, device=family_B.device)
        chosen_B = family_B.clamp(0, len(self.first_Q) - 1)
        row_B = self.first_Q[chosen_B] + (uniform_B2[:, 0] * self.count_Q[chosen_B]).long()
        width_B1 = self.width_R[row_B][:, None]
        start_B1 = (uniform_B2[:, 1:] * (length - width_B1 + 1)).long()
        inner_BN = place_N - start_B1
        source_BN = self.source_RN[row_B].gather(1, inner_BN.clamp(0, length - 1))
        source_BN = torch.where(source_BN == FLOOR, FLOOR, source_BN + start_B1)
        moved_BN = (inner_BN >= 0) & (inner_BN < width_B1) & (family_B == chosen_B)[:, None]
        return torch.where(moved_BN, source_BN, place_N)


@lru_cache(maxsize=256)
def moves(
    families: tuple[Family, ...],
    length: int,
    strengths: tuple[float, ...],
    fill: Fill,
    multiple: int = 1,
    device: torch.device = _CPU,
) -> Moves:
    """Maps of `families` along an axis of `length` places whose strength is the least that is not below each strength.

    Shifts go by multiples of `multiple` places.

    Raises:
        ValueError: when a family cannot be displaced that far.
    """
    rows = [_rows(family, length, strength, fill, multiple) for strength in strengths for family in families]
    for index, found in enumerate(rows):
        if not found:
            strength, family = strengths[index // len(families)], families[index % len(families)]
            by = f" by multiples of {multiple}" if multiple > 1 and family in _SHIFTS else ""
            raise ValueError(
                f"strength {strength:g}: {family} cannot move patterns that far along an axis of {length} places{by}. "
                f"Lower the strength or leave {family} out of negatives.families."
            )
    flat = [row for found in rows for row in found]
    source_RN = torch.full((len(flat), length), FLOOR)
    for index, row in enumerate(flat):
        source_RN[index, : len(row)] = torch.tensor(row)
    counts = [len(found) for found in rows]
    firsts = [sum(counts[:index]) for index in range(len(counts))]
    widths = [len(row) for row in flat]
    return Moves(*(t.to(device) for t in (source_RN, *(torch.tensor(numbers) for numbers in (widths, firsts, counts)))))


def _rows(family: Family, length: int, strength: float, fill: Fill, multiple: int) -> list[list[int]]:
    if family in _SHIFTS:
        return _shifts(length, strength, fill, multiple)
    if family in ("frequency_flip", "time_reversal"):
        return _reversals(length, strength)
    return _permutations(length, strength, _NUM_SEGMENTS[family])


def _shifts(length: int, strength: float, fill: Fill, multiple: int) -> list[list[int]]:
    """Everything moved up, and everything moved down; a shift that wraps is on a circle, so half of it is the most."""
    step = multiple * max(1, math.ceil(strength * length / multiple - 1e-6))
    if step > (length // 2 if fill == "wrap" else length - 1):
        return []
    places = [[place - step for place in range(length)], [place + step for place in range(length)]]
    if fill == "wrap":
        return [[place % length for place in row] for row in places]
    return [[place if 0 <= place < length else FLOOR for place in row] for row in places]


def _reversals(length: int, strength: float) -> list[list[int]]:
    """The shortest window that reaches the strength, reversed."""
    for width in range(2, length + 1):
        row = list(range(width))[::-1]
        if rms_displacement(row, length) >= strength - 1e-6:
            return [row]
    return []


def _permutations(length: int, strength: float, num_segments: tuple[int, ...]) -> list[list[int]]:
    """Equal segments in another order: up to 64 orders that reach the strength with little overshoot, or the nearest.

    Segments of q places in an order whose positions differ by d have strength sqrt(num q^3 mean(d^2) / length^3).
    """
    rows = []
    for num in num_segments:
        for order in itertools.permutations(range(num)):
            mean_square = sum((place - source) ** 2 for place, source in enumerate(order)) / num
            if mean_square > 0:
                size = math.ceil((strength**2 * length**3 / (num * mean_square)) ** (1 / 3) - 1e-6)
                if max(1, size) * num <= length:
                    rows.append([source * max(1, size) + k for source in order for k in range(max(1, size))])
    rows.sort(key=lambda row: rms_displacement(row, length))
    close = [row for row in rows if rms_displacement(row, length) <= _MAX_OVERSHOOT * strength]
    return close[:_MAX_ROWS] or rows[:1]


def rms_displacement(row: list[int], length: int) -> float:
    """Strength of a map whose window is `row`, on an axis of `length` places; cells filled with FLOOR do not count."""
    motions = [source - place for place, source in enumerate(row) if source != FLOOR]
    num_cells = length - row.count(FLOOR)
    return math.sqrt(sum(motion**2 for motion in motions) / num_cells) / length


def displace(mel_BFS: Tensor, source_BF: Tensor, source_BS: Tensor) -> Tensor:
    """Each spectrogram with the content of every cell taken from where its maps say.

    Args:
        mel_BFS: normalised log-mel.
        source_BF: frequency map, indices into F or FLOOR.
        source_BS: time map, indices into S or FLOOR.

    Returns:
        A new tensor of the same shape and dtype; FLOOR cells hold the clip's minimum.
    """
    row_B11 = torch.arange(len(mel_BFS), device=mel_BFS.device)[:, None, None]
    moved_BFS = mel_BFS[row_B11, source_BF.clamp(min=0)[:, :, None], source_BS.clamp(min=0)[:, None, :]]
    empty_BFS = (source_BF == FLOOR)[:, :, None] | (source_BS == FLOOR)[:, None, :]
    return torch.where(empty_BFS, mel_BFS.amin(dim=(1, 2), keepdim=True), moved_BFS)


def returned(source_BN: Tensor) -> Tensor:
    """The maps followed by their way back: every place holds its own content again, or FLOOR where that was lost."""
    length = source_BN.shape[1]
    kept_BN = torch.zeros(len(source_BN), length + 1, dtype=torch.bool, device=source_BN.device)
    kept_BN.scatter_(1, torch.where(source_BN == FLOOR, length, source_BN), True)
    return torch.where(kept_BN[:, :length], torch.arange(length, device=source_BN.device), FLOOR)


def motion(source_BN: Tensor) -> Tensor:
    """How far each map moves its content on average (B), in axis lengths; up and later are positive."""
    length = source_BN.shape[1]
    kept_BN = source_BN != FLOOR
    far_BN = (torch.arange(length, device=source_BN.device) - source_BN) * kept_BN
    return far_BN.sum(dim=1) / (kept_BN.sum(dim=1) * length)


def smooth_field(lattice_B2HW: Tensor, size: tuple[int, int], strength_B2: Tensor) -> Tensor:
    """A smooth displacement field (B, 2, F, S) on the shell of the given strength, in lengths of the axes.

    Args:
        lattice_B2HW: a coarse lattice of numbers around 0, frequency first, then time; only their ratios matter.
        size: F and S.
        strength_B2: the field's root mean square along frequency and along time.
    """
    field = F.interpolate(lattice_B2HW, size=size, mode="bicubic", align_corners=True)
    rms = field.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return field / rms * strength_B2[:, :, None, None]


def way_back(field_B2FS: Tensor) -> Tensor:
    """The field that undoes a warp: g with g(x) + f(x + g(x)) = 0, where f does not fold.

    Found by iterating g <- -f(x + g), halfway each time, as f may be steep.
    """
    back = -field_B2FS
    for _ in range(_RETURN_STEPS):
        back = 0.5 * (back - _sampled(field_B2FS, back))
    return back


def warp(mel_BFS: Tensor, field_B2FS: Tensor) -> Tensor:
    """Each spectrogram with the content of every cell taken from as far away as the field says (bilinear)."""
    return _sampled(mel_BFS[:, None], field_B2FS).squeeze(1)


def _sampled(map_BCFS: Tensor, field_B2FS: Tensor) -> Tensor:
    identity = torch.eye(2, 3, device=map_BCFS.device, dtype=map_BCFS.dtype).expand(len(map_BCFS), 2, 3)
    grid = F.affine_grid(identity, list(map_BCFS.shape), align_corners=False)
    offset = 2 * field_B2FS.flip(1).permute(0, 2, 3, 1)  # grid_sample counts (x, y) in half axis lengths
    return F.grid_sample(map_BCFS, grid + offset, mode="bilinear", padding_mode="border", align_corners=False)


def axis_of(family: Family) -> Axis | None:
    """The axis that a family moves along; None for both."""
    if family in FREQUENCY_FAMILIES:
        return "frequency"
    return "time" if family in TIME_FAMILIES else None


def random_lattice_size() -> tuple[int, int, int]:
    """Shape of the coarse lattice of a smooth field: two axes, then its own height and width."""
    return 2, _LATTICE, _LATTICE
