"""Nested mappings, such as a config, by the dotted names of their leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf of `tree` with its dotted key: ("schedule.steps", 400)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """A line "key: one's value, other's value" for each dotted key in which two trees differ."""
    flat_one, flat_other = dict(flatten(one)), dict(flatten(other))
    keys = sorted(flat_one.keys() | flat_other.keys())
    return [f"{k}: {flat_one.get(k)!r}, {flat_other.get(k)!r}" for k in keys if flat_one.get(k) != flat_other.get(k)]
