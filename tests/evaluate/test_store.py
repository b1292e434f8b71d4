"""Embeddings on disk: whose they are, what a damaged or shared folder does, and what is never kept."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import config
from torch import Tensor, nn

from scaleaudio import bundle
from scaleaudio.embedder import AudioEncoder
from scaleaudio.evaluate import MelStatistics, store
from scaleaudio.evaluate.embeddings import Embedded, embed_files
from scaleaudio.evaluate.stages import Staged
from scaleaudio.evaluate.store import embed_stored, identity


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = []
    for place in range(5):
        noise = np.random.default_rng(place).uniform(-0.1, 0.1, 4000 + 100 * place)
        soundfile.write(tmp_path / f"{place}.wav", noise, 16_000)
        made.append(tmp_path / f"{place}.wav")
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are embedded rather than read from the store, once for each group of models."""
    names: list[str] = []

    def spied(models: dict[str, nn.Module], some: list[Path], **options: object) -> Embedded:
        names.extend(file.name for file in some)
        return embed_files(models, some, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "embed_files", spied)
    return names


def test_a_second_time_nothing_is_embedded_and_the_bits_are_the_same(
    files: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    models = {"own": bundle.untrained(config()), "mel": MelStatistics()}
    first = embed_stored(models, files, tmp_path / "store")
    assert decoded == [file.name for file in files]
    again = embed_stored(models, files, tmp_path / "store")
    assert len(decoded) == 5
    assert all(np.array_equal(first.by_model[name], again.by_model[name]) for name in models)


def test_a_renamed_file_is_known_and_a_changed_one_is_not(
    files: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    models = {"mel": MelStatistics()}
    embed_stored(models, files, tmp_path / "store")
    decoded.clear()
    files[0] = files[0].rename(tmp_path / "renamed.wav")
    shutil.copy(files[1], tmp_path / "copy.wav")
    soundfile.write(files[2], np.zeros(5000), 16_000)
    found = embed_stored(models, [*files, tmp_path / "copy.wav"], tmp_path / "store")
    assert decoded == ["2.wav"]
    assert np.array_equal(found.by_model["mel"][1], found.by_model["mel"][5])


def test_what_could_make_another_embedding_is_another_identity() -> None:
    model = bundle.untrained(config())
    known = [identity(model, 0.0), identity(model, 0.96), identity(Staged(model), 0.0), identity(MelStatistics(), 0.0)]
    with torch.no_grad():
        next(model.encoder.parameters()).view(-1)[0] += 1e-6
    known += [identity(model, 0.0), identity(bundle.untrained(config({"seed": 1})), 0.0)]
    assert None not in known and len(set(known)) == len(known)
    assert identity(bundle.untrained(config()), 0.0) == known[0]


@pytest.mark.parametrize("package", ["torch", "torchaudio", "scipy", "soundfile", "timm"])
def test_another_version_of_what_decodes_resamples_or_embeds_is_another_identity(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = identity(MelStatistics(), 0.0)
    monkeypatch.setattr(store, "version", lambda name: "99" if name == package else version(name))
    assert identity(MelStatistics(), 0.0) != known


def test_another_libsndfile_under_the_same_soundfile_is_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    known = identity(MelStatistics(), 0.0)
    monkeypatch.setattr(soundfile, "__libsndfile_version__", "99")
    assert identity(MelStatistics(), 0.0) != known


def test_without_timm_and_torchcodec_there_is_an_identity_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(name: str) -> str:
        if name in ("timm", "torchcodec"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(store, "version", fewer)
    assert identity(MelStatistics(), 0.0) is not None


def test_a_model_whose_code_decides_is_embedded_each_time(
    files: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    class Mean(nn.Module):
        sample_rate_hz, embedding_dim = 16_000, 1

        def forward(self, wave_BT: Tensor) -> Tensor:
            return wave_BT.mean(dim=1, keepdim=True)

    for _ in range(2):
        embed_stored({"mean": Mean()}, files, tmp_path / "store")
    assert len(decoded) == 10 and not (tmp_path / "store").exists()


def test_code_around_an_encoder_or_below_its_class_is_code_of_ones_own() -> None:
    class Louder(AudioEncoder):
        def forward(self, wave_BT: Tensor, *, sample_rate_hz: int | None = None) -> Tensor:
            return 2 * super().forward(wave_BT)

    class Around(nn.Module):
        def __init__(self, encoder: AudioEncoder) -> None:
            super().__init__()
            self.encoder, self.config = encoder, encoder.config
            self.sample_rate_hz, self.embedding_dim = encoder.sample_rate_hz, encoder.embedding_dim

    encoder = bundle.untrained(config())
    assert identity(encoder, 0.0) is not None
    assert identity(Louder(encoder.config, encoder.frontend, encoder.encoder), 0.0) is None
    assert identity(Around(encoder), 0.0) is None


def test_damaged_parts_count_as_none_and_whole_ones_stay(
    files: list[Path], tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART_FILES", 2)
    models = {"mel": MelStatistics()}
    first = embed_stored(models, files, tmp_path / "store")
    parts = sorted((tmp_path / "store").rglob("*.safetensors"))
    assert len(parts) == 3
    parts[0].write_bytes(parts[0].read_bytes()[:-3])
    flipped = bytearray(parts[1].read_bytes())
    flipped[-1] ^= 1
    parts[1].write_bytes(flipped)
    decoded.clear()
    again = embed_stored(models, files, tmp_path / "store")
    assert 3 <= len(decoded) <= 4  # two parts, one of them maybe the last with a single file
    assert np.array_equal(first.by_model["mel"], again.by_model["mel"])


def test_a_run_that_is_stopped_goes_on_after_its_last_whole_part(
    files: list[Path], tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART_FILES", 2)
    through = store.embed_files

    def stopped(models: dict[str, nn.Module], some: list[Path], **options: object) -> Embedded:
        if files[4] in some:
            raise KeyboardInterrupt
        return through(models, some, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "embed_files", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed_stored({"mel": MelStatistics()}, files, tmp_path / "store")
    monkeypatch.setattr(store, "embed_files", through)
    decoded.clear()
    embed_stored({"mel": MelStatistics()}, files, tmp_path / "store")
    assert decoded == ["4.wav"]


def test_unusable_files_are_named_each_time_and_never_kept(files: list[Path], tmp_path: Path) -> None:
    files[1].write_bytes(b"")
    files[3].unlink()
    for _ in range(2):
        found = embed_stored({"mel": MelStatistics()}, files, tmp_path / "store")
        assert {place: reject.key for place, reject in found.rejects.items()} == {1: "1.wav", 3: "3.wav"}
        assert np.isnan(found.by_model["mel"][[1, 3]]).all() and np.isfinite(found.by_model["mel"][[0, 2, 4]]).all()
