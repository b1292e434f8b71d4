"""A unit of a corpus: a fault of storage costs at most its clips, by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from servers import RangeHandler, web_server
from torch import Tensor, nn

from scaleaudio.data import patience
from scaleaudio.data.index import ShardIndex
from scaleaudio.evaluate.corpus import embed_unit, is_passing, refused, units


class Peak(nn.Module):
    """Embeds a clip as its peak."""

    sample_rate_hz, embedding_dim = 16_000, 1

    def forward(self, wave_BT: Tensor) -> Tensor:
        """(B, 1)."""
        return wave_BT.abs().amax(dim=1, keepdim=True)


def test_a_sample_table_that_fails_once_costs_no_clip(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    failed: list[str] = []

    class Failing(RangeHandler):
        def do_GET(self) -> None:
            if "/samples/" in self.path and not failed:
                failed.append(self.path)
                self.send_error(503)
                return
            super().do_GET()

    with web_server(shards, Failing) as url:
        unit, *_ = units(ShardIndex.load(f"{url}/index.parquet"), 4)
        table = embed_unit(Peak(), unit)
    here, *_ = units(ShardIndex.load(str(shards)), 4)
    assert failed and table.equals(embed_unit(Peak(), here)) and table["reason"].null_count == 4


def test_without_its_sample_table_a_unit_is_refused_row_by_row(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "in")
    _, unit, *_ = units(ShardIndex.load(str(tmp_path / "in")), 3)
    shutil.rmtree(tmp_path / "in" / "samples")
    table = embed_unit(Peak(), unit)
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == ["row 3", "row 4", "row 5"]
    assert all("cannot be read" in row["reason"] and is_passing(row["reason"]) for row in rows)
    assert {row["embedding"] for row in rows} == {None}
    why = "its process died"
    assert refused(unit, 1, why).select(["key", "embedding"]) == table.select(["key", "embedding"])
    assert refused(unit, 1, why)["reason"].to_pylist() == [why] * 3
