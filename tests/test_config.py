"""Configs: one tree, one way to change it, and errors that name the key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleaudio.config import Config, dump, known_keys, load, override, parse_overrides, validate
from scaleaudio.errors import InputError
from scaleaudio.trees import differences

SHIPPED = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALL: dict[str, Any] = {"name": "small", "data": {"url": "shards", "global_batch": 16, "lanes": 4}}


def changed(**keys: Any) -> Config:
    return validate(override(SMALL, keys), "small.yaml")


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        validate(override(SMALL, changes), "small.yaml")
    message = str(caught.value)
    assert message.startswith("small.yaml: ") and "\n" not in message
    return message.removeprefix("small.yaml: ")


# Overrides.


def test_an_override_sets_one_dotted_key_and_leaves_the_given_tree_alone() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert override(tree, {"a.b": 5, "e.f.g": 6}) == {"a": {"b": 5, "c": 2}, "d": 3, "e": {"f": {"g": 6}}}
    assert tree == {"a": {"b": 1, "c": 2}, "d": 3}


def test_an_override_reaches_into_what_was_switched_off() -> None:
    assert override({"views": {"mixup": None}}, {"views.mixup.ratio": 0.1}) == {"views": {"mixup": {"ratio": 0.1}}}


def test_a_strength_can_be_overridden_where_the_file_says_nothing_of_negatives() -> None:
    config = changed(**{"negatives.frequency_strength": 0.3})
    assert config.negatives.kind == "hardest_of_k" and config.negatives.frequency_strength == 0.3


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("k=1e-3", 0.001),
        ("k=1E3", 1000.0),
        ("k=3", 3),
        ("k=.5", 0.5),
        ("k=[8, 16]", [8, 16]),
        ("k=null", None),
        ("k=true", True),
        ("k=shards/a=b", "shards/a=b"),
        ("k=nan", "nan"),
        ("k=s3://bucket/x?region=r", "s3://bucket/x?region=r"),
        ("k=", None),
    ],
)
def test_values_on_the_command_line_are_read_as_yaml_with_numbers_as_people_write_them(word: str, value: Any) -> None:
    found = parse_overrides([word])["k"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("word", ["schedule.steps", "=3", "k=[1", "k={a: b: c}"])
def test_a_word_that_sets_nothing_is_refused_by_name(word: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_overrides([word])
    assert repr(word) in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_in_a_file_may_be_written_as_1e_minus_3(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("name: small\ndata: {url: shards}\nschedule: {learning_rate: 1e-3}\n")
    assert load(path).schedule.learning_rate == 0.001
    assert load(path, parse_overrides(["schedule.learning_rate=2e-3"])).schedule.learning_rate == 0.002


# Round trip.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": {"kind": "byol"}, "encoder": {"kind": "audio_ntt"}, "negatives": {"kind": "none"}},
        {"views.mixup": None, "launch.workers": 3, "name": "grün", "data.url": "s3://b/k?region=r"},
    ],
)
def test_what_is_dumped_loads_as_the_same_config(changes: dict[str, Any], tmp_path: Path) -> None:
    config = changed(**changes)
    (tmp_path / "dumped.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "dumped.yaml") == config


def test_a_dump_spells_every_default_out() -> None:
    tree = yaml.safe_load(dump(changed()))
    assert tree["negatives"]["num_candidates"] == 4 and tree["schedule"]["warmup_steps"] == 50


def test_differences_name_each_dotted_key_with_both_values() -> None:
    one, other = ({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 3, "c": [1]}, "e": 4})
    assert differences(one, other) == ["a.b: 1, 3", "d: 2, None", "e: None, 4"]
    assert differences(one, one) == []


# Refusals.


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("seeed", "seed"),
        ("negatives.frequency_strenght", "negatives.frequency_strength"),
        ("encoder.widhts", "encoder.widths"),
        ("learning_rate", "schedule.learning_rate"),
        ("data.clip_seconds", "clip_seconds"),
        ("objective.projector.norms", "objective.projector.norm"),
        ("views.mixup.ration", "views.mixup.ratio"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, nearest: str) -> None:
    assert refusal({key: 1}) == f"unknown key {key!r} (nearest known key: {nearest!r})"


def test_a_key_like_no_other_is_refused_without_a_guess() -> None:
    assert refusal({"xyzzy": 1}) == "unknown key 'xyzzy'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "many"}, "seed 'many': input should be a valid integer"),
        ({"launch.workers": "many"}, "launch.workers 'many': input should be 'auto'"),
        ({"encoder.widths": [8, "x"]}, "encoder.widths.1 'x': input should be a valid integer"),
        ({"data.url": None}, "data: expected url (one folder of shards) or sources (several by name), and not both"),
        ({"name": "a/b"}, "name 'a/b': string should match pattern"),
        ({"encoder.kind": "nope"}, "encoder {'kind': 'nope'}: input tag 'nope'"),
        ({"negatives": {"kind": "none", "time_strength": 0.1}}, "negatives.time_strength: negatives of kind 'none'"),
        ({"data.cache_gb": math.inf}, "data.cache_gb inf: input should be a finite number"),
        ({"data.chunk_samples": 10**30}, "data.chunk_samples 1000000000000000000000000000000: input should be less"),
        ({"data.window_samples": 10**30}, "data.window_samples 1000000000000000000000000000000: input should be less"),
        ({"data.stall_seconds": 1e300}, "data.stall_seconds 1e+300: input should be less than or equal to 1000000"),
        ({"data.fetch_ahead": 10**6}, "data.fetch_ahead 1000000: input should be less than or equal to 1000"),
        ({"data.lanes": 3}, "data: lanes 3 does not divide global_batch 16"),
        (
            {"data.lanes": 16, "views.mixup": None, "objective.embedding": {}},
            "leave 1 clip a lane: objective.embedding compares with other clips of the lane. Halve data.lanes",
        ),
        ({"objective.negative_on": "both"}, "objective.negative_on both: the embeddings are not compared"),
        ({"data.lanes": 16}, "data.lanes 16 of data.global_batch 16 leave 1 clip a lane: mixup needs a partner"),
        ({"negatives.time_strength": 0.05}, "negatives.time_strength 0.05: inside the dead zone"),
        ({"negatives.time_strength": 0.9}, "negatives.time_strength 0.9: time_reversal cannot move patterns that far"),
        ({"frontend.num_mels": 20, "encoder.kind": "audio_ntt"}, "frontend.num_mels 20: audio_ntt needs"),
        ({"train.compile": "default", "launch.zero_stage": 3}, "train.compile default: not with launch.zero_stage 3"),
        ({"schedule.steps": 10}, "schedule: warmup_steps 50: expected fewer than steps (10)"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(changes)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match=r"x\.yaml: name: this key is required; data: this key is required"):
        validate({}, "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as a config"),
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"", "expected a mapping of keys"),
        (b"- a\n- b\n", "expected a mapping of keys .* got list"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(text: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=rf"broken\.yaml: {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        changed().seed = 3


def test_known_keys_are_those_of_every_kind() -> None:
    known = set(known_keys(Config))
    assert {"seed", "encoder.widths", "encoder.dropout", "objective.margin", "objective.temperature"} <= known
