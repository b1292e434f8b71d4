"""DeepSpeed at every ZeRO stage learns what the plain engine learns, and each takes over from any other.

Everything runs in two processes and then in one: starting them costs more than all the steps.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import INDEPENDENT, INDEPENDENT_BYOL, batches, config

from scaleaudio import checkpoint
from scaleaudio.averaging import average
from scaleaudio.task import TaskConfig
from scaleaudio.train import Engine, OptimizerConfig, PlainEngine, fit
from scaleaudio.types import World

ENGINES = (
    "plain",
    "0",
    "1",
    "2",
    "3",
    "1+",
    "2+",
    "3+",
)  # +: with messages as on GPUs, that leave during the pass back
# Small steps from this seed: elsewhere the last bit of a weight can decide a tie, and with it all that follows.
CALM = {"seed": 3, "schedule.learning_rate": 1e-3}
KINDS = {"infonce": INDEPENDENT | CALM, "byol": INDEPENDENT_BYOL | CALM}
PAIRS = {  # who reads what whom wrote; any two that are not here are joined by a third
    "infonce": [(name, name) for name in ENGINES]
    + [("plain", "1"), ("1", "0"), ("0", "2"), ("2", "3"), ("3", "1"), ("3", "plain")],
    "byol": [("1", "1"), ("1", "3"), ("3", "3")],
}
K, N = 2, 4


def make(name: str, settings: TaskConfig, world: World) -> Engine:
    task, optimizer = settings.build(world), OptimizerConfig(max_grad_norm=0.01)  # clips at every step
    if name == "plain":
        return PlainEngine(task, optimizer)
    from scaleaudio.launch.engine import DeepSpeedEngine

    class AsOnGpus(DeepSpeedEngine):
        def _messages(self) -> dict[str, Any]:
            return {"overlap_comm": True, "reduce_bucket_size": 500}

    return (AsOnGpus if name.endswith("+") else DeepSpeedEngine)(task, optimizer, zero_stage=int(name[0]))


def train(engine: Engine, settings: TaskConfig, start: int, stop: int) -> list[list[float]]:
    """The loss of the whole batch and the norm of its gradient, step by step."""
    found = []
    for report in fit(engine, batches(settings, start, stop, engine.world)):
        loss = report.stepped.losses.total.detach().clone()
        average([loss], engine.world)
        found.append([float(loss), float(report.stepped.grad_norm)])
    return found


def resume(name: str, settings: TaskConfig, world: World, run: Path) -> list[list[float]]:
    engine = make(name, settings, world)
    found = checkpoint.newest(str(run), world)
    assert found is not None
    engine.load(found[1], found[0].step)
    return train(engine, settings, found[0].step, N)


def together(world: World, folder: Path) -> dict[str, Any]:
    """Two workers: every engine trains K steps, writes, and goes on to N; then each reads what each wrote."""
    found: dict[str, Any] = {}
    for kind, changes in KINDS.items():
        settings = config(changes)
        for name in sorted({name for pair in PAIRS[kind] for name in pair}):
            engine = make(name, settings, world)
            first = train(engine, settings, 0, K)
            checkpoint.save(str(folder / f"{kind}-{name}"), engine, checkpoint.Meta(K, {}, {}))
            found[f"{kind} {name}"] = first + train(engine, settings, K, N)
            found[f"{kind} {name} tensors"] = {n: t.clone() for n, t in engine.tensors()}
        for writer, reader in PAIRS[kind]:
            found[f"{kind} {writer} -> {reader}"] = resume(reader, settings, world, folder / f"{kind}-{writer}")
    return found


def alone(world: World, folder: Path) -> dict[str, Any]:
    """One worker goes on from what the two wrote."""
    found: dict[str, Any] = {}
    for kind, writer, reader in (("infonce", "1", "1"), ("infonce", "3", "plain"), ("byol", "3", "2")):
        found[f"{kind} {writer} -> {reader}"] = resume(reader, config(KINDS[kind]), world, folder / f"{kind}-{writer}")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return ranks.run(__file__, "together", size=2, folder=folder)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_zero_stage_takes_the_steps_of_the_plain_engine(kind: str, two: list[dict[str, Any]]) -> None:
    settings = config(KINDS[kind])
    plain = train(make("plain", settings, World()), settings, 0, N)
    assert all(norm > 0.01 for _, norm in plain)
    for part in two:
        for name in {name for pair in PAIRS[kind] for name in pair}:
            close(part[f"{kind} {name}"], plain)


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_takes_over_from_every_other(kind: str, two: list[dict[str, Any]]) -> None:
    for part, (writer, reader) in product(two, PAIRS[kind]):
        close(part[f"{kind} {writer} -> {reader}"], part[f"{kind} {writer}"][K:])


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_takes_over_from_itself_goes_on_bit_for_bit(kind: str, two: list[dict[str, Any]]) -> None:
    for name in {writer for writer, reader in PAIRS[kind] if writer == reader}:
        assert two[0][f"{kind} {name} -> {name}"] == two[0][f"{kind} {name}"][K:]


def test_one_worker_takes_over_from_two(folder: Path, two: list[dict[str, Any]]) -> None:
    for key, found in ranks.run(__file__, "alone", size=1, folder=folder)[0].items():
        close(found, two[0][key.partition(" -> ")[0]][K:])


def test_all_engines_and_workers_end_with_the_same_tensors(two: list[dict[str, Any]]) -> None:
    expected = two[0]["infonce plain tensors"]
    for part, name in product(two, ENGINES):
        tensors = part[f"infonce {name} tensors"]
        assert tensors.keys() == expected.keys()
        for key, tensor in tensors.items():
            assert (tensor - expected[key]).norm() <= 0.01 * expected[key].norm() + 1e-7, f"{name} {key}"


def test_deepspeed_says_nothing_when_it_is_loaded() -> None:
    """Standard output belongs to tables and JSON."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import scaleaudio.launch.engine"], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == ""
