"""What an index may call its shards: each another name, none that holds a credential or would run a shell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scaleaudio.data.addresses import check_no_credentials
from scaleaudio.errors import InputError


def check_names(table_url: str, first_row: int, batch: pa.RecordBatch) -> NDArray[np.int64]:
    """A hash of each shard's name in `batch`, whose first row is row `first_row` of the index (from 0).

    Raises:
        InputError: naming the first row that names what it must not, without repeating that.
    """
    data = batch["samples"].buffers()[2]
    if data and b"://" in data.to_pybytes():  # asked of all at once, which is quick; there are few, or none
        for row, name in enumerate(batch["samples"].to_pylist(), start=first_row):
            if "://" in name:
                raise InputError(f"{table_url}: row {row}: its sample table is a URL, not a name beside the index")
    names = batch["shard"].to_pylist()
    for row, name in enumerate(names, start=first_row):
        if not name or ":" in name:
            _check_name(table_url, row, name)
    return np.fromiter(map(hash, names), np.int64, len(names))


def _check_name(table_url: str, row: int, name: str) -> None:
    if not name:
        raise InputError(f"{table_url}: row {row} names no shard. Index anew")
    if name.lower().startswith("pipe:"):
        raise InputError(f"{table_url}: row {row} is a pipe: address, which would run a shell. Name the tar itself")
    try:
        check_no_credentials(name)
    except InputError as error:
        raise InputError(f"{table_url}: row {row}: {error}") from None


def check_unique(table_url: str, hashes: Sequence[NDArray[np.int64]], names: Iterable[str]) -> None:
    """Refuses an index that names a shard twice; `names` (of all rows) are only read where two have the same hash.

    Raises:
        InputError: naming such a shard.
    """
    ordered = np.concatenate([np.zeros(0, np.int64), *hashes])
    ordered.sort()
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    for name, count in Counter(name for name in names if hash(name) in repeated).items():
        if count > 1:
            raise InputError(
                f"{table_url}: {count} rows name the shard {name}; its clips would count double. Index anew"
            )
