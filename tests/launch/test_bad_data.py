"""A run over shards of which too much is bad stops, says why, and has named every clip."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaleaudio.config import Config
from scaleaudio.errors import RunFailed
from scaleaudio.launch.pretrain import pretrain
from scaleaudio.report.runlog import read_rejects

MEASURED = {"frontend.mean": -8.0, "frontend.std": 4.0}  # else that measurement would stop first
pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.slow]


def test_too_many_bad_clips_stop_the_run_with_the_reasons_and_the_table_names_them(
    shards: Path, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    tar = sorted((tmp_path / "shards").glob("*.tar"))[0]
    tar.write_bytes(bytes(tar.stat().st_size))
    config = tiny({"data.url": str(tmp_path / "shards"), "data.max_bad_fraction": 0.1} | MEASURED)
    with pytest.raises(RunFailed, match=r"clips are unusable, more than data\.max_bad_fraction 0\.1") as failed:
        pretrain(config, str(tmp_path / "run"))
    told = int(re.findall(r"(\d+) of \d+ clips are unusable", str(failed.value))[0])
    found = read_rejects(str(tmp_path / "run"))
    assert len(found) >= told > 0
    assert {row["shard"] for row in found} == {tar.name}
    assert all("not those of the index" in row["reason"] for row in found)
