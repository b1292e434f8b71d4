"""examples/tour.py from end to end, on a few clips and steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

import scaleaudio

TOUR = Path(__file__).parents[2] / "examples" / "tour.py"


def test_every_cell_of_the_tour_is_of_a_kind_that_notebooks_know() -> None:
    marks = [line for line in TOUR.read_text().splitlines() if line.startswith("# %%")]
    assert len(marks) > 10 and set(marks) == {"# %%", "# %% [markdown]"}


@pytest.mark.slow
def test_the_tour_runs_and_leaves_an_encoder_and_its_pictures(tmp_path: Path) -> None:
    small = {"TOUR_FOLDER": str(tmp_path), "TOUR_CLIPS": "120", "TOUR_STEPS": "6", "MPLBACKEND": "Agg"}
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"} | small
    ran = subprocess.run([sys.executable, str(TOUR)], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"step 5: positive \S+, negative \S+", ran.stdout) and "| linear probe" in ran.stdout
    assert scaleaudio.load(tmp_path / "encoder").step == 6
    for name in ("negatives.png", "similarity.png"):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.01
