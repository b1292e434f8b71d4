"""A trained encoder on disk, and `load`: torch and torchaudio, with no Ray, DeepSpeed, WebDataset or pyarrow.

    BUNDLE/config.json           the parts of the config that the encoder needs, and what it was trained on
           encoder.safetensors   front-end constants and encoder weights

A run folder and a checkpoint load as well: the encoder is taken out of the newest checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from scaleaudio import __version__
from scaleaudio.encoders import Encoder
from scaleaudio.errors import InputError
from scaleaudio.frontend import Frontend
from scaleaudio.task import TaskConfig

if TYPE_CHECKING:
    from scaleaudio.checkpoint import Meta

FORMAT_VERSION = 1
MAX_SECONDS = 600
_WEIGHTS = "encoder.safetensors"
_CONFIG = "config.json"
_PROJECTOR = re.compile(r"(parameter|buffer)\.projector\.")


class AudioEncoder(nn.Module):
    """Waveforms to embeddings: the front-end and encoder of a run, in eval mode.

    Attributes:
        config: the task's config, with the measured front-end constants.
        step: how many steps it was trained for; 0 is an untrained encoder.
    """

    def __init__(self, config: TaskConfig, frontend: Frontend, encoder: Encoder, step: int = 0) -> None:
        """Puts both modules into eval mode."""
        super().__init__()
        self.config = config
        self.step = step
        self.frontend = frontend
        self.encoder = encoder
        self.eval()

    @property
    def sample_rate_hz(self) -> int:
        """The rate that waveforms must have."""
        return self.config.frontend.sample_rate_hz

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.encoder.embedding_dim

    @property
    def hop_seconds(self) -> float:
        """Time from one embedding frame to the next."""
        return self.config.frontend.hop_seconds * self.encoder.frame_stride

    def frames(self, wave_BT: Tensor) -> Tensor:
        """Frame embeddings (B, S, D) of mono waveforms in [-1, 1] at `sample_rate_hz`.

        Raises:
            ValueError: for another shape or type, no samples, more than ten minutes, or values that are not finite.
        """
        self._check(wave_BT)
        mel_BFS = self.frontend(wave_BT.float())
        missing = self.encoder.frame_stride - mel_BFS.shape[-1]
        if missing > 0:  # a clip shorter than one embedding frame: its last spectrogram frame goes on
            mel_BFS = nn.functional.pad(mel_BFS, (0, missing), mode="replicate")
        return self.encoder.frames(mel_BFS)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Clip embeddings (B, D); shapes and errors as `frames`."""
        return self.encoder.pool(self.frames(wave_BT))

    def _check(self, wave_BT: Tensor) -> None:
        if wave_BT.ndim != 2 or 0 in wave_BT.shape:
            raise ValueError(
                f"waveforms of shape {list(wave_BT.shape)}: expected (clips, samples), mono, at least one sample; "
                "give one clip as wave[None]"
            )
        if wave_BT.shape[1] > MAX_SECONDS * self.sample_rate_hz:
            raise ValueError(
                f"waveforms of {wave_BT.shape[1] / self.sample_rate_hz:.0f} s: expected at most {MAX_SECONDS} s. "
                "Cut them and average, or keep the pieces."
            )
        if not wave_BT.is_floating_point():
            raise ValueError(f"waveforms of {wave_BT.dtype}: expected floating point in [-1, 1]; divide by full scale")
        if not torch.isfinite(wave_BT).all():
            raise ValueError("waveforms with NaN or Inf: expected finite samples in [-1, 1]")


def untrained(config: TaskConfig) -> AudioEncoder:
    """The encoder of `config` with freshly drawn weights."""
    return AudioEncoder(config, config.frontend.build(), config.build_encoder())


def save(encoder: AudioEncoder, out: str | Path) -> Path:
    """Writes a bundle folder that needs no cluster and no run folder."""
    from safetensors.torch import save_file

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in encoder.state_dict().items()}, folder / _WEIGHTS)
    about = {
        "format_version": FORMAT_VERSION,
        "scaleaudio_version": __version__,
        "step": encoder.step,
        "task": json.loads(encoder.config.model_dump_json(include=set(TaskConfig.model_fields))),
    }
    (folder / _CONFIG).write_text(json.dumps(about, indent=1))
    return folder


