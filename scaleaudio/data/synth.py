"""The built-in corpus: labelled clips whose class is decided by one cue alone, made from a seed, nothing downloaded.

Four families, each with its label column (empty in the rows of the others):

    note    where in frequency: 12 notes two semitones apart; timbre, level and rhythm vary
    order   when: the same three events in each clip, in one of their 6 orders
    glide   both: up or down through the same frequencies; a clip and its time reversal have equal spectra
    timbre  neither: odd or all partials, two noise colours, slow or fast tremolo, at any pitch

The test split has other timbres (group) and other levels than the training split.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import track

from scaleaudio.data import storage
from scaleaudio.errors import InputError

Signal = NDArray[np.float64]
Random = np.random.Generator

SAMPLE_RATE_HZ = 16_000
COLUMNS = ["filename", "split", "group", "family", "note", "order", "glide", "timbre", "seconds", "licence"]
EVENTS = ("low", "noise", "high")
CLASSES = {
    "note": [f"n{number:02d}" for number in range(12)],
    "order": ["-".join(order) for order in itertools.permutations(EVENTS)],
    "glide": ["up", "down"],
    "timbre": ["odd", "full", "white", "red", "slow", "fast"],
}
NUM_TIMBRES = {"train": 16, "test": 8}
LEVELS_DB = {"train": ((-24.0, -12.0),), "test": ((-36.0, -24.0), (-12.0, -3.0))}
TEST_OF_TEN = (1, 4, 7)
HIGHEST_HZ = 7500.0


def synth(out: str, num_clips: int, seed: int, *, progress: bool = False) -> None:
    """Writes audio/NNNNNN.flac (16 kHz, 2 to 6 s), labels.csv and SOURCE.md below `out`.

    Clip n depends on (seed, n) alone. Families and classes take turns, and 3 of 10 clips of a class are its test split:
    from 96 clips on each class has both.

    Raises:
        InputError: `num_clips` is below 1, `seed` below 0, or `out` holds a corpus already.
    """
    if num_clips < 1:
        raise InputError(f"clips {num_clips}: expected 1 or more (96 or more for a test split of every class)")
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    table = storage.join(out, "labels.csv")
    if storage.exists(table):
        raise InputError(f'"{out}" holds a corpus already. Use it, remove it, or give another folder')
    rows = []
    for number in track(range(num_clips), "synth", disable=not progress):
        row, wave_T = make_clip(number, seed)
        buffer = io.BytesIO()
        soundfile.write(buffer, wave_T, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        storage.write_atomic(storage.join(out, row["filename"]), buffer.getvalue())
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    source = f"# Synthetic corpus\nMade by `scaleaudio synth --clips {num_clips} --seed {seed}`. Licence: CC0-1.0.\n"
    storage.write_atomic(storage.join(out, "SOURCE.md"), source.encode())
    storage.write_atomic(table, text.getvalue().encode())


def make_clip(number: int, seed: int) -> tuple[dict[str, str], Signal]:
    """The row of labels.csv and the waveform, in [-1, 1], of clip `number`."""
    family = list(CLASSES)[number % len(CLASSES)]
    classes = CLASSES[family]
    turn, which = divmod(number // len(CLASSES), len(classes))
    split = "test" if turn % 10 in TEST_OF_TEN else "train"
    random = np.random.default_rng([seed, number])
    group = int(random.integers(NUM_TIMBRES[split]))
    length = int(random.uniform(2.0, 6.0) * SAMPLE_RATE_HZ)
    partials = timbre_partials(split, group, seed)
    wave_T = _FAMILIES[family](which, length, partials, random)
    wave_T = _at_level(wave_T + _floor(wave_T, random), split, random)
    row = {"filename": f"audio/{number:06d}.flac", "split": split, "group": f"{split}{group:02d}", "family": family}
    row |= {family: classes[which], "seconds": f"{length / SAMPLE_RATE_HZ:.3f}", "licence": "CC0-1.0"}
    return row, wave_T


def timbre_partials(split: str, group: int, seed: int) -> Signal:
    """Amplitudes of the first 10 partials of one timbre; those of the two splits have nothing in common."""
    random = np.random.default_rng([seed, group, *split.encode()])
    rank = np.arange(1, 11)
    even = np.where(rank % 2 == 0, random.uniform(0.2, 1.0), 1.0)
    return np.asarray(rank ** -random.uniform(0.5, 2.0) * even * random.uniform(0.4, 1.0, len(rank)))


def _note(which: int, length: int, partials: Signal, random: Random) -> Signal:
    """One note, struck again in an irregular rhythm."""
    hz = 220.0 * 2 ** (which / 6)
    return _in_rhythm(length, random, lambda num: _tone(np.full(num, hz), partials) * _decay(num, random))


def _order(which: int, length: int, partials: Signal, random: Random) -> Signal:
    """The three events one after the other, all of one duration, with pauses of random length."""
    duration = int(length * random.uniform(0.2, 0.26))
    pauses = random.dirichlet(np.ones(4)) * (length - 3 * duration)
    wave_T = np.zeros(length)
    start = 0.0
    for name, pause in zip(CLASSES["order"][which].split("-"), pauses, strict=False):
        start += pause
        wave_T[int(start) : int(start) + duration] = _event(name, duration, partials, random)
        start += duration
    return wave_T


def _event(name: str, num: int, partials: Signal, random: Random) -> Signal:
    if name == "noise":
        return _unit(random.standard_normal(num)) * _hump(num) * random.uniform(0.7, 1.0)
    hz = {"low": 160.0, "high": 1100.0}[name] * random.uniform(0.94, 1.06)
    return _unit(_tone(np.full(num, hz), partials)) * _hump(num) * random.uniform(0.7, 1.0)


def _glide(which: int, length: int, partials: Signal, random: Random) -> Signal:
    """Glides through about an octave; the envelope is symmetric in time, so that only the direction tells."""
    low = random.uniform(150.0, 700.0)
    high = low * 2 ** random.uniform(0.7, 1.3)

    def glide(num: int) -> Signal:
        up: Signal = np.geomspace(low, high, num).astype(np.float64)
        return _tone(up if which == 0 else up[::-1], partials) * _hump(num)

    return _in_rhythm(length, random, glide)


def _timbre(which: int, length: int, _: Signal, random: Random) -> Signal:
    """One kind of sound at any pitch: the split's timbres play no part here."""
    name = CLASSES["timbre"][which]
    rank = np.arange(1, 11)
    full = np.asarray(rank ** -random.uniform(0.8, 1.2), dtype=np.float64)
    hz = random.uniform(150.0, 700.0)
    rate_hz = random.uniform(2.5, 4.5) if name == "slow" else random.uniform(14.0, 24.0)

    def sound(num: int) -> Signal:
        if name in ("white", "red"):
            return _noise(num, 0.0 if name == "white" else 1.0, random) * _hump(num)
        partials = full * (rank % 2) if name == "odd" else full
        wave_T = _tone(np.full(num, hz), partials) * _hump(num)
        tremolo = 0.5 + 0.5 * np.sin(2 * np.pi * rate_hz * np.arange(num) / SAMPLE_RATE_HZ)
        return wave_T * tremolo if name in ("slow", "fast") else wave_T

    return _in_rhythm(length, random, sound)


