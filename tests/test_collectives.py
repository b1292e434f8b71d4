"""What workers tell each other: to one alone, from one to all, and nothing where nothing is to be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from scaleaudio.bench.scaling import Sent
from scaleaudio.collectives import Shared, any_rank, gather_items, gather_to_rank_0, on_rank
from scaleaudio.errors import InputError
from scaleaudio.launch.interval import Interval
from scaleaudio.train import Stepped, StepReport
from scaleaudio.types import Losses, World

CPU = torch.device("cpu")
TENSORS = {
    "matrix": torch.arange(6.0).view(2, 3),
    "count": torch.tensor(7),
    "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 4),
}
WRONG: list[dict[int, float]] = [{}, {3: math.nan}, {1: math.inf, 2: math.nan}]  # of each rank


def fail() -> None:
    raise InputError("the lease is another's")


def fail_unreadably() -> None:
    class Odd(Exception):
        """Arrives nowhere: its class has no place to be found at."""

    raise Odd("a lock")


def raised(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def interval(wrong: dict[int, float]) -> Interval:
    """Four steps, of which some have another loss than 1."""
    made = Interval()
    for step in range(4):
        losses = Losses(torch.tensor(wrong.get(step, 1.0)), {}, torch.empty(0))
        made.add(StepReport(step, Stepped(losses, torch.tensor(1.0)), 0.1, 0, 0.1, (f"clip-{step}",), ()))
    return made


def told(world: World, folder: Path) -> dict[str, Any]:
    items = [f"{world.rank}-{number}" for number in range(300 * world.rank)]
    with Sent() as quiet:
        no_items = gather_items([], world, CPU)
        nobody = any_rank(False, world, CPU)
        all_well = interval({}).first_wrong(world, CPU)
    own = dict(list(TENSORS.items())[world.rank :: world.size])
    return {
        "by first": on_rank(lambda: {"step": 3 + world.rank}, world),
        "raised": raised(lambda: on_rank(fail, world)),
        "raised unreadably": raised(lambda: on_rank(fail_unreadably, world, 1)),
        "to first": gather_to_rank_0(world.rank**2, world),
        "anybody": any_rank(world.rank == 1, world, CPU),
        "items": gather_items(items, world, CPU),
        "wrong": list(interval(WRONG[world.rank]).first_wrong(world, CPU) or []),
        "quiet": [no_items, nobody, all_well, sum(quiet.num_bytes.values())],
        "tensors": looked_up(Shared(own, world)),
    }


def looked_up(shared: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What asking gives: first for names alone, by one rank or another, then for tensors."""
    with Sent() as sent:
        names = [*shared], len(shared), "count" in shared, "other" in shared
    return {"names": names, "sent for names": sum(sent.num_calls.values()), "tensors": dict(shared.items())}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(__file__, "told", size=3, folder=tmp_path_factory.mktemp("told"))


def test_what_the_first_finds_all_are_told_and_what_it_raises_all_raise(three: list[dict[str, Any]]) -> None:
    assert [part["by first"] for part in three] == [{"step": 3}] * 3
    assert [part["raised"] for part in three] == ["InputError: the lease is another's"] * 3
    assert [part["raised unreadably"] for part in three] == ["RuntimeError: Odd: a lock"] * 3


def test_what_each_has_to_say_only_the_first_hears(three: list[dict[str, Any]]) -> None:
    assert [part["to first"] for part in three] == [[0, 1, 4], [], []]
    assert [part["anybody"] for part in three] == [True] * 3
    items, *others = [part["items"] for part in three]
    assert sorted(items) == sorted(f"{rank}-{number}" for rank in range(3) for number in range(300 * rank))
    assert others == [[], []]


def test_the_first_step_that_went_wrong_on_any_rank_is_known_to_all(three: list[dict[str, Any]]) -> None:
    for part in three:
        by_others, step, text = part["wrong"]
        assert (by_others, step) == (False, 1) and "step 1: loss not finite. The clips on this rank were clip-1" in text


def test_of_nothing_to_say_a_number_travels(three: list[dict[str, Any]]) -> None:
    assert [part["quiet"] for part in three] == [[[], False, None, 12]] * 3


@pytest.mark.parametrize("rank", [None, 0, 1, 2], ids=["alone", "0", "1", "2"])
def test_a_tensor_that_one_holds_all_get_bit_for_bit_by_its_name(rank: int | None, three: list[dict[str, Any]]) -> None:
    found = looked_up(Shared(TENSORS, World())) if rank is None else three[rank]["tensors"]
    names, number, has_count, has_other = found["names"]
    assert (set(names), number, has_count, has_other) == (set(TENSORS), 5, True, False)
    assert names == (list(TENSORS) if rank is None else three[0]["tensors"]["names"][0])
    assert found["sent for names"] == 0
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(found["tensors"][name], tensor, rtol=0, atol=0)
        assert found["tensors"][name].dtype == tensor.dtype
