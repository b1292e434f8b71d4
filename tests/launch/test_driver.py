"""The driver itself is told to go, or is lost; and a second one comes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Program, config_of, undisturbed_losses

from scaleaudio import checkpoint
from scaleaudio.config import Config
from scaleaudio.errors import InputError
from scaleaudio.launch.lease import Lease
from scaleaudio.launch.pretrain import pretrain


def test_a_run_that_another_driver_holds_is_refused_before_anything_is_started(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    lease = Lease(str(tmp_path))
    lease.take()
    with pytest.raises(InputError, match=r"another driver trains this run \(host .*, pid \d+, last sign of life"):
        pretrain(tiny(), str(tmp_path), fresh=True)
    lease.release()
    assert list(tmp_path.rglob("*.*")) == []


@pytest.fixture
def program(tiny_tree: dict[str, Any], tmp_path: Path) -> Iterator[Program]:
    program = Program(tiny_tree, tmp_path, RAY_ADDRESS="local")
    yield program
    program.end()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_told_to_go_leaves_a_checkpoint_and_one_killed_is_followed(program: Program) -> None:
    """SIGTERM, then SIGKILL, then SIGTERM again; the losses are those of a run that nobody disturbed."""
    driver = program.start()
    program.wait_for("checkpoint")
    driver.send_signal(signal.SIGTERM)
    told_at = time.monotonic()
    assert driver.wait(120) == 143, program.said()
    took = time.monotonic() - told_at
    (ended,) = program.of_kind("ended")
    assert ended["reason"] == "SIGTERM" and ended["failure"] is None
    newest = checkpoint.newest_meta(program.url)
    assert newest is not None and newest.step == ended["step"] > 0
    assert not list((Path(program.url) / "lease").iterdir())

    driver = program.start()
    program.wait_for("started", 2)
    program.wait_for("checkpoint", len(program.of_kind("checkpoint")) + 2)
    driver.kill()
    driver.wait()
    killed_at = time.time()

    driver = program.start()
    back = program.wait_for("recovery", fault="driver")
    (lost,) = (event for event in program.of_kind("fault") if event["fault"] == "driver")
    assert f"pid {driver.pid}" not in lost["what"] and "last sign of life" in lost["what"]
    assert killed_at - 30 < lost["time"] < killed_at + 1 and back["step"] % 10 == 0
    assert 0 <= back["lost_steps"] < 20 and back["seconds"] > 0
    print(f"SIGTERM to exit {took:.1f} s; driver lost to first step {back['seconds']} s: {back['breakdown']}")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(120) == 143, program.said()
    found = program.losses
    expected = undisturbed_losses(config_of(program), len(found))
    assert [found[step] for step in range(len(expected))] == pytest.approx(expected, rel=2e-3)
