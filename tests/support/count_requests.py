"""What a stream asks of an object store, step by step: `python tests/support/count_requests.py FOLDER`.

FOLDER gets the shards, once. Each row is one epoch of one worker over a real S3 server, behind a gate that counts.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from pyarrow import fs
from servers import Gate, s3_server

from scaleaudio.data.index import ShardIndex
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig, Stream

NUM_SHARDS, NUM_PER_SHARD, RATE_HZ = 256, 128, 8000
URL = "s3://clips/in"


def write_shards(folder: Path) -> None:
    """256 tars of 128 clips of .1 s, with labels."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        with webdataset.TarWriter(str(folder / f"shard-{shard:06d}.tar")) as tar:
            for number in range(NUM_PER_SHARD):
                file = io.BytesIO()
                soundfile.write(file, draws.uniform(-0.5, 0.5, RATE_HZ // 10), RATE_HZ, format="WAV")
                tar.write({"__key__": f"clip-{shard}-{number}", "wav": file.getvalue(), "json": {"label": "x"}})
    make_index(str(folder))


def count(gate: Gate, chunk_samples: int, cache_dir: str | None) -> None:
    """Prints a row for each of two epochs."""
    config = DataConfig(url=URL, global_batch=512, chunk_samples=chunk_samples, cache_dir=cache_dir)
    stream = Stream(config, ShardIndex.load(URL), seed=0, sample_rate_hz=RATE_HZ, crop_frames=RATE_HZ // 20)
    batches, steps = stream.batches(), stream.steps_per_epoch
    for epoch in (1, 2):
        gate.asked.clear()
        assert not [reject for batch in islice(batches, steps) for reject in batch.rejects]
        kinds = Counter(
            "LIST" if "list-type" in path else f"{method} {'table' if '/samples/' in path else path[-3:]}"
            for method, path, _ in gate.asked
        )
        found = [kinds[kind] / steps for kind in ("GET tar", "HEAD tar", "GET table", "HEAD table", "LIST")]
        kilobytes = sum(num_bytes for *_, num_bytes in gate.asked) / steps / 1e3
        cells = "".join(f"{number:8.2f}" for number in (*found, len(gate.asked) / steps, kilobytes))
        print(f"chunk {chunk_samples:3}  cache {cache_dir is not None!s:5}  epoch {epoch}{cells}", flush=True)
    stream.close()


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    shards = Path(sys.argv[1])
    if not shards.exists():
        write_shards(shards)
    names = ("GET tar", "HEAD", "GET tab", "HEAD", "LIST", "all", "kB")
    print(f"{'a step of 512 clips':31}" + "".join(f"{name:>8}" for name in names))
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch, "clips") as (host, port):
        remote = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1")
        fs.copy_files(str(shards), "clips/in", destination_filesystem=remote)
        gate = Gate(host, port)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{gate.port}"
        for chunk_samples in (32, 128):
            count(gate, chunk_samples, None)
            with tempfile.TemporaryDirectory() as cache:
                count(gate, chunk_samples, cache)
        gate.close()
