"""The table of encoders: what is counted in docs/encoders.md is what counting gives today."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleaudio.bench.encoders import ENCODERS, build, cells, measure_ms, size

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
LARGE = ("ViT-B", "ViT-S", "swin")


def test_the_page_has_a_line_for_every_encoder() -> None:
    table = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert table[1:] == list(ENCODERS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if any(large in n for large in LARGE) else []) for n in ENCODERS],
)
def test_the_page_says_what_is_counted(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    line = "| " + " | ".join(cells(size(name, build(ENCODERS[name]))))
    assert line in PAGE.read_text(), "write it anew: scaleaudio bench encoders --out docs/encoders.md"


def test_published_and_hand_counted_sizes() -> None:
    counted = size("resnet", build({"kind": "resnet", "widths": (8,)}))
    # The stem's 3x3 at full resolution; two 3x3 and the shortcut's 1x1 at half.
    frames, half = 64 * 1001, 32 * 501
    assert counted.mega_macs == pytest.approx((frames * 72 + half * (2 * 576 + 64)) / 10 / 1e6, abs=0.06)
    assert size("audio_ntt", build({"kind": "audio_ntt"})).num_parameters == 600_192


def test_times_are_positive_and_of_every_encoder() -> None:
    made = {"small": build({"kind": "resnet", "widths": (4,)}), "large": build({"kind": "resnet", "widths": (64, 64)})}
    ms = measure_ms(made, rounds=2)
    assert list(ms) == ["small", "large"] and 0 < ms["small"] < ms["large"]
