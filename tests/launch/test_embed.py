"""The embeddings of a corpus: every clip once, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
import torch
from torch import Tensor, nn

import scaleaudio
from scaleaudio import bundle
from scaleaudio.config import Config
from scaleaudio.data.convert import Member
from scaleaudio.data.index import INDEX_NAME, SHARD_SCHEMA, ShardIndex
from scaleaudio.data.parquet import write_table
from scaleaudio.data.shards import ShardWriter
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.launch.embed import EmbedSummary, embed

pytestmark = pytest.mark.usefixtures("ray_here")
NUM_CLIPS = 48


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    encoder = bundle.untrained(tiny({"frontend.mean": -8.0, "frontend.std": 4.0}))
    return str(bundle.save(encoder, tmp_path_factory.mktemp("model") / "encoder"))


@pytest.fixture(scope="module")
def undisturbed(model: str, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("undisturbed") / "z.parquet"
    assert embed(model, str(shards), str(out), unit_samples=5).num_samples == NUM_CLIPS
    return pq.read_table(out)


def damaged(shards: Path, folder: Path, *, clips: int) -> str:
    """The shards, in which the first clips are no audio."""
    shutil.copytree(shards, folder)
    for tar in sorted(folder.rglob("*.tar")):
        tar.write_bytes(tar.read_bytes().replace(b"fLaC", b"NOPE", clips))
        break
    return str(folder)


def odd_shards(clips: Path, folder: Path) -> str:
    """Five clips, of which the last two are no audio, and were none when they were indexed."""
    with ShardWriter(str(folder / "odd"), "odd", shard_bytes=1 << 20, shard_samples=100) as writer:
        for number, clip in enumerate(sorted(clips.glob("*.flac"))[:5]):
            data = clip.read_bytes() if number < 3 else b"no audio"
            writer.add(f"clip{number}", Member("flac", data, 16_000, 16_000, 0.0), {})
    write_table(str(folder / "odd" / INDEX_NAME), writer.shards, SHARD_SCHEMA)
    return str(folder / "odd")


def test_every_clip_has_the_embedding_that_the_encoder_gives_it_alone(
    undisturbed: pa.Table, model: str, shards: Path, clips: Path
) -> None:
    rows, encoder = undisturbed.to_pylist(), scaleaudio.load(model)
    assert undisturbed.schema.field("embedding").type == pa.list_(pa.float32(), encoder.embedding_dim)
    index = ShardIndex.load(str(shards))
    keys = [key for shard in range(len(index.shards)) for key in index.samples(shard)["key"].to_pylist()]
    assert [row["key"] for row in rows] == keys and len(set(keys)) == NUM_CLIPS
    for row in rows[::7]:
        label = json.loads(row["label"])
        wave_T, _ = soundfile.read(clips / label["source"], dtype="float32")
        with torch.inference_mode():
            alone = encoder(torch.from_numpy(wave_T)[None])[0].numpy()
        np.testing.assert_allclose(row["embedding"], alone, atol=1e-4)
        assert label["labels"]["pitch"] == ("low", "high")[int(row["key"][-2:]) % 2]


def test_a_job_killed_midway_goes_on_and_no_row_is_lost_or_doubled(
    undisturbed: pa.Table, model: str, shards: Path, tmp_path: Path
) -> None:
    """Driver and workers end by signal 9 once a few parts are there; the same command again."""
    out = tmp_path / "z.parquet"
    command = [sys.executable, "-m", "scaleaudio", "embed", model, str(shards), str(out), "--unit-samples", "1"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    job = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (there := list(tmp_path.glob("z.parquet.parts/*/part-*"))) and job.poll() is None:
        time.sleep(0.001)
    os.killpg(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL and not out.exists()
    time.sleep(1.0)  # its tasks are ended by Ray
    there = sorted(tmp_path.glob("z.parquet.parts/*/part-*.parquet"))
    assert 0 < len(there) < NUM_CLIPS
    before = {part.name: part.stat().st_mtime_ns for part in there}
    counts: list[int] = []
    done = embed(model, str(shards), str(out), unit_samples=5, on_done=lambda done, _: counts.append(done))
    assert counts[0] == len(before) and counts[-1] == done.num_samples == NUM_CLIPS
    assert pq.read_table(out).select(["key", "shard", "label"]) == undisturbed.select(["key", "shard", "label"])
    z_ND, expected_ND = (np.stack(table["embedding"].to_numpy()) for table in (pq.read_table(out), undisturbed))
    np.testing.assert_allclose(z_ND, expected_ND, atol=1e-4)
    assert not (tmp_path / "z.parquet.parts").exists()


def test_clips_that_cannot_be_used_are_named_and_the_others_embedded(
    undisturbed: pa.Table, model: str, shards: Path, tmp_path: Path
) -> None:
    broken, out = damaged(shards, tmp_path / "shards", clips=3), str(tmp_path / "z.parquet")
    done = embed(model, broken, out, max_bad_fraction=0.5)
    assert (done.num_samples, done.num_rejects) == (NUM_CLIPS - 3, 3)
    rejects = pq.read_table(tmp_path / "z.rejects.parquet").to_pylist()
    keys = undisturbed["key"].to_pylist()
    assert [row["key"] for row in rejects] == keys[:3] and all("shard" in row["reason"] for row in rejects)
    assert pq.read_table(out)["key"].to_pylist() == keys[3:]


def test_too_many_bad_clips_stop_the_job_and_are_tried_again_by_the_next(
    undisturbed: pa.Table, model: str, shards: Path, tmp_path: Path
) -> None:
    broken, out = damaged(shards, tmp_path / "shards", clips=3), str(tmp_path / "z.parquet")
    with pytest.raises(RunFailed, match=r"3 of \d+ clips are unusable, more than --max-bad-fraction 0.01"):
        embed(model, broken, out, unit_samples=5)
    assert not (tmp_path / "z.parquet").exists()
    shutil.rmtree(broken)
    shutil.copytree(shards, broken)
    assert embed(model, broken, out).num_rejects == 0
    assert pq.read_table(out) == undisturbed


def test_clips_that_are_no_audio_cost_a_stopped_job_none_of_its_parts_and_still_count(
    model: str, clips: Path, tmp_path: Path
) -> None:
    broken, out = odd_shards(clips, tmp_path), str(tmp_path / "z.parquet")
    with pytest.raises(RunFailed, match=r"unusable, more than --max-bad-fraction 0.01"):
        embed(model, broken, out, unit_samples=1)
    there = {part.name: part.stat().st_mtime_ns for part in tmp_path.glob("z.parquet.parts/*/part-*")}
    assert there
    with pytest.raises(RunFailed, match=r"of an earlier run"):
        embed(model, broken, out)
    counts: list[int] = []
    done = embed(model, broken, out, max_bad_fraction=0.5, on_done=lambda done, _: counts.append(done))
    assert counts[0] >= len(there) and counts[-1] == done.num_samples + done.num_rejects == 5
    assert done.num_rejects == 2


def test_a_finished_table_is_left_as_it_is_and_another_plan_is_refused(
    tiny: Callable[..., Config], model: str, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "z.parquet"
    done = embed(model, str(shards), str(out))
    before = out.stat().st_mtime_ns
    assert embed(model, str(shards), str(out)) == done and out.stat().st_mtime_ns == before
    other = bundle.untrained(tiny({"frontend.mean": -8.0, "frontend.std": 4.0}))
    with pytest.raises(InputError, match=r"z.parquet\" holds embeddings of another model\. .*--fresh"):
        embed(other, str(shards), str(out))
    assert isinstance(embed(other, str(shards), str(out), fresh=True), EmbedSummary)
    assert out.stat().st_mtime_ns != before


class Deadly(nn.Module):
    """Embeds a clip as its peak; the process ends where that is above 0.55."""

    sample_rate_hz, embedding_dim = 16_000, 1

    def forward(self, wave_BT: Tensor) -> Tensor:
        peak_B1 = wave_BT.abs().amax(dim=1, keepdim=True)
        if (peak_B1 > self.limit).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return peak_B1

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit


@pytest.mark.slow
def test_a_clip_that_its_process_dies_of_is_refused_alone(shards: Path, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    peaks = embed(Deadly(9.0), str(shards), str(tmp_path / "peaks.parquet"))
    table = pq.read_table(peaks.url)
    peak_N = np.stack(table["embedding"].to_numpy())[:, 0]
    limit = float(np.sort(peak_N)[-2:].mean())
    done = embed(Deadly(limit), str(shards), str(tmp_path / "z.parquet"), unit_samples=4, max_bad_fraction=0.5)
    (reject,) = pq.read_table(done.rejects_url).to_pylist()
    assert reject["key"] == table["key"][int(peak_N.argmax())].as_py() and "dies of it" in reject["reason"]
    assert done.num_samples == NUM_CLIPS - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "z.csv"}, r"ends in .parquet"),
        ({"shards": "none"}, r"INPUT .*none\": no such folder"),
        ({"model": "none"}, "nothing there"),
        ({"out": "foreign.parquet"}, "did not write"),
        ({"out": "folder.parquet"}, "a folder"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    model: str, shards: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table({"thesis": ["years of work"]}), tmp_path / "foreign.parquet")
    (tmp_path / "folder.parquet").mkdir()
    given = {name: str(tmp_path / value) for name, value in arguments.items()}
    before = sorted(tmp_path.rglob("*"))
    for fresh in (False, True):
        with pytest.raises(InputError, match=message):
            embed(**{"model": model, "shards": str(shards), "out": str(tmp_path / "z.parquet"), "fresh": fresh} | given)
    assert sorted(tmp_path.rglob("*")) == before
