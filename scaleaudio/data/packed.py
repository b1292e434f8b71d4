"""Rows of a table compressed in memory, in blocks: many are kept in little room, and a few of them soon looked up."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

BLOCK_ROWS = 1 << 10


def pack(table: pa.Table) -> bytes:
    """The rows of `table`, compressed, in blocks of BLOCK_ROWS."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        # In one piece first: where the table was cut, a block would end too.
        file.write_table(table.combine_chunks(), max_chunksize=BLOCK_ROWS)
    return bytes(sink.getvalue())  # a copy: the buffer has room for more


def unpack(packed: bytes, block: int = 0) -> pa.RecordBatch:
    """One block of what was packed; the others stay compressed."""
    with pa.ipc.open_file(packed) as file:
        return file.get_batch(block)


def unpack_rows(packed: bytes, first: int, stop: int) -> list[dict[str, Any]]:
    """Rows `first` to `stop` - 1 of what was packed; only their blocks are decompressed."""
    blocks = [unpack(packed, block) for block in range(first // BLOCK_ROWS, (stop - 1) // BLOCK_ROWS + 1)]
    skipped = first % BLOCK_ROWS
    found: list[dict[str, Any]] = []
    for block in blocks:
        found += block.slice(skipped, stop - first - len(found)).to_pylist()
        skipped = 0
    return found