_FAMILIES = {"note": _note, "order": _order, "glide": _glide, "timbre": _timbre}


def _in_rhythm(length: int, random: Random, make: Callable[[int], Signal]) -> Signal:
    """`make` repeated over the clip: sounds of 0.5 to 1.2 s with pauses of up to 0.3 s."""
    wave_T = np.zeros(length)
    start = int(random.uniform(0.0, 0.3) * SAMPLE_RATE_HZ)
    while (num := int(random.uniform(0.5, 1.2) * SAMPLE_RATE_HZ)) and start + num <= length:
        wave_T[start : start + num] = _unit(make(num))
        start += num + int(random.uniform(0.0, 0.3) * SAMPLE_RATE_HZ)
    return wave_T


def _tone(hz_T: Signal, partials: Signal) -> Signal:
    """Partials over a changing fundamental; those above the highest frequency are left out."""
    phase_T = 2 * np.pi * np.cumsum(hz_T) / SAMPLE_RATE_HZ
    used = partials[: max(int(HIGHEST_HZ / hz_T.max()), 1)]
    return np.asarray(used @ np.sin(np.outer(np.arange(1, len(used) + 1), phase_T)))


def _noise(num: int, exponent: float, random: Random) -> Signal:
    """Noise whose amplitude falls with frequency to the power of `exponent`: 0 white, 1 red."""
    spectrum = np.fft.rfft(random.standard_normal(num))
    hz = np.maximum(np.fft.rfftfreq(num, 1 / SAMPLE_RATE_HZ), 60.0)
    return np.asarray(np.fft.irfft(spectrum / hz**exponent, num))


def _decay(num: int, random: Random) -> Signal:
    seconds = np.arange(num) / SAMPLE_RATE_HZ
    attack, fall = random.uniform(0.005, 0.05), random.uniform(0.2, 1.0)
    return np.asarray(np.minimum(seconds / attack, 1.0) * np.exp(-seconds / fall) * _hump(num, 0.02))


def _hump(num: int, edge_seconds: float = 0.04) -> Signal:
    """1, with raised-cosine edges."""
    edge = min(int(edge_seconds * SAMPLE_RATE_HZ), num // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(edge) / edge)
    return np.concatenate([ramp, np.ones(num - 2 * edge), ramp[::-1]])


def _unit(wave_T: Signal) -> Signal:
    return np.asarray(wave_T / np.abs(wave_T).max())


def _floor(wave_T: Signal, random: Random) -> Signal:
    """The quiet noise of a room, 35 to 55 dB below the sound."""
    quiet = 10 ** (random.uniform(-55.0, -35.0) / 20)
    return random.standard_normal(len(wave_T)) * quiet / 3


def _at_level(wave_T: Signal, split: str, random: Random) -> Signal:
    ranges = LEVELS_DB[split]
    low, high = ranges[int(random.integers(len(ranges)))]
    return _unit(wave_T) * 10 ** (random.uniform(low, high) / 20)
