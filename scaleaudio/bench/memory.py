"""What a training step has to hold on each device, by tensor bytes, before there is a device: counted on a meta one.

With P trained parameters, E of an EMA target, W devices and 4 bytes a number (16-bit autocast keeps float32 weights):

    ZeRO stage     weights        gradients   Adam's moments
    0              4 (P + E)      4 P         8 P
    1              4 (P + E)      4 P         8 P / W
    2              4 (P + E)      4 P / W     8 P / W
    3              4 (P + E) / W  4 P / W     8 P / W

and beside it what the encoder keeps of the two views for the backward pass, in float32 (in bfloat16 it is between half
and all of that). While a layer runs, stage 3 also holds its
whole weights, and every stage some buckets of gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scaleaudio.negatives import NegativesSettings
from scaleaudio.task import TaskConfig

if TYPE_CHECKING:
    from rich.table import Table

GB = 1e9


class Held(NamedTuple):
    """Bytes that each device holds at a ZeRO stage."""

    stage: int
    weights: float
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.moments


def parameters(config: TaskConfig) -> tuple[int, int]:
    """How many parameters are trained, and how many the EMA target has; nothing of their size is made."""
    objective = config.objective
    with torch.device("meta"):
        encoder = config.build_encoder()
        projector = objective.projector.build(encoder.embedding_dim)
        other = [objective.build()]
        if objective.predict is not None and isinstance(config.negatives, NegativesSettings):
            other.append(objective.predict.build(encoder.embedding_dim, len(config.negatives.family_names)))
    both, rest = (sum(p.numel() for m in modules for p in m.parameters()) for modules in ([encoder, projector], other))
    return both + rest, both if objective.needs_target else 0


def held(trained: int, target: int, devices: int) -> list[Held]:
    """What each of so many devices holds at every stage."""
    found = []
    for stage in range(4):
        weights, gradients, moments = (devices if stage >= first else 1 for first in (3, 2, 1))
        found.append(Held(stage, 4 * (trained + target) / weights, 4 * trained / gradients, 8 * trained / moments))
    return found


def activation_bytes(config: TaskConfig, clips: int) -> int:
    """What the encoder keeps for the backward pass of two views of `clips` clips, in float32."""
    with torch.device("meta"):
        encoder = config.build_encoder()
        mel_NFS = torch.empty(2 * clips, config.frontend.num_mels, config.num_frames)
    if config.train.checkpoint_activations:
        encoder.checkpoint_activations()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made_BD = encoder.train()(mel_NFS)
    assert made_BD.requires_grad
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


def memory(config: TaskConfig, *, devices: tuple[int, ...], clips: int) -> dict[str, Any]:
    """The whole account of a config, as plain data; nothing of its size is ever made."""
    trained, target = parameters(config)
    plain, remade = (
        config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_activations": on})})
        for on in (False, True)
    )
    try:
        checkpointed = activation_bytes(remade, clips)
    except ValueError:  # an encoder that cannot
        checkpointed = None
    return {
        "trained": trained,
        "target": target,
        "clips": clips,
        "activations": activation_bytes(plain, clips),
        "activations_checkpointed": checkpointed,
        "held": {str(num): [one._asdict() for one in held(trained, target, num)] for num in devices},
    }


def table(result: dict[str, Any]) -> Table:
    """The account for the terminal, in GB on each device."""
    from rich.table import Table

    remade = result["activations_checkpointed"]
    checkpointed = "this encoder cannot" if remade is None else f"{remade / GB:.2f} GB"
    trained, target = (result[name] / 1e6 for name in ("trained", "target"))
    made = Table(
        title=f"GB on each device; {trained:,.1f} million parameters trained, {target:,.1f} million of a target",
        caption=f"activations of {result['clips']} clips on each: {result['activations'] / GB:.2f} GB, "
        f"checkpointed {checkpointed}",
    )
    for name in ("devices", "ZeRO stage", "weights", "gradients", "moments", "together", "with activations"):
        made.add_column(name, justify="right")
    for num, rows in result["held"].items():
        for row in rows:
            one = Held(**row)
            sizes = (one.weights, one.gradients, one.moments, one.total, one.total + result["activations"])
            made.add_row(num, str(one.stage), *(f"{size / GB:.2f}" for size in sizes))
    return made
