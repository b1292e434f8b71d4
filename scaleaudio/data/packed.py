"""Rows of a table compressed in memory, in blocks: many are kept in little room, and a few of them soon looked up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def from_malloc() -> Iterator[None]:
    """Arrow allocates from malloc meanwhile: what its default pool keeps for later is more than what stays in use."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)
