"""Any image backbone of timm with one input channel: the spectrogram is the image.

A convolutional backbone takes a spectrogram of any length. One that is made for one size (a transformer's positions, a
mixer's weights) is made for that of the training crop: a longer clip is embedded window by window, and in a shorter
one the last frame goes on to the end of the window. So no position is stretched, and cost grows with length alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scaleaudio.encoders.base import AddPosition, Encoder, Position
from scaleaudio.types import Settings


class TimmConfig(Settings):
    """A model of timm by its name, and the keywords that its constructor takes; weights are freshly drawn."""

    kind: Literal["timm"] = "timm"
    model: Annotated[str, Field(pattern=r"^[\w.]+$", description="its name in timm")]
    options: dict[str, Any] = Field(default_factory=dict, description="keywords that its constructor takes")
    position: Annotated[Position, Field(description="learned vectors that tell the input its place along an axis")] = (
        "none"
    )

    def build(self, num_mels: int, num_frames: int) -> TimmEncoder:
        """The encoder for spectrograms of `num_mels` bins; `num_frames` is the length it trains on."""
        return TimmEncoder(self, num_mels, num_frames)


class TimmEncoder(Encoder):
    """A backbone's last map, averaged over frequency; its head's own norm and layers come after that."""

    def __init__(self, config: TimmConfig, num_mels: int, num_frames: int) -> None:
        """Raises ValueError where timm is not installed, has no such model, or the model gives no map of time."""
        super().__init__()
        self._name = config.model
        size = (num_mels, num_frames)
        sized = _made_for_one_size(config, size)
        self.backbone: Any = _create(config) if sized is None else sized[0]
        self._window = None if sized is None else sized[1]
        self.embeds_windows = sized is not None
        self._strides = _strides(self.backbone, config.model)
        self.frame_stride = self._strides[1]
        self.frame_centre = (self.frame_stride - 1) / 2
        self.position = AddPosition(config.position, 1, *(self._window or size))
        shape = _tried(self, size)
        self.embedding_dim = shape[2]

    def frames(self, mel_BFS: Tensor) -> Tensor:
        """Frame embeddings (B, ceil(S / stride), D); some convolutional backbones drop the last of them."""
        if self._window is None:
            return self._embed(mel_BFS)
        rows, columns = self._window
        parts = (
            (self._embed(_grown(part_BFS, rows, columns)), -(-part_BFS.shape[2] // self.frame_stride))
            for part_BFS in torch.split(mel_BFS, columns, dim=2)
        )
        return torch.cat([frames_BSD[:, :num] for frames_BSD, num in parts], dim=1)

    def checkpoint_activations(self) -> None:
        """As the backbone does it; raises ValueError where it cannot, or where its BatchNorm would count twice."""
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.backbone.modules())
        if has_batch_norm or not hasattr(self.backbone, "set_grad_checkpointing"):
            raise ValueError(
                f"train.checkpoint_activations: encoder.model {self._name!r} "
                + ("would move its BatchNorm statistics twice" if has_batch_norm else "cannot do that")
                + ". Set it to false, or train.max_clips_per_worker instead."
            )
        self.backbone.set_grad_checkpointing(True)

    def _embed(self, mel_BFS: Tensor) -> Tensor:
        map_B1FS = self.position(mel_BFS.unsqueeze(1))
        found: Tensor = self.backbone.forward_features(map_B1FS)
        if found.ndim == 3:
            return self._mean_of_tokens(found, map_B1FS.shape[2:])
        # Each column of the map through the backbone's own pooling and head, so that their layers take part.
        last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        by_time = found.movedim(2 if last else 3, 1)
        columns = by_time.flatten(0, 1).unsqueeze(2 if last else 3)
        pooled_ND: Tensor = self.backbone.forward_head(columns, pre_logits=True)
        return pooled_ND.reshape(*by_time.shape[:2], -1)

    def _mean_of_tokens(self, token_BND: Tensor, size: torch.Size) -> Tensor:
        patch_BND = token_BND[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        rows, columns = (-(-length // stride) for length, stride in zip(size, self._strides, strict=True))
        if patch_BND.shape[1] != rows * columns:
            raise ValueError(
                f"encoder.model {self._name!r}: its {patch_BND.shape[1]} tokens are no grid of {rows} x {columns}, so "
                "they have no place in time; choose another model"
            )
        return patch_BND.reshape(len(patch_BND), rows, columns, -1).mean(dim=1)


def _create(config: TimmConfig, **more: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"encoder.model {config.model!r}: timm is not installed; pip install 'scaleaudio[timm]'"
        ) from error
    try:
        return timm.create_model(config.model, in_chans=1, num_classes=0, **{**config.options, **more})
    except Exception as error:  # timm raises RuntimeError, TypeError, AssertionError and those of torch
        if more and isinstance(error, TypeError) and "img_size" in str(error):
            return None
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"encoder.model {config.model!r}: timm cannot make it ({said})") from error


def _made_for_one_size(config: TimmConfig, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]] | None:
    """The backbone for windows of `size`, rounded up to whole patches; None where any size will do."""
    backbone = _create(config, img_size=size)
    if backbone is None:
        return None
    rows, columns = _strides(backbone, config.model)
    window = (-(-size[0] // rows) * rows, -(-size[1] // columns) * columns)
    return (backbone if window == size else _create(config, img_size=window)), window


def _strides(backbone: Any, name: str) -> tuple[int, int]:
    """Mel bins and frames to one place of the last map."""
    reductions = [stage["reduction"] for stage in getattr(backbone, "feature_info", None) or ()]
    if len(set(reductions)) == 1 and hasattr(getattr(backbone, "patch_embed", None), "feat_ratio"):
        rows, columns = backbone.patch_embed.feat_ratio(as_scalar=False)  # a patch need not be square
        return int(rows), int(columns)
    if not reductions or not isinstance(reductions[-1], int):
        raise ValueError(f"encoder.model {name!r}: timm does not say how much it shortens time; choose another model")
    return reductions[-1], reductions[-1]


@torch.no_grad()
def _tried(encoder: TimmEncoder, size: tuple[int, int]) -> torch.Size:
    """The shape of the frames of one crop."""
    was = encoder.training
    try:
        return encoder.eval().frames(torch.zeros(1, *size)).shape
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
        takes = "forward_head" if not hasattr(encoder.backbone, "forward_head") else " ".join(str(error).split())[:200]
        raise ValueError(
            f"encoder.model {encoder._name!r}: it cannot embed {size[0]} mel bins x {size[1]} frames ({takes}); raise "
            "clip_seconds or choose another model"
        ) from error
    finally:
        encoder.train(was)


def _grown(mel_BFS: Tensor, rows: int, columns: int) -> Tensor:
    """Up to the window's size, its last bin and last frame repeated."""
    missing = (rows - mel_BFS.shape[1], columns - mel_BFS.shape[2])
    return F.pad(mel_BFS, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else mel_BFS
