"""What a step would send on a cluster, calculated: the bytes are the code's, the speeds are assumptions.

With W GPUs, P trained parameters of 4 bytes, N running statistics, and G keys of D numbers of 4 bytes in the global
batch, each GPU sends (ring algorithms):

    gradients      2 (W-1)/W 4P        all-reduce; ZeRO 1 and 2 the same (reduce-scatter, then all-gather)
    statistics     2 (W-1)/W 4N        all-reduce; also 2 D' of 8 bytes where embeddings of D' are contrasted
    keys, InfoNCE  2 (W-1)/W 4GD       all-gather, both ways round; again in the backward pass when in chunks
    their gradient 4 (W-1)/W 4GD       all-reduce, both ways round
    EMA target     0                   every GPU moves its own

    t = bytes / bandwidth + messages * latency * log2 W

The gradients can travel while the backward pass (two thirds of the computing) goes on; the keys cannot.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from scaleaudio.averaging import message_bytes
from scaleaudio.objectives import InfoNCEConfig
from scaleaudio.task import PretrainTask
from scaleaudio.train import statistics
from scaleaudio.types import Settings

if TYPE_CHECKING:
    from rich.table import Table


class Assumed(Settings):
    """A cluster of GPUs, by numbers that nobody measured here."""

    clips_per_gpu: int = 512
    step_ms: float = 50.0
    gigabytes_per_second: float = 40.0
    latency_us: float = 15.0
    gpus: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)


class Traffic(NamedTuple):
    """What a task has to tell other workers in a step, in bytes."""

    gradients: int
    statistics: int
    key: int
    chunk_keys: int

    @classmethod
    def of(cls, task: PretrainTask) -> Traffic:
        """Counted on the task; a meta one will do."""
        objective = task.config.objective
        contrastive = isinstance(objective, InfoNCEConfig)
        return cls(
            sum(4 * p.numel() for p in task.parameters() if p.requires_grad),
            sum(4 * s.numel() for s in statistics(task))
            + (16 * task.encoder.embedding_dim if objective.embedding else 0),
            4 * objective.projector.output_dim if contrastive else 0,
            objective.chunk_keys if isinstance(objective, InfoNCEConfig) else 0,
        )


class Sends(NamedTuple):
    """What each of `gpus` sends in a step, and what that makes of it.

    Attributes:
        gradient_mb, key_mb, statistic_mb: megabytes sent.
        serial_ms, overlapped_ms: of a step when nothing overlaps, and when gradients travel in the backward pass.
        efficiency: steps per second over those of a GPU that tells nobody anything, overlapped.
    """

    gpus: int
    gradient_mb: float
    key_mb: float
    statistic_mb: float
    serial_ms: float
    overlapped_ms: float
    efficiency: float


def projection(traffic: Traffic, assumed: Assumed | None = None) -> list[Sends]:
    """What each number of GPUs would send, with the batch of each GPU the same."""
    cluster = assumed or Assumed()
    return [_sends(traffic, cluster, num) for num in cluster.gpus]


def table(found: list[Sends], assumed: Assumed) -> Table:
    """The projection for the terminal."""
    from rich.table import Table

    made = Table(
        title="calculated, not measured",
        caption=f"assumed: {assumed.clips_per_gpu} clips a GPU, {assumed.step_ms:g} ms of computing a step, "
        f"{assumed.gigabytes_per_second:g} GB/s from each GPU, {assumed.latency_us:g} us a hop",
    )
    for name in (
        "GPUs",
        "gradients MB",
        "keys MB",
        "statistics MB",
        "ms, nothing overlaps",
        "ms, overlapped",
        "efficiency",
    ):
        made.add_column(name, justify="right")
    for row in found:
        sizes = (f"{size:.2f}" for size in (row.gradient_mb, row.key_mb, row.statistic_mb))
        times = (f"{row.serial_ms:.1f}", f"{row.overlapped_ms:.1f}", f"{row.efficiency:.1%}")
        made.add_row(str(row.gpus), *sizes, *times)
    return made


def _sends(traffic: Traffic, cluster: Assumed, num: int) -> Sends:
    others = (num - 1) / num
    keys = num * cluster.clips_per_gpu
    in_chunks = traffic.key > 0 and keys > traffic.chunk_keys
    gathers = 4 if in_chunks else 2
    chunks = math.ceil(cluster.clips_per_gpu / max(1, traffic.chunk_keys // num)) if in_chunks else 1
    gradient_bytes = 2 * others * traffic.gradients
    key_bytes = (gathers + 4) * others * keys * traffic.key
    statistic_bytes = 2 * others * traffic.statistics
    messages = chunks * (gathers + 2) if in_chunks else 2  # else both ways round travel together
    key_messages = messages if traffic.key else 0

    def ms(num_bytes: float, messages: int) -> float:
        hops = messages * cluster.latency_us * math.log2(num)
        return 1e3 * num_bytes / (1e9 * cluster.gigabytes_per_second) + 1e-3 * hops

    apart = ms(key_bytes + statistic_bytes, key_messages + 1)
    gradient_ms = ms(gradient_bytes, -(-traffic.gradients // message_bytes(traffic.gradients)))
    overlapped = cluster.step_ms + apart + max(0.0, gradient_ms - cluster.step_ms * 2 / 3)
    return Sends(
        num,
        gradient_bytes / 1e6,
        key_bytes / 1e6,
        statistic_bytes / 1e6,
        cluster.step_ms + apart + gradient_ms,
        overlapped,
        cluster.step_ms / overlapped,
    )
