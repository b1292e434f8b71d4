"""The reference of config keys says what the models say."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from scaleaudio import reference as module
from scaleaudio.config import Config, known_keys
from scaleaudio.reference import part_names, reference, undescribed
from scaleaudio.types import Settings


class Inner(Settings):
    """What lies inside. And more.

    A second paragraph.
    """

    kind: Literal["one", "two"] = "one"
    share: Annotated[float, Field(gt=0, le=1, description="of the whole")] = 0.5


class Outer(Settings):
    """The whole."""

    count: Annotated[int | None, Field(ge=1, description="how many | at most")] = None
    inner: Inner = Inner(share=0.25)
    silent: bool = True


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Config", Outer)


@pytest.mark.usefixtures("outer")
def test_type_range_default_and_meaning_come_from_the_model() -> None:
    text = reference()
    assert r"| `count` | integer ≥ 1 or null | `null` | how many \| at most |" in text
    assert "| `inner` | mapping | kind `one` | a part of its own: see `inner` below |" in text
    assert "## `inner` of kind `one` or `two`\n\nWhat lies inside. And more.\n" in text


@pytest.mark.usefixtures("outer")
def test_a_part_has_the_defaults_of_the_place_where_it_is() -> None:
    assert "| `inner.share` | number > 0, ≤ 1 | `0.25` | of the whole |" in reference("inner")


@pytest.mark.usefixtures("outer")
def test_a_key_without_a_meaning_is_found() -> None:
    assert "silent" in undescribed() and "inner.share" not in undescribed()


def test_every_key_that_a_config_may_have_is_in_it_and_described() -> None:
    text = reference()
    assert [key for key in known_keys(Config) if f"| `{key}` |" not in text] == []
    assert undescribed() == []


def test_a_prefix_gives_whole_parts_alone() -> None:
    assert reference("views").count("\n## ") + 1 == 4 and "`data.url`" not in reference("views")
    assert reference("view") == "" and "views.mixup" in part_names()
