"""Before a run: what this machine and the cluster have, what is missing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.launch.apart import Asked, Finding, examine
from scaleaudio.launch.nodes import HERE, REACH


def doctor(asked: Asked) -> Iterator[Finding]:
    """Every finding, as it is made; ends within about five times `asked.seconds`, whatever hangs."""
    reach = [check for check in REACH if asked.data or not check.endswith(":data")]
    yield from examine([*HERE, *reach], asked)
    # Starting on every node, a check there, and the answer.
    yield from examine(["scaleaudio.launch.nodes:ray"], asked, seconds=3 * asked.seconds + 30)
