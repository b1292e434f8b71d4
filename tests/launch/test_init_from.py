"""A run begins with given weights, goes on without them, and refuses those that do not fit before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaleaudio import bundle, checkpoint
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.launch.pretrain import pretrain


def test_weights_that_do_not_fit_are_told_before_any_worker_starts(tiny: Any, tmp_path: Path) -> None:
    other = bundle.save(bundle.untrained(tiny({"encoder.widths": [4, 8], "seed": 7})), tmp_path / "other")
    for source, message in ((other, "stem.0.weight is"), (tmp_path / "nothing.pth", "not there")):
        with pytest.raises(InputError, match=message):
            pretrain(tiny({"init_from": str(source)}), str(tmp_path / "run"))
    assert not storage.exists(str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_begins_with_the_weights_and_goes_on_when_they_are_gone(tiny: Any, tmp_path: Path) -> None:
    first = bundle.untrained(tiny({"seed": 7}))
    source = bundle.save(first, tmp_path / "first")
    changes = {"init_from": str(source), "launch.workers": 1, "checkpoint.every_steps": 1, "checkpoint.keep_last": 99}
    still = {"schedule.steps": 4, "schedule.warmup_steps": 1, "schedule.learning_rate": 1e-9}
    run = str(tmp_path / "run")
    stopped = pretrain(tiny(changes | still | {"launch.report_every_steps": 1}), run, max_hours=1e-9)
    assert 0 < stopped.step < 4
    source.rename(tmp_path / "gone")
    assert pretrain(tiny(changes | still), run).finished
    found = checkpoint.newest(run)
    assert found is not None and found[0].step == 4
    begun = first.encoder.stem[0].weight  # type: ignore[union-attr, index]
    torch.testing.assert_close(found[1]["parameter.encoder.stem.0.weight"], begun, rtol=0, atol=1e-6)
