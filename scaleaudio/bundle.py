"""A trained encoder on disk, and `load`, which loads no Ray, DeepSpeed, WebDataset or pyarrow.

    BUNDLE/config.json         the parts of the config that the encoder needs, and what it was trained on
           model.safetensors   front-end constants and encoder weights

A run folder and a checkpoint load as well: the encoder is taken out of the newest whole checkpoint, with a warning
where a newer one was damaged.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from torch import Tensor, nn

from scaleaudio import __version__
from scaleaudio.embedder import AudioEncoder, untrained
from scaleaudio.encoders.timm_backbone import TimmConfig
from scaleaudio.errors import InputError
from scaleaudio.task import TaskConfig

if TYPE_CHECKING:
    from scaleaudio.checkpoint import Meta

__all__ = ["AudioEncoder", "from_tensors", "load", "load_projector", "save", "untrained"]

FORMAT_VERSION = 1
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_DATA = ("url", "sources", "mixture", "global_batch", "crops_per_clip", "short_clips")
_BEGAN_WITH = ("pretrained", "checkpoint_path")
_PROJECTOR = re.compile(r"(parameter|buffer)\.projector\.")


def save(encoder: AudioEncoder, out: str | Path) -> Path:
    """Writes a bundle folder that needs no cluster and no run folder.

    Killed midway it leaves no bundle rather than half of one.

    Raises:
        InputError: `out` is a run folder or a checkpoint.
    """
    from safetensors.torch import save

    folder = Path(out)
    if (folder / "checkpoints").is_dir() or (folder / "meta.json").is_file():
        raise InputError(f"{out}: a run folder or a checkpoint; an encoder needs a folder of its own. Give another.")
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format_version": FORMAT_VERSION,
        "scaleaudio_version": __version__,
        "step": encoder.step,
        "task": json.loads(encoder.config.model_dump_json(include=set(TaskConfig.model_fields))),
        "origin": encoder.origin,
    }
    (folder / _CONFIG).unlink(missing_ok=True)  # it makes the bundle exist, so it goes first and comes last
    _write(folder / _WEIGHTS, save({name: t.cpu().contiguous() for name, t in encoder.state_dict().items()}))
    _write(folder / _CONFIG, json.dumps(about, indent=1).encode())
    return folder


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def load(path: str | Path) -> AudioEncoder:
    """The encoder of an exported folder, a run folder or a checkpoint, in eval mode on the CPU.

    It keeps no gradients; `requires_grad_()` makes it ready for fine-tuning.

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
        task = {k: v for k, v in meta.config.items() if k in TaskConfig.model_fields}
        config = _needing_no_weights(TaskConfig.model_validate(task))
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
        origin = about.get("origin", {})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _CONFIG}: not what `scaleaudio export` writes ({error!r})") from error
    if not isinstance(version, int) or not isinstance(step, int):
        raise InputError(
            f"{folder / _CONFIG}: not what `scaleaudio export` writes (version {version!r}, step {step!r})"
        )
    if version > FORMAT_VERSION:
        raise InputError(f"{folder}: format_version {version}, this scaleaudio reads {FORMAT_VERSION}. Upgrade it.")
    try:
        return _filled(task, load_file(folder / _WEIGHTS), step, origin)
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
    meta, tensors, passed = found
    checkpoint.warn_passed_over(passed, f"the one of step {meta.step} is used instead")
    return meta, tensors


def from_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], step: int) -> AudioEncoder:
    """The encoder of a run's config tree, with the weights among a checkpoint's `tensors`."""
    named = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(("parameter.", "buffer."))}
    weights = {name: t for name, t in named.items() if name.startswith(("frontend.", "encoder."))}
    task = {k: v for k, v in config.items() if k in TaskConfig.model_fields and k != "init_from"}
    return _filled(task, weights, step, _origin(config))


def _origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's config says beside the task, fit to be published: of paths on a machine only the end."""
    origin = {name: config[name] for name in ("name", "optimizer") if name in config}
    if config.get("init_from"):
        origin["init_from"] = _public(config["init_from"])
    if isinstance(config.get("data"), Mapping):
        data = {name: config["data"][name] for name in _DATA if config["data"].get(name)}
        if "url" in data:
            data["url"] = _public(data["url"])
        if "sources" in data:
            data["sources"] = {name: _public(url) for name, url in data["sources"].items()}
        origin["data"] = data
    return origin


def _public(url: str) -> str:
    return url if "://" in url else "/".join(Path(url).parts[-2:])


def _filled(task: dict[str, Any], weights: Mapping[str, Tensor], step: int, origin: Mapping[str, Any]) -> AudioEncoder:
    try:
        fresh = untrained(_needing_no_weights(TaskConfig.model_validate(task)))
        fresh.load_state_dict(weights)
    except (ValidationError, RuntimeError) as error:
        raise InputError(f"config and weights of the encoder do not fit each other: {error}") from error
    return AudioEncoder(fresh.config, fresh.frontend, fresh.encoder, step, origin).requires_grad_(False)


def _needing_no_weights(config: TaskConfig) -> TaskConfig:
    """The config without the weights that a backbone of timm began with: they may be gone, or across a network."""
    if not isinstance(config.encoder, TimmConfig):
        return config
    options = {name: value for name, value in config.encoder.options.items() if name not in _BEGAN_WITH}
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"options": options})})
