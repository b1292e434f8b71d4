"""The pictures of the adversary: something is in them, and it is what the config says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from scaleaudio import bundle
from scaleaudio.config import Config
from scaleaudio.errors import InputError
from scaleaudio.report.gallery import draw_gallery
from scaleaudio.types import Batch

MEASURED = {"frontend.mean": -8.0, "frontend.std": 4.0}


@pytest.fixture
def batch(tiny: Callable[..., Config]) -> Batch:
    stream = tiny().build_stream()
    batch = next(stream.batches())
    stream.close()
    return batch


def draw(config: Config, batch: Batch, path: Path, clip: int = 0) -> np.ndarray:
    draw_gallery(config, bundle.untrained(config), batch, path, clip=clip)
    return matplotlib.image.imread(path)[..., :3]


def test_the_picture_is_mostly_spectrograms(tiny: Callable[..., Config], batch: Batch, tmp_path: Path) -> None:
    picture = draw(tiny(MEASURED), batch, tmp_path / "a.png")
    coloured = np.ptp(picture, axis=-1) > 0.1
    assert coloured.mean() > 0.2
    assert len(np.unique((picture[coloured] * 15).astype(int), axis=0)) > 20


def test_each_family_is_a_column_wider(tiny: Callable[..., Config], batch: Batch, tmp_path: Path) -> None:
    families = ["frequency_shift", "frequency_flip", "band_permutation", "time_shift", "time_reversal"]
    five = draw(tiny(MEASURED | {"negatives.families": families}), batch, tmp_path / "five.png")
    four = draw(tiny(MEASURED | {"negatives.families": families[:4]}), batch, tmp_path / "four.png")
    assert five.shape[1] * 4 == pytest.approx(four.shape[1] * 5, rel=0.01)


@pytest.mark.parametrize(
    "negatives",
    [
        {"kind": "field", "frequency_strength": 0.2, "time_strength": 0.2},
        {"kind": "value", "epsilon": 0.5},
    ],
)
def test_every_kind_of_adversary_has_a_gallery(
    negatives: dict[str, object], tiny: Callable[..., Config], batch: Batch, tmp_path: Path
) -> None:
    unfaded = {"negatives": negatives, "views.fader": None}  # a fade can leave most of a view black
    picture = draw(tiny(MEASURED | unfaded), batch, tmp_path / "a.png")
    assert (np.ptp(picture, axis=-1) > 0.1).mean() > 0.2


def test_another_clip_is_another_picture(tiny: Callable[..., Config], batch: Batch, tmp_path: Path) -> None:
    first, second = (draw(tiny(MEASURED), batch, tmp_path / f"{clip}.png", clip) for clip in (0, 1))
    assert (np.abs(first - second) > 0.1).mean() > 0.05


def test_without_negatives_there_is_nothing_to_draw(tiny: Callable[..., Config], batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to show"):
        draw(tiny(MEASURED | {"negatives": {"kind": "none"}}), batch, tmp_path / "a.png")
