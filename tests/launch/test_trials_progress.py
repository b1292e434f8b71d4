"""What is said while a sweep goes on. No Ray."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from scaleaudio.launch.trials_progress import TrialsProgress
from scaleaudio.report.trials import TrialRecord

BASE = TrialRecord(0, "baseline", {"negatives.time_strength": 0.0}, 0, "running", [], 40)


def test_trials_begin_are_scored_and_end_in_a_line_each_whatever_else_is_told() -> None:
    text = io.StringIO()
    with TrialsProgress(3, 40, Console(file=text, width=120)) as progress:
        tell = progress.on_event
        tell({"kind": "trial", "record": BASE})
        tell({"kind": "metrics", "trial": 0, "step": 10, "loss": 1.0})
        tell({"kind": "of another version, without a step", "trial": 0})
        tell({"kind": "metrics", "trial": 7, "step": 3})  # of a trial that has ended
        tell({"kind": "warning", "trial": 0, "text": "a shard [x] was passed over"})
        tell({"kind": "trial", "record": replace(BASE, scores=[(20, 0.5)])})
        tell({"kind": "trial", "record": replace(BASE, scores=[(40, 0.7)], state="finished")})
        tell({"kind": "trial", "record": replace(BASE, number=2, kind="search", state="failed", failure="NaN [y]")})
        again = replace(BASE, number=10_000, kind="repeat", repeat_of=0, seed=1)
        tell({"kind": "trial", "record": again})
    assert text.getvalue().splitlines() == [
        "the baseline begins: time_strength 0",
        "warning: trial 0: a shard [x] was passed over",
        "the baseline finished, score 0.700 at step 40/40",
        "trial 2 failed: NaN [y]",
        "the baseline, seed 1 begins: time_strength 0",
    ]
