"""Each family of the built-in corpus is decided by its own cue, and by no other."""

import csv
import itertools

import numpy as np
import pytest
import soundfile

from scaleaudio.data.synth import CLASSES, make_clip, synth, timbre_partials
from scaleaudio.errors import InputError

SEED = 5


def spectrum(wave_T):
    """Long-term spectrum, which knows nothing of time, in 256 bands and of one level."""
    power = np.abs(np.fft.rfft(wave_T / np.abs(wave_T).max())) ** 2
    return np.log(np.add.reduceat(power, np.linspace(0, len(power) - 1, 257).astype(int)[:-1]) + 1e-3)


def nearest_centroid_accuracy(features, labels, is_test):
    names = sorted(set(labels))
    labels = np.array(labels)
    centroids = np.stack([features[(labels == name) & ~is_test].mean(0) for name in names])
    distance = ((features[is_test][:, None] - centroids) ** 2).sum(-1)
    return float((np.array(names)[distance.argmin(1)] == labels[is_test]).mean())


def clips(family, number):
    turn = list(CLASSES).index(family)
    return [make_clip(turn + len(CLASSES) * n, SEED) for n in range(number)]


def test_the_corpus_is_the_same_each_time_and_another_with_another_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synth(f"{tmp_path}/{name}", 6, seed)
    contents = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*")) if path.suffix != ".md"]
        for name in "abc"
    }
    assert contents["a"] == contents["b"]
    assert all(x != y for x, y in zip(contents["a"], contents["c"], strict=True))


def test_clips_are_as_promised_and_listed(tmp_path):
    synth(f"{tmp_path}", 8, SEED)
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert len(rows) == 8
    for row in rows:
        info = soundfile.info(tmp_path / row["filename"])
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        assert 2 <= info.duration <= 6 and abs(info.duration - float(row["seconds"])) < 1e-3
        assert [column for column in CLASSES if row[column]] == [row["family"]]


def test_from_96_clips_on_each_class_is_in_both_splits():
    rows = [make_clip(number, SEED)[0] for number in range(96)]
    for family, classes in CLASSES.items():
        assert {(row[family], row["split"]) for row in rows if row["family"] == family} == {
            (name, split) for name in classes for split in ("train", "test")
        }


def test_the_splits_share_no_timbre_and_no_level():
    rows = [make_clip(number, SEED) for number in range(80)]
    by_split = {s: [(row, wave) for row, wave in rows if row["split"] == s] for s in ("train", "test")}
    groups = {s: {row["group"] for row, _ in some} for s, some in by_split.items()}
    assert not groups["train"] & groups["test"]
    level_db = {s: np.array([20 * np.log10(np.abs(w).max()) for _, w in some]) for s, some in by_split.items()}
    assert ((level_db["train"] > -24) & (level_db["train"] < -12)).all()
    assert ((level_db["test"] < -24) | (level_db["test"] > -12)).all()
    partials = [timbre_partials(s, n, SEED) for s, num in (("train", 16), ("test", 8)) for n in range(num)]
    assert min(np.abs(a - b).max() for i, a in enumerate(partials) for b in partials[:i]) > 0.01


@pytest.mark.parametrize("family", ["order", "glide"])
def test_the_spectrum_over_the_whole_clip_does_not_tell_what_time_decides(family):
    rows = clips(family, 120 if family == "order" else 60)
    features = np.stack([spectrum(wave) for _, wave in rows])
    is_test = np.array([row["split"] == "test" for row, _ in rows])
    accuracy = nearest_centroid_accuracy(features, [row[family] for row, _ in rows], is_test)
    chance = 1 / len(CLASSES[family])
    assert accuracy < chance + 3.5 * np.sqrt(chance * (1 - chance) / is_test.sum())


def test_the_spectrum_tells_the_note_though_timbre_and_level_are_new():
    rows = clips("note", 120)
    features = np.stack([spectrum(wave) for _, wave in rows])
    is_test = np.array([row["split"] == "test" for row, _ in rows])
    assert nearest_centroid_accuracy(features, [row["note"] for row, _ in rows], is_test) > 0.6


def test_an_order_is_the_order_of_its_events():
    for row, wave in clips("order", 36):
        edges = np.linspace(0, len(wave), 61).astype(int)
        kinds = []
        for part in (wave[a:b] for a, b in itertools.pairwise(edges)):
            power = np.abs(np.fft.rfft(part)) ** 2
            if np.abs(part).max() < 0.3 * np.abs(wave).max():
                continue
            hz = np.fft.rfftfreq(len(part), 1 / 16_000)
            flat = np.exp(np.log(power + 1e-12).mean()) / power.mean()
            kinds.append(
                "noise"
                if flat > 0.2
                else "low"
                if hz[power.argmax()] < 900 and power[hz < 400].sum() > 0.2 * power.sum()
                else "high"
            )
        order = [kind for i, kind in enumerate(kinds) if kinds.count(kind) > 2 and kind not in kinds[:i]]
        assert "-".join(order) == row["order"]


@pytest.mark.parametrize(("clips_", "seed", "word"), [(0, 0, "clips 0"), (4, -1, "seed -1")])
def test_impossible_requests_are_refused(tmp_path, clips_, seed, word):
    with pytest.raises(InputError, match=word):
        synth(str(tmp_path), clips_, seed)


def test_a_corpus_is_never_overwritten(tmp_path):
    synth(str(tmp_path), 1, SEED)
    with pytest.raises(InputError, match="holds a corpus already"):
        synth(str(tmp_path), 1, SEED)
