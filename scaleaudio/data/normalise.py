"""The front-end's normalisation constants, measured once from the shards."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import torch

from scaleaudio.data.stream import Stream
from scaleaudio.frontend import FrontendConfig

_NUM_CLIPS = 2048


def with_constants(config: FrontendConfig, stream: Stream) -> FrontendConfig:
    """The config with mean and std filled in, from the shards where it has none.

    They are taken over the log-mel of the first crops of the run (at least 2,048, or an epoch), of its first lanes
    where a step has more: they depend on the order of the stream alone, so every machine measures the same.
    """
    if config.mean is not None:
        return config
    frontend = config.build()
    total, square, count = 0.0, 0.0, 0
    with closing(stream.narrowed(_NUM_CLIPS)) as few:
        num_batches = min(stream.steps_per_epoch, -(-_NUM_CLIPS // (len(few.lanes) * stream.config.lane_batch)))
        for batch in islice(few.batches(0), num_batches):
            with torch.no_grad():
                mel_BFS = frontend(batch.wave_BT).double()
            total += mel_BFS.sum().item()
            square += mel_BFS.square().sum().item()
            count += mel_BFS.numel()
    mean = total / count
    return config.model_copy(update={"mean": mean, "std": max(square / count - mean**2, 1e-12) ** 0.5})
