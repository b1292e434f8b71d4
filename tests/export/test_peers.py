"""The peers' own programs on an exported encoder, in environments of their own; skipped where those cannot be made."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import AUDIO_NTT, config

from scaleaudio import bundle
from scaleaudio.embedder import untrained
from scaleaudio.export.folder import export

pytestmark = pytest.mark.slow

# What X-ARES 0.1.3 needs beside what is here; nnAudio is what EVAR makes its spectrograms with.
XARES = """
xares==0.1.3 jiwer==4.0.0 lightning-utilities==0.15.3 loguru==0.7.3 pytorch-ignite==0.5.5 RapidFuzz==3.14.6
tokenizers==0.23.3 torchmetrics==1.9.0 transformers==5.24.0 nnAudio==0.3.4
"""

# HEAR's validator wants TensorFlow beside it, whatever it validates.
HEAR = """
hearvalidator==2021.0.2 tensorflow-cpu==2.21.0 astunparse==1.6.3 gast==0.7.0 google-pasta==0.2.0 h5py==3.14.0
keras==3.15.1 libclang==18.1.1 namex==0.1.0 opt_einsum==3.4.0 optree==0.20.0 termcolor==3.3.0 wheel==0.48.0
"""

# torchaudio 2.9 and later read files by FFmpeg alone; libsndfile reads these just as well.
RUN_XARES = """
import runpy, sys
import soundfile, torch, torchaudio
def load(path):
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(wave.T), rate
torchaudio.load = load
sys.argv = ["xares.run", "encoder/xares_encoder.py", "task.py", "--max-jobs", "0"]
runpy.run_module("xares.run", run_name="__main__")
"""

TASK = """
from xares.task import TaskConfig
def pitch_config(encoder):
    return TaskConfig(
        name="pitch", encoder=encoder, env_root="env", private=False, eval_weight=8, batch_size_encode=4,
        label_processor=lambda label: int(label["pitch"] == "high"), epochs=10, learning_rate=0.01, output_dim=2,
    )
"""


def environment(folder: Path, packages: str) -> str:
    """An interpreter that sees the packages of this one, and others."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    paths = [sysconfig.get_paths()["purelib"], str(Path(bundle.__file__).parents[1])]
    (site / "ours.pth").write_text("\n".join(paths) + "\n")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    made = subprocess.run([*pip, *packages.split()], capture_output=True, text=True, timeout=280)
    if made.returncode:
        pytest.skip(f"the peer's packages cannot be installed: {made.stderr.strip().splitlines()[-1][:200]}")
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return environment(tmp_path_factory.mktemp("peers") / "xares", XARES)


@pytest.fixture(scope="module")
def hear_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return environment(tmp_path_factory.mktemp("peers") / "hear", HEAR)


def run(python: str, folder: Path, code: str) -> str:
    ran = subprocess.run([python, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout


def pitch_tar(path: Path, numbers: range) -> None:
    """Low and high tones in turn, as X-ARES lays a clip out: KEY.flac and KEY.json."""
    random = np.random.default_rng(numbers.start)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            pitch, base_hz = (("low", 300), ("high", 3000))[number % 2]
            time_T = np.arange(12_000 + 400 * (number % 3)) / 16_000
            tone_T = 0.3 * np.sin(2 * np.pi * base_hz * (1 + number / 200) * time_T)
            sound = io.BytesIO()
            soundfile.write(sound, tone_T + 0.05 * random.standard_normal(len(time_T)), 16_000, format="FLAC")
            for suffix, data in (("flac", sound.getvalue()), ("json", json.dumps({"pitch": pitch}).encode())):
                member = tarfile.TarInfo(f"clip{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_x_ares_checks_the_encoder_and_scores_a_task_from_tars_to_mlp_and_knn(python: str, tmp_path: Path) -> None:
    export(str(bundle.save(untrained(config(AUDIO_NTT)), tmp_path / "first")), tmp_path / "encoder")
    env = tmp_path / "env" / "pitch"
    env.mkdir(parents=True)
    for split, numbers in {"train": range(32), "valid": range(32, 40), "test": range(40, 48)}.items():
        pitch_tar(env / f"{split}-000000.tar", numbers)
    (env / ".audio_tar_ready").touch()
    (tmp_path / "task.py").write_text(TASK)
    said = run(python, tmp_path, RUN_XARES)
    assert "Scoring completed: All tasks scored." in said
    (scores,) = ({path.name: float(path.read_text().split()[0]) for path in env.glob("checkpoints/*/*_score.txt")},)
    assert scores.keys() == {"mlp_score.txt", "knn_score.txt"} and min(scores.values()) >= 0.75  # chance is .5
    (embedded,) = env.glob("embeddings/Scaleaudio*_Encoder")
    assert len(list(embedded.glob("*.tar"))) == 3


def test_the_checker_of_x_ares_passes_the_encoder(python: str, tmp_path: Path) -> None:
    export(str(bundle.save(untrained(config()), tmp_path / "first")), tmp_path / "encoder")
    code = (
        "from xares.audio_encoder_checker import check_audio_encoder\n"
        "from xares.utils import attr_from_py_path\n"
        "assert check_audio_encoder(attr_from_py_path('encoder/xares_encoder.py', endswith='Encoder')())"
    )
    run(python, tmp_path, code)


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT])
def test_the_validator_of_hear_passes_the_module(changes: dict[str, Any], hear_python: str, tmp_path: Path) -> None:
    folder = bundle.save(untrained(config(changes)), tmp_path / "encoder")
    code = (
        "from hearvalidator.validate import ValidateModel\n"
        f"ValidateModel('scaleaudio.export.hear', {str(folder)!r}, device='cpu')()"
    )
    said = run(hear_python, tmp_path, code)
    assert "Interval between timestamps is 40.0ms" in said


def test_the_slaney_front_end_is_evars(python: str, tmp_path: Path) -> None:
    tree = {"frontend": {"num_mels": 64, "mel_scale": "slaney", "mean": None, "std": None}}
    encoder = untrained(config(tree))
    wave_BT = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    torch.save((wave_BT, encoder.frontend(wave_BT)), tmp_path / "expected.pt")
    code = (
        "import torch\n"
        "from nnAudio.features import MelSpectrogram\n"
        "mel = MelSpectrogram(sr=16000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, fmin=60, fmax=7800,\n"
        "                     center=True, power=2, verbose=False)\n"
        "wave, expected = torch.load('expected.pt', weights_only=True)\n"
        "found = (mel(wave) + torch.finfo(torch.float32).eps).log()\n"
        "torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)"
    )
    run(python, tmp_path, code)
