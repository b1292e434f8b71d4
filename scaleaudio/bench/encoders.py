"""What each encoder costs: parameters and multiplications, which are counted, and time, which is measured.

Counted for one second of audio through the default front-end's spectrogram, the encoder made for the default training
crop. Machines are noisy, so encoders take turns, and a time is the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scaleaudio.encoders import Encoder, EncoderConfig
from scaleaudio.task import TaskConfig

AUDIO_SECONDS = 10.0
ENCODERS: dict[str, dict[str, Any]] = {
    "audio_ntt, d = 512": {"kind": "audio_ntt", "embedding_dim": 512},
    "audio_ntt, d = 2048": {"kind": "audio_ntt", "embedding_dim": 2048},
    "audio_ntt_v2": {"kind": "audio_ntt_v2", "embedding_dim": 3072},
    "cnn": {"kind": "cnn"},
    "resnet": {"kind": "resnet"},
    "resnet, 2 blocks a stage": {"kind": "resnet", "blocks_per_stage": 2},
    "transformer": {"kind": "transformer"},
    "transformer, ViT-S": {"kind": "transformer", "width": 384, "depth": 12, "heads": 6},
    "transformer, ViT-B, 16 x 16": {
        "kind": "transformer", "width": 768, "depth": 12, "heads": 12, "patch_frames": 16,
    },
    "timm resnet18": {"kind": "timm", "model": "resnet18"},
    "timm convnext_atto": {"kind": "timm", "model": "convnext_atto"},
    "timm efficientnet_b0": {"kind": "timm", "model": "efficientnet_b0"},
    "timm mobilenetv3_small_100": {"kind": "timm", "model": "mobilenetv3_small_100"},
    "timm vit_tiny_patch16_224": {"kind": "timm", "model": "vit_tiny_patch16_224"},
    "timm swin_tiny_patch4_window7_224": {"kind": "timm", "model": "swin_tiny_patch4_window7_224"},
}  # fmt: skip
HEADINGS = ("encoder", "parameters", "embedding", "hop, ms", "million multiplications a second of audio")


@dataclass(frozen=True)
class Size:
    """What is counted of an encoder, the same on every machine.

    Attributes:
        name: a key of ENCODERS.
        num_parameters: trained numbers.
        embedding_dim: D.
        hop_ms: time from one embedding frame to the next.
        mega_macs: millions of multiply-adds for a second of audio, in convolutions and matrix products.
    """

    name: str
    num_parameters: int
    embedding_dim: int
    hop_ms: float
    mega_macs: float


def build(tree: Mapping[str, Any]) -> Encoder:
    """The encoder of a config's part, made for the default training crop, in eval mode."""
    task = TaskConfig()
    config: Any = TypeAdapter(EncoderConfig).validate_python(tree)
    encoder: Encoder = config.build(task.frontend.num_mels, task.num_frames)
    return encoder.eval()


def size(name: str, encoder: Encoder) -> Size:
    """The counts of one encoder."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(_mel())
    hop_ms = 1000 * TaskConfig().frontend.hop_seconds * encoder.frame_stride
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    macs = counter.get_total_flops() / 2
    return Size(name, num_parameters, encoder.embedding_dim, hop_ms, round(macs / AUDIO_SECONDS / 1e6, 1))


@torch.no_grad()
def measure_ms(
    encoders: Mapping[str, Encoder], *, rounds: int = 5, on_done: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, float]:
    """Milliseconds of processor time for a second of audio, one clip at a time; the encoders take turns."""
    mel_BFS, seconds = _mel(), {name: list[float]() for name in encoders}
    for number in range(rounds + 1):
        for place, (name, encoder) in enumerate(encoders.items(), start=1):
            began = time.process_time()
            encoder(mel_BFS)
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - began)
            on_done(number * len(encoders) + place, (rounds + 1) * len(encoders))
    return {name: 1000 * statistics.median(taken) / AUDIO_SECONDS for name, taken in seconds.items()}


def _mel() -> Tensor:
    frontend = TaskConfig().frontend
    num_frames = frontend.num_frames(round(AUDIO_SECONDS * frontend.sample_rate_hz))
    return torch.randn(1, frontend.num_mels, num_frames, generator=torch.Generator().manual_seed(0))


def cells(size: Size) -> tuple[str, ...]:
    """What a table says of an encoder, besides times."""
    return (size.name, f"{size.num_parameters:,}", f"{size.embedding_dim}", f"{size.hop_ms:g}", f"{size.mega_macs:,}")


def encoder_table(sizes: list[Size], ms: Mapping[str, float]) -> Table:
    """For the terminal: a line an encoder."""
    table = Table(caption="one thread, one clip at a time; multiplications of 10 s of audio, as is the time")
    for heading in (*HEADINGS, "ms a second of audio"):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    for row in sizes:
        table.add_row(*cells(row), f"{ms[row.name]:.2f}")
    return table


def write_markdown(sizes: list[Size], ms: Mapping[str, float], path: Path) -> None:
    """The page docs/encoders.md: the same table, and each encoder's part of a config."""
    lines = [
        "# Encoders",
        "",
        "Written by `scaleaudio bench encoders --out docs/encoders.md`. Parameters, hop and multiplications are "
        "counted (of 10 s of audio through the default front-end, the encoder made for the default crop); times are "
        "processor time of one thread on the machine that wrote the page, one clip at a time, and compare only with "
        "each other.",
        "",
        "| " + " | ".join((*HEADINGS, "ms a second of audio")) + " |",
        "|---|" + "---:|" * len(HEADINGS),
        *("| " + " | ".join((*cells(row), f"{ms[row.name]:.2f}")) + " |" for row in sizes),
        "",
        "In a config, under `encoder`:",
        "",
        *(f"- {name}: `{_flow(tree)}`" for name, tree in ENCODERS.items()),
        "",
        *_ABOUT,
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _flow(tree: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in tree.items()) + "}"


_ABOUT = (
    "## Which one sees positions",
    "",
    "- `audio_ntt` flattens frequency and pools time: it sees frequency, and hardly any order in time.",
    "- `cnn` and `resnet` pool both: the case that the adversary is for. `position: both` adds a learned vector for "
    "each frequency and each time.",
    "- `transformer` is a bag of patches with `position: none`, blind to every rearrangement of them; its default is "
    "`both`. A patch is `patch_mels` bins by `patch_frames` frames, and `patch_frames` is the hop.",
    "- `timm` takes any image backbone of timm with one input channel: `model` is its name and `options` what its "
    "constructor takes (`{output_stride: 8}`, `{patch_size: [16, 4]}`). It needs `pip install 'scaleaudio[timm]'`. "
    "`position` is added to its input.",
    "",
    "## Length",
    "",
    "A convolutional encoder takes a clip of any length as it is. The transformer and those backbones of timm that are "
    "made for one size embed a longer clip window by window, each window as long as the training crop, and put the "
    "frames one after the other: no position is stretched, and cost grows with length alone. Of a shorter clip the "
    "transformer uses the first time vectors; for a backbone of one size its last frame goes on to the window's end, "
    "and the frames beyond the clip are dropped.",
)