def load(path: str | Path) -> AudioEncoder:
    """The encoder of an exported folder, a run folder or a checkpoint, in eval mode on the CPU.

    Raises:
        InputError: when `path` is none of these, or damaged.
    """
    if "://" in str(path):
        return _from_checkpoint(str(path))
    folder = Path(path)
    if (folder / _CONFIG).is_file():
        return _from_bundle(folder)
    if (folder / "checkpoints").is_dir() or (folder / "meta.json").is_file():
        return _from_checkpoint(str(folder))
    raise InputError(
        f"{path}: expected an exported folder (with {_CONFIG}), a run folder (with checkpoints/) or a checkpoint "
        f"(with meta.json), got {'a folder with none of them' if folder.is_dir() else 'nothing there'}"
    )


def load_projector(path: str | Path) -> nn.Sequential | None:
    """The projector that a run folder's or checkpoint's encoder was trained with, in eval mode on the CPU.

    None for an exported folder: it holds what is kept.
    """
    if "://" not in str(path) and (Path(path) / _CONFIG).is_file():
        return None
    meta, tensors = _read_checkpoint(str(path))
    try:
        config = TaskConfig.model_validate({k: v for k, v in meta.config.items() if k in TaskConfig.model_fields})
        projector = config.objective.projector.build(config.build_encoder().embedding_dim)
        projector.load_state_dict({n.partition("projector.")[2]: t for n, t in tensors.items() if _PROJECTOR.match(n)})
    except (ValidationError, RuntimeError) as error:
        raise InputError(f"{path}: config and weights of the projector do not fit each other: {error}") from error
    return projector.eval()


def _from_bundle(folder: Path) -> AudioEncoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = json.loads((folder / _CONFIG).read_text())
        version, task, step = about["format_version"], about["task"], about["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _CONFIG}: not what `scaleaudio export` writes ({error!r})") from error
    if version > FORMAT_VERSION:
        raise InputError(f"{folder}: format_version {version}, this scaleaudio reads {FORMAT_VERSION}. Upgrade it.")
    try:
        return _filled(task, load_file(folder / _WEIGHTS), step)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / _WEIGHTS}: missing or damaged ({error}). Export the run again.") from error


def _from_checkpoint(path: str) -> AudioEncoder:
    meta, tensors = _read_checkpoint(path)
    return from_tensors(meta.config, tensors, meta.step)


def _read_checkpoint(path: str) -> tuple[Meta, Mapping[str, Tensor]]:
    from scaleaudio import checkpoint
    from scaleaudio.data import storage

    if storage.exists(storage.join(path, "meta.json")):
        try:
            meta = checkpoint.read_meta(path)
            return meta, checkpoint.read_tensors(path, meta)
        except checkpoint.TORN as error:
            raise InputError(
                f"{path}: damaged ({error}). Give the run folder: it takes the newest whole one."
            ) from error
    found = checkpoint.newest(path)
    if found is None:
        raise InputError(f"{path}: no checkpoint in it yet")
    return found[:2]


def from_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], step: int) -> AudioEncoder:
    """The encoder of a run's config tree, with the weights among a checkpoint's `tensors`."""
    named = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(("parameter.", "buffer."))}
    weights = {name: t for name, t in named.items() if name.startswith(("frontend.", "encoder."))}
    return _filled({k: v for k, v in config.items() if k in TaskConfig.model_fields}, weights, step)


def _filled(task: dict[str, Any], weights: Mapping[str, Tensor], step: int) -> AudioEncoder:
    try:
        fresh = untrained(TaskConfig.model_validate(task))
        fresh.load_state_dict(weights)
    except (ValidationError, RuntimeError) as error:
        raise InputError(f"config and weights of the encoder do not fit each other: {error}") from error
    return AudioEncoder(fresh.config, fresh.frontend, fresh.encoder, step)
