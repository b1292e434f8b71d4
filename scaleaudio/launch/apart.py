"""Checks of what a run stands on, each in a process of its own: none hangs or ends the others.

A file system that is gone, a driver that crashes while it is loaded: whatever a check runs into, it is killed at its
deadline and counts as failed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]

_AT_ONCE = 3  # several load torch, for seconds and a gigabyte each


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        check: what was looked at.
        status: whether a run can count on it.
        text: what was found.
        fix: what to do about it; empty where there is nothing to do.
        facts: the same for programs.
    """

    check: str
    status: Status
    text: str
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What the checks are about besides the machine.

    Attributes:
        data: addresses of shards.
        out: the folder that runs go to.
        seconds: how long a check may take.
        witness: a file that the driver's machine wrote where runs go to; None where it asks nobody else.
    """

    data: tuple[str, ...] = ()
    out: str | None = None
    seconds: float = 60.0
    witness: str | None = None


def examine(checks: list[str], asked: Asked, *, seconds: float | None = None) -> Iterator[Finding]:
    """What the checks find ("package.module:function", taking `asked` and giving findings), as they find it."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    running = [pool.submit(_apart, check, asked, seconds or asked.seconds) for check in checks]
    try:
        for done in as_completed(running):
            yield from done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _apart(check: str, asked: Asked, seconds: float) -> list[Finding]:
    """A check's findings, made in a process of its own."""
    name = check.rpartition(":")[2]
    words = [sys.executable, "-m", __name__, check, json.dumps(asdict(asked))]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        words, env=quiet, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, process_group=0
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(child)
        fix = "What it asks hangs, is out of reach or overloaded; --deadline gives it more time."
        return [Finding(name, "fail", f"no answer in {seconds:g} s", fix)]
    try:
        return [Finding(**tree) for tree in json.loads(out.rpartition("\n")[2])]
    except (json.JSONDecodeError, TypeError):
        last = (err.strip() or out.strip() or "nothing said").splitlines()[-1]
        ended = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        return [Finding(name, "fail", f"the check died ({ended}): {last}", "Install what requirements.lock names.")]


def _kill(child: subprocess.Popen[str]) -> None:
    """Kills a process with all that it began, and waits no longer than a second: in a dead file system none ends."""
    os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(1)


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    tree = json.loads(sys.argv[2])
    # By its own name: what runs here is called __main__, and its Finding is another class.
    own = importlib.import_module("scaleaudio.launch.apart")
    made = getattr(importlib.import_module(module), function)(own.Asked(**tree | {"data": tuple(tree["data"])}))
    print("\n" + json.dumps([asdict(finding) for finding in made]), end="")
