"""An encoder as one graph for other runtimes: ONNX, or a program of `torch.export`; front-end included.

The short-time Fourier transform becomes a convolution with windowed sines and cosines, which every runtime has. Batch
and length stay free. The graph takes a clip whole, from `min_samples` on: chunks, shorter clips and checks of the input
are what `scaleaudio.load` adds. What is written is run and held against torch before it counts as written.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaleaudio.embedder import AudioEncoder
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.frontend import Frontend, FrontendConfig

ONNX_FILE = "model.onnx"
PROGRAM_FILE = "model.pt2"
TOLERANCE = 1e-4
_OPSET = 18


class Graph(nn.Module):
    """`wave` (batch, samples) to `embedding` (batch, D) and `frames` (batch, frames, D), without control flow."""

    def __init__(self, encoder: AudioEncoder) -> None:
        """Copies the encoder's weights."""
        super().__init__()
        self.frontend = ConvFrontend(encoder.config.frontend, encoder.frontend)
        self.encoder = copy.deepcopy(encoder.encoder)
        _halve(self.encoder)
        self.eval()

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and the frames that it is pooled from."""
        frames_BSD = self.encoder.frames(self.frontend(wave))
        return self.encoder.pool(frames_BSD), frames_BSD


class Halving(nn.Module):
    """`MaxPool2d(2)`, written so that a graph does not depend on whether a length is even."""

    def forward(self, map_BCFS: Tensor) -> Tensor:
        """The greatest of each 2 x 2 places; what is left over at the end is dropped."""
        for _ in range(2):
            map_BCFS = torch.maximum(map_BCFS[..., :-1][..., ::2], map_BCFS[..., 1:][..., ::2]).transpose(2, 3)
        return map_BCFS


def _halve(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d) and (child.kernel_size, child.stride, child.padding) == (2, 2, 0):
            setattr(module, name, Halving())
        else:
            _halve(child)


class ConvFrontend(nn.Module):
    """The front-end's log-mel, with a convolution in place of the Fourier transform."""

    kernel: Tensor
    bank: Tensor

    def __init__(self, config: FrontendConfig, frontend: Frontend) -> None:
        """Takes over the filter bank and the constants of `frontend`."""
        super().__init__()
        self.register_buffer("kernel", _fourier_kernel(config))
        self.register_buffer("bank", frontend.mel.mel_scale.fb.T[:, :, None].clone())
        self.mean, self.std = frontend.mean, frontend.std
        self._hop, self._half = config.hop_samples, config.n_fft // 2

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Normalised log-mel (B, F, S)."""
        padded_B1T = nn.functional.pad(wave_BT[:, None], (self._half, self._half), mode="reflect")
        both_BQS = nn.functional.conv1d(padded_B1T, self.kernel, stride=self._hop)
        real_BQS, imaginary_BQS = both_BQS.chunk(2, dim=1)
        mel_BFS = nn.functional.conv1d(real_BQS.square() + imaginary_BQS.square(), self.bank)
        normalised_BFS: Tensor = ((mel_BFS + torch.finfo(torch.float32).eps).log() - self.mean) / self.std
        return normalised_BFS


def _fourier_kernel(config: FrontendConfig) -> Tensor:
    """Cosines, then sines, under the Hann window: (2 (n_fft / 2 + 1), 1, n_fft)."""
    place_T = torch.arange(config.n_fft, dtype=torch.float64)
    bin_Q1 = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64)[:, None]
    window_T = torch.hann_window(config.win_samples, dtype=torch.float64)
    before = (config.n_fft - config.win_samples) // 2
    window_T = nn.functional.pad(window_T, (before, config.n_fft - config.win_samples - before))
    angle_QT = 2 * math.pi * ((bin_Q1 * place_T) % config.n_fft) / config.n_fft
    return (torch.cat([angle_QT.cos(), angle_QT.sin()]) * window_T)[:, None].float()


def min_samples(encoder: AudioEncoder) -> int:
    """The shortest clip that a graph takes: two embedding frames, and what the reflection at the ends needs."""
    config = encoder.config.frontend
    return max(config.min_samples, (2 * encoder.encoder.frame_stride - 1) * config.hop_samples)


def write_onnx(encoder: AudioEncoder, path: Path) -> float:
    """Writes an ONNX model and gives how far it is from torch, relative to the embeddings' length.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is not installed.
        RunFailed: this encoder cannot be written so, or differs by more than TOLERANCE.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install 'scaleaudio[onnx]'") from error

    def write(partial: Path) -> None:
        names: dict[str, Any] = {"input_names": ["wave"], "output_names": ["embedding", "frames"]}
        torch.onnx.export(
            _exported(encoder), (), partial, **names, opset_version=_OPSET, external_data=False, verbose=False
        )

    def runner(partial: Path) -> Callable[[Tensor], Tensor]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(partial, options, providers=["CPUExecutionProvider"])
        return lambda wave_BT: torch.from_numpy(session.run(["embedding"], {"wave": wave_BT.numpy()})[0])

    return _write_checked(encoder, path, write, runner)


def write_program(encoder: AudioEncoder, path: Path) -> float:
    """Writes a program that `torch.export.load(path).module()` runs without scaleaudio; else as `write_onnx`."""

    def write(partial: Path) -> None:
        torch.export.save(_exported(encoder), partial)

    def runner(partial: Path) -> Callable[[Tensor], Tensor]:
        module = torch.export.load(partial).module()
        return lambda wave_BT: module(wave_BT)[0]

    return _write_checked(encoder, path, write, runner)


def _exported(encoder: AudioEncoder) -> torch.export.ExportedProgram:
    shortest = min_samples(encoder)
    clip = torch.zeros(2, 2 * shortest + encoder.sample_rate_hz)
    shape = {"wave": {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("samples", min=shortest)}}
    with torch.no_grad():
        return torch.export.export(
            Graph(encoder), (clip,), dynamic_shapes=shape, prefer_deferred_runtime_asserts_over_guards=True
        )


def _write_checked(
    encoder: AudioEncoder,
    path: Path,
    write: Callable[[Path], None],
    runner: Callable[[Path], Callable[[Tensor], Tensor]],
) -> float:
    partial = path.with_name(f"partial-{path.name}")
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch's own exporters use
                write(partial)
                difference = _difference(encoder, runner(partial))
        except Exception as error:  # exporters raise whatever they meet
            raise RunFailed(
                f"{path.name}: encoder.kind {encoder.config.encoder.kind} cannot be written so "
                f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            ) from error
        if not difference <= TOLERANCE:
            raise RunFailed(
                f"{path.name}: differs from torch by {difference:.1e} of the embedding, over {TOLERANCE:.0e}"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return difference


@torch.no_grad()
def _difference(encoder: AudioEncoder, run: Callable[[Tensor], Tensor]) -> float:
    """The greatest relative difference over clips of several lengths, loud and quiet."""
    differences = []
    random = torch.Generator().manual_seed(0)
    for num_clips, num_samples in ((1, min_samples(encoder)), (3, encoder.sample_rate_hz), (2, 37_123)):
        loud = torch.logspace(0, -3, num_clips)[:, None]
        wave_BT = loud * torch.randn(num_clips, max(num_samples, min_samples(encoder)), generator=random).clamp(-1, 1)
        expected_BD = encoder(wave_BT)
        lengths_B = expected_BD.norm(dim=1).clamp(min=1e-12)
        differences.append(((run(wave_BT) - expected_BD).norm(dim=1) / lengths_B).max())
    return float(torch.stack(differences).max())  # NaN where any is: Python's max would lose it
