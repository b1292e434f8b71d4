"""Checkpoints: whole or not there, whichever process wrote them and wherever they lie."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from servers import away
from tiny import BYOL, batch, config
from torch import Tensor

from scaleaudio import checkpoint
from scaleaudio.checkpoint import Meta
from scaleaudio.errors import InputError
from scaleaudio.train import OptimizerConfig, PlainEngine
from scaleaudio.types import World


@pytest.fixture(scope="module")
def engine() -> PlainEngine:
    trained = PlainEngine(config(BYOL).build(), OptimizerConfig())
    trained.step(batch(trained.task.config))
    return trained


def save(run: Path, engine: PlainEngine, step: int, score: float | None = None) -> Path:
    return Path(checkpoint.save(str(run), engine, Meta(step, {"seed": 3}, {"lanes": 4}, score=score)))


def newest(run: Path | str) -> tuple[Meta, Mapping[str, Tensor], list[str]]:
    found = checkpoint.newest(str(run))
    assert found is not None
    return found


def test_what_is_read_is_what_was_written(engine: PlainEngine, tmp_path: Path) -> None:
    url = save(tmp_path, engine, 7, score=0.5)
    assert url == tmp_path / "checkpoints" / "step-00000007"
    meta, tensors, torn = newest(tmp_path)
    assert (meta.step, meta.config, meta.fingerprint, meta.score) == (7, {"seed": 3}, {"lanes": 4}, 0.5)
    expected = dict(engine.tensors())
    assert tensors.keys() == expected.keys() and not torn
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert {p.name for p in url.iterdir()} == {"meta.json", "part-00000-of-00001.safetensors"}


def test_the_newest_is_the_highest_step_and_no_run_has_none(engine: PlainEngine, tmp_path: Path) -> None:
    assert checkpoint.newest(str(tmp_path / "nothing")) is None
    for step in (900, 1000, 20):
        save(tmp_path, engine, step)
    assert [checkpoint.step_of(url) for url in checkpoint.list_checkpoints(str(tmp_path))] == [20, 900, 1000]
    assert newest(tmp_path)[0].step == 1000


def test_a_folder_without_meta_is_no_checkpoint(engine: PlainEngine, tmp_path: Path) -> None:
    save(tmp_path, engine, 1)
    (save(tmp_path, engine, 2) / "meta.json").unlink()
    meta, _, passed = newest(tmp_path)
    assert meta.step == 1
    assert len(passed) == 1 and "step-00000002: torn checkpoint passed over (no meta.json" in passed[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


PART = "part-00000-of-00001.safetensors"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (PART, cut, "its sha256 is not meta.json's"),
        (PART, flip, "its sha256 is not meta.json's"),
        (PART, Path.unlink, PART),
        ("meta.json", cut, "JSONDecodeError"),
        ("meta.json", lambda path: path.write_bytes(b'{"\x80": 1}'), "UnicodeDecodeError"),
        ("meta.json", lambda path: path.write_text("{}"), "KeyError"),
        ("meta.json", lambda path: path.write_text("[]"), "TypeError"),
    ],
)
def test_a_torn_checkpoint_is_passed_over_and_named(
    name: str, damage: Any, message: str, engine: PlainEngine, tmp_path: Path
) -> None:
    save(tmp_path, engine, 1)
    damage(save(tmp_path, engine, 2) / name)
    meta, _, torn = newest(tmp_path)
    assert meta.step == 1
    assert len(torn) == 1 and "step-00000002: torn checkpoint passed over" in torn[0] and message in torn[0]
    save(tmp_path, engine, 3)
    checkpoint.prune(str(tmp_path), keep_last=1, keep_best=1)  # does not stumble over it either
    assert newest(tmp_path)[0].step == 3


def test_a_run_whose_checkpoints_are_all_torn_is_refused_rather_than_begun_anew(
    engine: PlainEngine, tmp_path: Path
) -> None:
    cut(save(tmp_path, engine, 1) / PART)
    with pytest.raises(InputError, match=r"no checkpoint is whole .* --fresh"):
        checkpoint.newest(str(tmp_path))


def test_a_newer_format_is_refused_and_not_passed_over(engine: PlainEngine, tmp_path: Path) -> None:
    save(tmp_path, engine, 1)
    path = save(tmp_path, engine, 2) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2, "new_key": 1}))
    with pytest.raises(
        InputError, match=r"step-00000002: format_version 2, this scaleaudio reads up to 1\. Upgrade it"
    ):
        checkpoint.newest(str(tmp_path))


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [(1, 0, [5]), (2, 0, [4, 5]), (1, 1, [2, 5]), (1, 2, [2, 3, 5]), (9, 1, [1, 2, 3, 4, 5]), (1, 9, [1, 2, 3, 5])],
)
def test_pruning_keeps_the_last_and_the_best(
    keep_last: int, keep_best: int, kept: list[int], engine: PlainEngine, tmp_path: Path
) -> None:
    for step, score in enumerate([0.1, 0.9, 0.8, None, 0.05], start=1):
        save(tmp_path, engine, step, score)
    checkpoint.prune(str(tmp_path), keep_last, keep_best)
    assert [checkpoint.step_of(url) for url in checkpoint.list_checkpoints(str(tmp_path))] == kept
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in kept]


def test_a_folder_that_is_no_checkpoint_has_no_step() -> None:
    assert checkpoint.step_of("s3://bucket/run/checkpoints/step-00000012?region=eu-west-1") == 12
    with pytest.raises(InputError, match="expected a checkpoint folder such as checkpoints/step-00001000"):
        checkpoint.step_of("runs/quickstart")


# Object stores.


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a run on an S3 server, which it names in its query."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        place = {"endpoint_override": f"{host}:{port}", "scheme": "http"}
        fs.S3FileSystem(**place, allow_bucket_creation=True, region="us-east-1").create_dir("runs")
        yield "s3://runs/one?" + "&".join(f"{key}={value}" for key, value in place.items())
    finally:
        server.stop()


def test_checkpoints_in_an_object_store_are_found_again(bucket: str, engine: PlainEngine) -> None:
    for step in (1, 2):
        checkpoint.save(bucket, engine, Meta(step, {}, {}))
    checkpoint.prune(bucket, keep_last=1, keep_best=0)
    assert newest(bucket)[0].step == 2 and len(checkpoint.list_checkpoints(bucket)) == 1


@pytest.mark.slow  # half a minute, nearly all of it waiting
def test_storage_that_is_away_for_a_while_is_waited_for(
    bucket: str, engine: PlainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither makes a torn checkpoint of a whole one, nor costs the one that is there."""
    bucket = bucket.replace("/one", "/other")
    checkpoint.save(bucket, engine, Meta(1, {}, {}))
    address, port = re.findall(r"endpoint_override=([\d.]+):(\d+)", bucket)[0]
    with away(int(port)) as behind:
        url = bucket.replace(f"{address}:{port}", f"127.0.0.1:{behind.port}")
        monkeypatch.setattr(checkpoint, "PATIENCE_SECONDS", 0.5)
        with pytest.raises(OSError, match="checkpoint not written"):
            checkpoint.save(url, engine, Meta(2, {}, {}), patience_seconds=0.5)
        with pytest.raises(OSError, match="runs"):
            checkpoint.newest(url)
        threading.Timer(2, behind.come_back).start()
        began = time.monotonic()
        checkpoint.save(url, engine, Meta(3, {}, {}), patience_seconds=60)
        assert time.monotonic() - began > 1.9
    assert [checkpoint.step_of(url) for url in checkpoint.list_checkpoints(bucket)] == [1, 3]
    assert newest(bucket)[0].step == 3 and newest(bucket)[2] == []


