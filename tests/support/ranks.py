"""Plain processes with a rank each: for what needs several workers and no Ray.

`run(__file__, "function", size=2, folder=tmp_path)` calls `function(world, folder)` of the test file in every process,
within one gloo group, and gives what each returned (tensors, numbers, strings, and dicts and lists of them).
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaleaudio.types import World


def run(file: str, function: str, *, size: int, folder: Path, timeout_seconds: float = 240) -> list[Any]:
    """What `function` of the Python file `file` returned in each of `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [folder / f"{function}-{rank}-of-{size}.log" for rank in range(size)]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    processes = []
    for rank, log in enumerate(logs):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(paths)}
        with log.open("wb") as out:
            command = [sys.executable, __file__, file, function, str(folder)]
            processes.append(subprocess.Popen(command, env=os.environ | group | place, stdout=out, stderr=out))
    _wait(processes, logs, timeout_seconds)
    return [torch.load(_result(folder, function, rank, size), weights_only=True) for rank in range(size)]


def _wait(processes: list[subprocess.Popen[bytes]], logs: list[Path], timeout_seconds: float) -> None:
    """Returns when all have ended well; where one fails or hangs, the others are ended too."""
    deadline = time.monotonic() + timeout_seconds
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, (process, log) in enumerate(zip(processes, logs, strict=True)):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{log.read_text()[-4000:]}"


def _result(folder: Path, function: str, rank: int, size: int) -> Path:
    return folder / f"{function}-{rank}-of-{size}.pt"


def _main(file: str, function: str, folder: str) -> None:
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("scenario", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size())
    result = getattr(module, function)(world, Path(folder))
    torch.save(result, _result(Path(folder), function, world.rank, world.size))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
