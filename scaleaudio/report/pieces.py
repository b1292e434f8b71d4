"""The lines of metrics.jsonl: one file, or in an object store, where nothing can be appended, pieces of it.

There metrics.jsonl holds the newest lines, and metrics-STEP.jsonl those before, up to the step in its name: so a
checkpoint of a run of weeks copies what is new, not a gigabyte.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from scaleaudio.data import storage

METRICS = "metrics.jsonl"
PIECE_BYTES = 32 << 20
_PIECE = re.compile(r"/metrics-(\d{12})\.jsonl(?:\?.*)?$")


class Line(NamedTuple):
    """A line as it is on disk, and the record in it; None where it is none."""

    text: bytes
    record: dict[str, Any] | None


def piece_name(last_step: int) -> str:
    """The name of a piece whose last line is of that step."""
    return f"metrics-{last_step:012d}.jsonl"


def last_step(url: str) -> int | None:
    """The last step of a piece; None for the newest, which still grows."""
    found = _PIECE.search(url)
    return int(found[1]) if found else None


def piece_urls(run_url: str) -> list[str]:
    """The pieces of a run's metrics, oldest first."""
    here = storage.is_local(run_url)
    closed = [] if here else [url for url in storage.list_files(run_url, ".jsonl") if last_step(url) is not None]
    newest = storage.join(run_url, METRICS)
    return sorted(closed) + ([newest] if storage.exists(newest) else [])


def read_lines(url: str) -> Iterator[Line]:
    """The lines of a file, one at a time; a last one that a crash cut off is left out."""
    with storage.open_input(url) as raw, io.BufferedReader(raw, 1 << 22) as file:
        for text in file:
            record = record_of(text)
            if record is not None or text.endswith(b"\n"):
                yield Line(text, record)


def tail(url: str, num_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The records in the last `num_bytes` of a file, however long it is."""
    with storage.open_input(url) as file:
        start = max(0, file.size() - num_bytes)
        file.seek(start)
        lines = bytes(file.read()).split(b"\n")
    whole = lines[1:] if start else lines
    return [record for line in whole if (record := record_of(line)) is not None]


def record_of(text: bytes) -> dict[str, Any] | None:
    """The record that a line spells out, where it is one with a sensible step."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step", 0), int) else None
