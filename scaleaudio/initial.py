"""Weights that an encoder begins with: those of an exported folder, or a state dict in a file.

Published state dicts may be wrapped ({"state_dict": ...}, {"model": ...}) and their names may have a prefix ("model.",
"body.", "module."); what is left has to fit the encoder exactly. Nothing is unpickled but tensors.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scaleaudio.errors import InputError

_WRAPPED = ("state_dict", "model")
_PREFIXES = ("module.", "model.", "body.", "encoder.")


def load_into(encoder: nn.Module, source: str) -> None:
    """Sets the encoder's weights and statistics to those at `source`.

    Raises:
        InputError: there are none, or a name or shape differs.
    """
    own = encoder.state_dict()
    named = list(namings(read_weights(source)))
    weights = next((weights for weights in named if weights.keys() == own.keys()), named[-1])
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            there, lacking = (source, "the encoder") if name in weights else ("the encoder", source)
            raise InputError(f"init_from {source}: {there} has {name}, {lacking} has not. {_shapes(weights)}")
        if own[name].shape != weights[name].shape:
            raise InputError(
                f"init_from {source}: {name} is {list(weights[name].shape)}, the encoder's {list(own[name].shape)}. "
                "Set encoder and frontend.num_mels as they were there."
            )
    encoder.load_state_dict(weights)


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict of an encoder at `source`, by the names that it has there.

    Args:
        source: an exported folder, or a .safetensors, .pth or .pt file: a path, or a URL that storage reads.

    Raises:
        InputError: there is nothing of the kind.
    """
    if "://" not in source and Path(source).is_dir():
        return read_weights(str(Path(source) / "model.safetensors"))
    try:
        data = _bytes(source)
        tensors = _safetensors(data) if source.endswith(".safetensors") else _unwrapped(_pickled(data))
    except FileNotFoundError as error:
        raise InputError(f"init_from {source}: not there; expected an exported folder or a state dict") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"init_from {source}: cannot be read as a state dict of tensors ({reason})") from error
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("frontend.")}


def namings(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights by their names, then without each prefix that all names have."""
    yield dict(weights)
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            yield from namings({name.removeprefix(prefix): tensor for name, tensor in weights.items()})


def _bytes(source: str) -> bytes:
    if "://" not in source:
        return Path(source).read_bytes()
    from scaleaudio.data import storage  # loads pyarrow

    return storage.read_bytes(source)


def _safetensors(data: bytes) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors


def _pickled(data: bytes) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd about a damaged file is told once, by the error
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(str(error) or type(error).__name__) from error


def _unwrapped(tree: object) -> Mapping[str, Tensor]:
    while isinstance(tree, Mapping):
        if tree and all(isinstance(value, Tensor) for value in tree.values()):
            return {str(name): tensor for name, tensor in tree.items()}
        inner = next((tree[name] for name in _WRAPPED if name in tree), None)
        if inner is None:
            raise ValueError(f"it holds {', '.join(map(str, list(tree)[:5]))}")
        tree = inner
    raise ValueError(f"it holds a {type(tree).__name__}")


def _shapes(weights: Mapping[str, Tensor]) -> str:
    shapes = [f"{name} {list(tensor.shape)}" for name, tensor in list(weights.items())[:3]]
    return f"There are {len(weights)} tensors, such as {', '.join(shapes)}." if shapes else "There are no tensors."
