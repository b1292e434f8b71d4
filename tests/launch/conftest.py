"""One Ray for all tests: to start one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scaleaudio.config import LaunchConfig
from scaleaudio.launch.cluster import cluster


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A local Ray of four CPUs and no GPU, which `pretrain` finds and leaves running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # for the workers, of servers that tests start
            patch.setenv(name, "x")
        with cluster(LaunchConfig(workers=4)):
            yield