# Several workers.


def save_where_it_can_and_where_it_cannot(world: World, folder: Path) -> dict[str, Any]:
    engine = PlainEngine(config(BYOL).build(world), OptimizerConfig())
    errors = []
    for run in ("whole", "part 1 blocked", "meta blocked"):
        try:
            checkpoint.save(str(folder / run), engine, Meta(1, {}, {}))
            errors.append("")
        except OSError as error:
            errors.append(str(error))
    return {"errors": errors}


def test_two_workers_write_one_checkpoint_or_both_fail(tmp_path: Path) -> None:
    for run, name in (("part 1 blocked", "part-00001-of-00002.safetensors"), ("meta blocked", "meta.json")):
        (tmp_path / run / "checkpoints" / "step-00000001" / name).mkdir(parents=True)  # cannot be written over
    found = ranks.run(__file__, "save_where_it_can_and_where_it_cannot", size=2, folder=tmp_path)
    for part in found:
        whole, part_blocked, meta_blocked = part["errors"]
        assert whole == ""
        for error in (part_blocked, meta_blocked):
            assert "step-00000001: checkpoint not written" in error
    for run in ("part 1 blocked", "meta blocked"):
        assert checkpoint.newest(str(tmp_path / run)) is None

    meta, tensors, _ = newest(tmp_path / "whole")
    assert [p.name for p in meta.parts] == ["part-00000-of-00002.safetensors", "part-00001-of-00002.safetensors"]
    expected = dict(PlainEngine(config(BYOL).build(), OptimizerConfig()).tensors())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_disk_that_cannot_be_written_is_an_os_error(engine: PlainEngine, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoint not written"):
        save(tmp_path, engine, 1)
