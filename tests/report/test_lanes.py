"""The picture of the lanes is drawn from the stream's own plan."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from scaleaudio.data.mixture import Mixture, PhaseConfig, make_mixture
from scaleaudio.errors import InputError
from scaleaudio.report.lanes import _numbers, draw_lanes


@pytest.fixture
def mixture() -> Mixture:
    return make_mixture(
        {"a": 300, "b": 90},
        [PhaseConfig()],
        step_clips=12,
        lanes=6,
        chunk_samples=8,
        window_samples=16,
        seed=0,
    )


def test_a_picture_is_drawn_with_a_row_a_lane(mixture: Mixture, tmp_path: Path) -> None:
    draw_lanes(mixture, ["a", "b"], tmp_path / "lanes.png", workers=(4, 3, 1), steps_each=2)
    height, width, _ = matplotlib.image.imread(tmp_path / "lanes.png").shape
    assert height > 400 and width > 800


def test_a_cell_holds_the_samples_of_the_plan_and_their_sources() -> None:
    assert _numbers([(0, 17), (1, 4)], ["a", "b"]) == "a:17 b:4"
    assert _numbers([(0, 17), (0, 4), (0, 5), (0, 6)], [""]) == "17 4 5 …"


def test_more_workers_than_lanes_are_refused(mixture: Mixture, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.lanes 6: 7 workers need a lane each"):
        draw_lanes(mixture, ["a", "b"], tmp_path / "lanes.png", workers=(7,))
