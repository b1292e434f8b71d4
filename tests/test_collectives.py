"""What workers tell each other: to one alone, from one to all, and nothing where nothing is to be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from scaleaudio.bench.scaling import Sent
from scaleaudio.collectives import Shared, any_rank, by_first, items_to_first, to_first
from scaleaudio.errors import InputError
from scaleaudio.types import World

CPU = torch.device("cpu")
TENSORS = {
    "matrix": torch.arange(6.0).view(2, 3),
    "count": torch.tensor(7),
    "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 4),
}


def fail() -> None:
    raise InputError("the lease is another's")


def raised(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def told(world: World, folder: Path) -> dict[str, Any]:
    items = [f"{world.rank}-{number}" for number in range(300 * world.rank)]
    with Sent() as quiet:
        no_items = items_to_first([], world, CPU)
        nobody = any_rank(False, world, CPU)
    own = dict(list(TENSORS.items())[world.rank :: world.size])
    return {
        "by first": by_first(lambda: {"step": 3 + world.rank}, world),
        "raised": raised(lambda: by_first(fail, world)),
        "to first": to_first(world.rank**2, world),
        "anybody": any_rank(world.rank == 1, world, CPU),
        "items": items_to_first(items, world, CPU),
        "quiet": [no_items, nobody, sum(quiet.num_bytes.values())],
        "tensors": looked_up(Shared(own, world)),
    }


def looked_up(shared: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What asking gives: first for names alone, by one rank or another, then for tensors."""
    with Sent() as sent:
        names = [*shared], len(shared), "count" in shared, "other" in shared
    return {"names": names, "sent for names": sum(sent.num_calls.values()), "tensors": dict(shared.items())}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    yield ranks.run(__file__, "told", size=3, folder=tmp_path_factory.mktemp("told"))


def test_what_the_first_finds_all_are_told_and_what_it_raises_all_raise(three: list[dict[str, Any]]) -> None:
    assert [part["by first"] for part in three] == [{"step": 3}] * 3
    assert [part["raised"] for part in three] == ["InputError: the lease is another's"] * 3


def test_what_each_has_to_say_only_the_first_hears(three: list[dict[str, Any]]) -> None:
    assert [part["to first"] for part in three] == [[0, 1, 4], [], []]
    assert [part["anybody"] for part in three] == [True] * 3
    items, *others = [part["items"] for part in three]
    assert sorted(items) == sorted(f"{rank}-{number}" for rank in range(3) for number in range(300 * rank))
    assert others == [[], []]


def test_of_nothing_to_say_a_number_travels(three: list[dict[str, Any]]) -> None:
    assert [part["quiet"] for part in three] == [[[], False, 8]] * 3


@pytest.mark.parametrize("rank", [None, 0, 1, 2], ids=["alone", "0", "1", "2"])
def test_a_tensor_that_one_holds_all_get_bit_for_bit_by_its_name(
    rank: int | None, three: list[dict[str, Any]]
) -> None:
    found = looked_up(Shared(TENSORS, World())) if rank is None else three[rank]["tensors"]
    names, number, has_count, has_other = found["names"]
    assert (set(names), number, has_count, has_other) == (set(TENSORS), 5, True, False)
    assert names == (list(TENSORS) if rank is None else three[0]["tensors"]["names"][0])
    assert found["sent for names"] == 0
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(found["tensors"][name], tensor, rtol=0, atol=0)
        assert found["tensors"][name].dtype == tensor.dtype
