"""A worker that makes no progress ends itself, whoever can be told of it. No Ray."""

from __future__ import annotations

import signal
import subprocess
import sys

_HANGS = """
import time
from scaleaudio.launch.watchdog import Watchdog

def unreachable(told):
    print(told["where"].rpartition(" ")[2], flush=True)
    raise TimeoutError("nobody answers")

Watchdog(0.2, on_hang=unreachable, on_beat=lambda step: None)
time.sleep(60)
"""


def test_a_worker_that_hangs_ends_itself_also_where_the_driver_cannot_be_told() -> None:
    ran = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=50)
    assert ran.returncode == -signal.SIGKILL and ran.stdout == "<module>\n", ran.stderr
