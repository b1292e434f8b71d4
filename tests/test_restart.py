"""A restart by several workers: each reads its share of the newest checkpoint, and they agree on which that is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import safetensors.torch
import torch
import torch.distributed as dist
from servers import s3_server
from tiny import BYOL, batch, config

from scaleaudio import checkpoint
from scaleaudio.checkpoint import Meta
from scaleaudio.data import storage
from scaleaudio.train import OptimizerConfig, PlainEngine
from scaleaudio.types import World

SIZE = 3
PARTS = [f"part-{rank:05d}-of-{SIZE:05d}.safetensors" for rank in range(SIZE)]
NEWEST = "checkpoints/step-00000002"
DEAD = "http://127.0.0.1:9"
FEW = {"parameter.weight": torch.arange(4.0), "buffer.count": torch.tensor(3)}


def damage(run: Path, *names: str) -> None:
    for name in names:
        path = run / NEWEST / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def tear(folder: Path) -> None:
    """The same run, torn in several ways."""
    whole = folder / "whole"
    for name in ("last part", "two parts", "no part", "meta", "all"):
        shutil.copytree(whole, folder / name)
    damage(folder / "last part", PARTS[2])
    damage(folder / "two parts", PARTS[2], PARTS[1])
    (folder / "no part" / NEWEST / PARTS[1]).unlink()
    damage(folder / "meta", "meta.json")
    damage(folder / "all", PARTS[1])
    (folder / "all" / "checkpoints" / "step-00000001" / PARTS[2]).unlink()
    for here in ("one mount", "other mount", "first's mount", "first's meta"):
        shutil.copytree(whole, folder / here / "run")
    damage(folder / "other mount" / "run", PARTS[2])
    damage(folder / "first's mount" / "run", PARTS[0])
    damage(folder / "first's meta" / "run", "meta.json")


def trained(world: World) -> PlainEngine:
    engine = PlainEngine(config(BYOL).build(world), OptimizerConfig())
    engine.step(batch(engine.task.config, 0, world))
    return engine


def read(run: str, world: World | None = None) -> dict[str, Any]:
    """What is found, or why nothing is; and which files this worker asked for."""
    asked: list[str] = []
    read_bytes, list_files = storage.read_bytes, storage.list_files
    storage.read_bytes = lambda url: asked.append(url.rpartition("/")[2]) or read_bytes(url)  # type: ignore[func-returns-value]
    storage.list_files = lambda url, suffix="": asked.append("listing") or list_files(url, suffix)  # type: ignore[func-returns-value]
    try:
        found = checkpoint.newest(run, world or World())
        said = {"step": found and found[0].step, "passed": found and found[2]}
        return said | {"tensors": dict(found[1]) if found else {}, "asked": asked}
    except (OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "asked": asked}
    finally:
        storage.read_bytes, storage.list_files = read_bytes, list_files


def restart(world: World, folder: Path) -> dict[str, Any]:
    checkpoint.PATIENCE_SECONDS = 0.5
    engine, few = trained(world), SimpleNamespace(world=world, tensors=lambda: iter(FEW.items()))
    for run in (str(folder / "whole"), "s3://bucket/run"):
        for step in (1, 2):
            checkpoint.save(run, engine, Meta(step, {}, {}))
    checkpoint.save(str(folder / "few"), few, Meta(2, {}, {}))  # type: ignore[arg-type]
    if world.rank == 0:
        tear(folder)
    dist.barrier()
    runs = ("whole", "last part", "two parts", "no part", "meta", "all", "nothing", "one's", "few")
    found: dict[str, Any] = {run: read(str(folder / run), world) for run in runs}
    found["engine"] = {name: tensor.clone() for name, tensor in engine.tensors()}
    os.chdir(folder / ("other mount" if world.rank == 2 else "one mount"))
    found["mounts"] = read("run", world)
    for mount in ("first's mount", "first's meta"):
        os.chdir(folder / (mount if world.rank == 0 else "one mount"))
        found[mount] = read("run", world)
    if world.rank == 1:
        os.environ["AWS_ENDPOINT_URL"] = DEAD
    found["away"] = read("s3://bucket/run", world)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restart")


@pytest.fixture(scope="module")
def three(folder: Path) -> Iterator[list[dict[str, Any]]]:
    checkpoint.save(str(folder / "one's"), trained(World()), Meta(2, {}, {}))
    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "bucket"):
        yield ranks.run(__file__, "restart", size=SIZE, folder=folder)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], t) for name, t in expected.items())


def test_each_part_is_read_by_one_worker_and_what_it_says_of_itself_by_the_first(three: list[dict[str, Any]]) -> None:
    asked = [part["whole"]["asked"] for part in three]
    assert asked == [["listing", "meta.json", PARTS[0]], [PARTS[1]], [PARTS[2]]]
    asked = [part["one's"]["asked"] for part in three]
    assert asked == [["listing", "meta.json", "part-00000-of-00001.safetensors"], [], []]


def test_all_have_every_tensor_that_was_written_by_however_many(folder: Path, three: list[dict[str, Any]]) -> None:
    for part in three:
        assert part["whole"]["step"] == 2 and same(part["whole"]["tensors"], three[0]["engine"])
        assert same(part["one's"]["tensors"], read(str(folder / "one's"))["tensors"])
    assert same(read(str(folder / "whole"))["tensors"], three[0]["engine"])


@pytest.mark.parametrize("run", ["whole", "last part", "two parts", "no part", "meta", "all", "nothing"])
def test_all_find_and_pass_over_what_one_worker_alone_would(
    run: str, folder: Path, three: list[dict[str, Any]]
) -> None:
    alone = read(str(folder / run))
    for part in three:
        assert [part[run].get(key) for key in ("step", "passed", "error")] == [
            alone.get(key) for key in ("step", "passed", "error")
        ]
    if run in ("last part", "two parts", "no part", "meta"):
        assert alone["step"] == 1 and len(alone["passed"]) == 1
    if run == "all":
        assert alone["error"].startswith("InputError") and "no checkpoint is whole" in alone["error"]


@pytest.mark.parametrize(
    ("where", "reader", "witness", "why"),
    [
        ("mounts", 2, 0, f"TornError: run/{NEWEST}/{PARTS[2]}"),
        ("first's mount", 0, 1, f"TornError: run/{NEWEST}/{PARTS[0]}"),
        ("first's meta", 0, 1, "JSONDecodeError: "),
    ],
)
def test_what_one_machine_alone_cannot_read_is_no_torn_checkpoint(
    where: str, reader: int, witness: int, why: str, three: list[dict[str, Any]]
) -> None:
    said = f"OneSidedError: worker {reader} on {socket.gethostname()} cannot read what worker {witness} can: {why}"
    for part in three:
        assert part[where]["error"].startswith(said)


def test_storage_that_does_not_answer_one_is_an_os_error_on_all(three: list[dict[str, Any]]) -> None:
    errors = {part["away"]["error"] for part in three}
    assert len(errors) == 1 and re.match(r"OSError: .*NETWORK_CONNECTION", errors.pop())


def test_a_worker_without_tensors_writes_no_part(folder: Path, three: list[dict[str, Any]]) -> None:
    files = {path.name for path in (folder / "few" / NEWEST).iterdir()}
    assert files == {"meta.json", *PARTS[:2]}
    assert all(same(part["few"]["tensors"], FEW) for part in three)


def test_empty_parts_of_older_checkpoints_are_read(folder: Path, three: list[dict[str, Any]]) -> None:
    empty = safetensors.torch.save({})
    older = folder / "few" / NEWEST
    (older / PARTS[2]).write_bytes(empty)
    meta = json.loads((older / "meta.json").read_text())
    meta["parts"].append({"name": PARTS[2], "num_bytes": len(empty), "sha256": hashlib.sha256(empty).hexdigest()})
    (older / "meta.json").write_text(json.dumps(meta))
    assert same(read(str(folder / "few"))["tensors"], FEW)


def test_parts_differ_by_no_more_than_the_largest_tensor(folder: Path, three: list[dict[str, Any]]) -> None:
    held = [
        sum(t.nbytes for t in safetensors.torch.load_file(folder / "whole" / NEWEST / name).values()) for name in PARTS
    ]
    assert max(held) - min(held) <= max(tensor.nbytes for tensor in three[0]["engine"].values())
