"""What each stage of an encoder knows: its output averaged over all places, probed like an embedding.

Stages are found by looking: the members of a list of blocks, each block of plain layers that ends in pooling, and any
other part that is made of parts. Forward hooks read them, so any encoder of the project, timm's and one's own included,
can be looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scaleaudio.embedder import CHUNK_SECONDS
from scaleaudio.evaluate.embeddings import device_of, rate_of

EMBEDDING = "embedding"
_LISTS = (nn.Sequential, nn.ModuleList)


class Staged(nn.Module):
    """A model that gives the averages of all its stages, and its embedding last, side by side (B, sum of widths).

    Attributes:
        model: the model.
        columns: which columns belong to which stage, in the order in which a clip goes through them.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError for a model without the parts `frontend` and `encoder`, or without stages."""
        super().__init__()
        encoder: Any = getattr(model, "encoder", None)
        if not isinstance(encoder, nn.Module) or not hasattr(model, "frontend"):
            raise ValueError(f"{type(model).__name__}: its stages cannot be probed without parts frontend and encoder")
        self.model = model
        self.sample_rate_hz = rate_of(model)
        self.config = getattr(model, "config", None)
        self._stages = dict(_stages(encoder, ""))
        backbone = getattr(encoder, "backbone", None)
        self._channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        with torch.inference_mode():
            device = device_of(model)
            found = self._run(torch.zeros(1, self.sample_rate_hz, device=device))
        edges = [0]
        for pooled_BC in found.values():
            edges.append(edges[-1] + pooled_BC.shape[1])
        self.columns = {name: slice(*ends) for name, ends in zip(found, pairwise(edges), strict=True)}
        self.embedding_dim = edges[-1]

    def forward(self, wave_BT: Tensor) -> Tensor:
        """(B, embedding_dim)."""
        return torch.cat(list(self._run(wave_BT).values()), dim=1)

    def _run(self, wave_BT: Tensor) -> dict[str, Tensor]:
        model: Any = self.model
        mel_BFS = model.frontend(wave_BT.float())
        missing = getattr(model.encoder, "frame_stride", 1) - mel_BFS.shape[2]
        if missing > 0:
            mel_BFS = nn.functional.pad(mel_BFS, (0, missing), mode="replicate")
        sums: dict[str, tuple[Tensor, int]] = {}
        hooks = [
            module.register_forward_hook(self._add(name, len(wave_BT), sums)) for name, module in self._stages.items()
        ]
        try:
            z_BD = model.encoder(mel_BFS)
        finally:
            for hook in hooks:
                hook.remove()
        if wave_BT.shape[1] > CHUNK_SECONDS / 2 * self.sample_rate_hz:  # the model itself may take it in chunks
            z_BD = model(wave_BT)
        return {name: total_BC / num for name, (total_BC, num) in sums.items()} | {EMBEDDING: z_BD}

    def _add(self, name: str, num_clips: int, sums: dict[str, tuple[Tensor, int]]) -> Callable[..., None]:
        """A hook that adds up a stage's output over its places; a long clip may come window by window."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (3, 4) or len(output) != num_clips:
                return  # a part that sees something else than whole clips
            channels = 1 if output.ndim == 4 and not self._channels_last else output.ndim - 1
            places_BNC = output.movedim(channels, -1).flatten(1, -2)
            total_BC, num = sums.get(name, (0, 0))
            sums[name] = (total_BC + places_BNC.sum(dim=1), num + places_BNC.shape[1])

        return hook


def _stages(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        parts = list(child.named_children())
        pools = [(part, layer) for part, layer in parts if isinstance(layer, nn.MaxPool2d)]
        if name == "backbone":
            yield from _stages(child, f"{path}.")
        elif isinstance(child, _LISTS) and parts and all(list(part.children()) for _, part in parts):
            yield from ((f"{path}.{part}", block) for part, block in parts)
        elif isinstance(child, nn.Sequential) and len(pools) > 1:
            yield from ((f"{path}.{part}", layer) for part, layer in pools)
        elif parts and any(True for _ in child.parameters()):
            yield path, child
