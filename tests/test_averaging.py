"""Means over the workers travel while something else is computed, and come out as if they had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor, nn

from scaleaudio import averaging
from scaleaudio.averaging import GradientMean, average
from scaleaudio.bench.scaling import Sent
from scaleaudio.types import World

WIDTH, DEPTH = 8, 4


class Layers(nn.Module):
    """A few layers, one of which nothing depends on; notes what is sent when the pass back has come to each."""

    def __init__(self, sent: Sent) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unused = nn.Linear(WIDTH, WIDTH)
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.sent, self.messages_at = sent, [0] * DEPTH

    def forward(self, input_BD: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            input_BD = layer(input_BD)
            if input_BD.requires_grad:
                input_BD.register_hook(lambda _, number=number: self._note(number))
        return input_BD.square().mean()

    def _note(self, number: int) -> None:
        self.messages_at[number] = self.sent.num_calls.get("allreduce", 0)


def passes(world: World, least_bytes: int) -> dict[str, Any]:
    """Gradients of two passes averaged on the way, and of one averaged after it, and how many messages were sent."""
    averaging._LEAST_BYTES = least_bytes
    input_BD = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(world.rank))
    found: dict[str, Any] = {}
    with Sent() as sent:
        on_the_way = Layers(sent)
        mean = GradientMean(list(on_the_way.parameters()), world)
        for _ in range(2):
            on_the_way.zero_grad()
            before = sent.num_calls.get("allreduce", 0)
            mean.backward(on_the_way(input_BD))
        found["messages"] = sent.num_calls.get("allreduce", 0) - before
        found["messages at"] = [num - before for num in on_the_way.messages_at]
    after = Layers(Sent())
    after(input_BD).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in after.parameters()]
    average(grads, world)
    return found | {"on the way": [p.grad for p in on_the_way.parameters()], "after": grads}


def several(world: World, folder: Path) -> dict[str, Any]:
    return {"layer by layer": passes(world, 4 * WIDTH * (WIDTH + 1)), "at once": passes(world, 1 << 20)}


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(__file__, "several", size=request.param, folder=tmp_path_factory.mktemp("ranks"))


def test_gradients_averaged_during_the_pass_are_those_averaged_after_it(found: list[dict[str, Any]]) -> None:
    for part in found:
        for way in part.values():
            for own, after in zip(way["on the way"], way["after"], strict=True):
                torch.testing.assert_close(own, after)
        for own, first in zip(part["at once"]["on the way"], found[0]["at once"]["on the way"], strict=True):
            assert torch.equal(own, first)


def test_a_layer_s_message_leaves_while_the_pass_goes_on_to_the_layers_below(found: list[dict[str, Any]]) -> None:
    way = found[0]["layer by layer"]
    assert way["messages"] == DEPTH + 1
    assert way["messages at"] == list(reversed(range(DEPTH)))


def test_small_gradients_travel_in_one_message(found: list[dict[str, Any]]) -> None:
    assert found[0]["at once"]["messages"] == 1


def test_one_worker_sends_nothing_and_fills_what_has_no_gradient_with_zeros() -> None:
    way = passes(World(), 1)
    assert way["messages"] == 0
    assert all(torch.equal(own, after) for own, after in zip(way["on the way"], way["after"], strict=True))


def test_one_worker_averages_with_nobody() -> None:
    one = torch.ones(2)
    average([one], World())
    assert torch.equal(one, torch.ones(2))
