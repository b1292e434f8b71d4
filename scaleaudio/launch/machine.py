"""What this machine has: Python and packages, GPUs, memory, disks, limits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaleaudio import __version__
from scaleaudio.launch.apart import Asked, Finding, Status

_GIB = float(1 << 30)
_OPEN_FILES, _PROCESSES = 65_536, 4_096


def python(asked: Asked) -> Iterator[Finding]:
    """Python and the packages, in the versions that this program asks for."""
    from packaging.requirements import Requirement

    versions = {"python": platform.python_version(), "scaleaudio": __version__}
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("scaleaudio") or []]
    except importlib.metadata.PackageNotFoundError:  # a job's working_dir over packages of the image
        wanted = [Requirement(name) for name in ("torch", "torchaudio", "ray", "pyarrow")]
    wrong = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            wrong.append(f"{requirement.name} {versions[requirement.name]} is not {requirement.specifier}")
    named = ("python", "scaleaudio", "torch", "ray", "deepspeed")
    text = ", ".join(f"{name} {versions[name].partition('+')[0]}" for name in named if name in versions)
    if wrong:
        fix = "Install from requirements.lock: uv pip install --require-hashes -r requirements.lock"
        yield Finding("python", "fail", "; ".join(wrong), fix, {"versions": versions})
    else:
        yield Finding("python", "ok", text, facts={"versions": versions})


def gpus(asked: Asked) -> Iterator[Finding]:
    """Torch, CUDA, each GPU, and NCCL among them."""
    import torch

    cuda, devices = torch.version.cuda, sorted(Path("/dev").glob("nvidia[0-9]*"))
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": cuda, "cores": os.cpu_count()}
    if not torch.cuda.is_available():
        if devices:
            text = f"{len(devices)} GPU(s) in /dev, and torch {torch.__version__} (CUDA {cuda}) cannot use them"
            yield Finding(
                "gpu", "fail", text, "Update the NVIDIA driver, or install torch for the one there is.", facts
            )
        else:
            yield Finding(
                "gpu", "ok", f"none: runs train on CPUs ({os.cpu_count()} cores, torch {torch.__version__})", "", facts
            )
        return
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    free, total = zip(*(torch.cuda.mem_get_info(number) for number in range(count)), strict=True)
    facts |= {"gpus": names, "free_bytes": list(free), "total_bytes": list(total)}
    text = f"{count} x {names[0]}, {min(free) / _GIB:.0f} of {min(total) / _GIB:.0f} GiB free, CUDA {cuda}"
    if len(set(names)) > 1:
        yield Finding(
            "gpu", "warn", f"{text}; of several kinds: {', '.join(names)}", "The slowest sets the pace.", facts
        )
    elif min(free) < 0.8 * min(total):
        yield Finding("gpu", "warn", f"{text}; others use them", "See `nvidia-smi` for who does.", facts)
    else:
        yield Finding("gpu", "ok", text, facts=facts)
    yield _nccl(torch, count)


def _nccl(torch: Any, count: int) -> Finding:
    """A sum over all GPUs of this machine by NCCL."""
    version = ".".join(map(str, torch.cuda.nccl.version()))
    values = [torch.full((1 << 20,), float(number + 1), device=f"cuda:{number}") for number in range(count)]
    try:
        torch.cuda.nccl.all_reduce(values)
    except RuntimeError as error:
        fix = "NCCL_DEBUG=INFO says more; NCCL_P2P_DISABLE=1 goes around a broken link."
        return Finding("nccl", "fail", f"NCCL {version}: {' '.join(str(error).split())}", fix)
    right = all(float(value[-1]) == count * (count + 1) / 2 for value in values)
    if right:
        return Finding("nccl", "ok", f"NCCL {version} sums over {count} GPU(s)", facts={"nccl": version})
    return Finding("nccl", "fail", f"NCCL {version}: a sum over {count} GPUs is wrong", "NCCL_P2P_DISABLE=1 may help.")


def deepspeed(asked: Asked) -> Iterator[Finding]:
    """DeepSpeed, and which of its operators are compiled; a run needs none of them."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        yield Finding(
            "deepspeed", "warn", f"not made for {platform.machine()}", "Set launch.engine=plain: it trains the same."
        )
        return
    import deepspeed
    from deepspeed.git_version_info import installed_ops

    built = sorted(name for name, there in installed_ops.items() if there)
    compiler = shutil.which("nvcc") or shutil.which("c++")
    facts = {"deepspeed": deepspeed.__version__, "built_ops": built, "compiler": compiler}
    text = f"{deepspeed.__version__}; operators built: {', '.join(built) or 'none, and none is needed'}"
    yield Finding("deepspeed", "ok", text, facts=facts)


def memory(asked: Asked) -> Iterator[Finding]:
    """Memory, shared memory and the disk that Ray works on."""
    total = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _cgroup("memory.max"))
    text, facts = f"{total / _GIB:.0f} GiB", {"total_bytes": total}
    if total < 4 * _GIB:
        yield Finding("memory", "warn", f"{text}: a worker takes 1 to 4 GiB", "Lower launch.workers.", facts)
    else:
        yield Finding("memory", "ok", text, facts=facts)
    if Path("/dev/shm").is_dir():
        shm = shutil.disk_usage("/dev/shm")
        text, facts = f"/dev/shm {shm.free / _GIB:.1f} of {shm.total / _GIB:.1f} GiB free", {"free_bytes": shm.free}
        fix = "docker run --shm-size=8g, or a volume `emptyDir: {medium: Memory}` there: Ray and NCCL use it."
        low = shm.free < _GIB
        yield Finding("shm", "warn" if low else "ok", text, fix if low else "", facts)
    place = os.environ.get("RAY_TMPDIR", "/tmp")
    disk = shutil.disk_usage(place)
    text, facts = f"{place} {disk.free / _GIB:.0f} of {disk.total / _GIB:.0f} GiB free", {"free_bytes": disk.free}
    used = 1 - disk.free / disk.total
    fix = "Free some, or set RAY_TMPDIR to a larger disk: at 95 % Ray starts nothing more."
    status: Status = "fail" if used > 0.95 else "warn" if disk.free < 5 * _GIB else "ok"
    yield Finding("disk", status, text, "" if status == "ok" else fix, facts)


def limits(asked: Asked) -> Iterator[Finding]:
    """How many files and processes one may have."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    allowed = min((n for n in (processes, _cgroup("pids.max")) if n != resource.RLIM_INFINITY), default=float("inf"))
    facts = {"open_files": files, "processes": allowed if allowed != float("inf") else None}
    many = "no limit to" if allowed == float("inf") else f"{allowed:g}"
    text, fixes = f"{files} open files, {many} processes", []
    if files != resource.RLIM_INFINITY and files < _OPEN_FILES:
        fixes.append(f"`ulimit -n {_OPEN_FILES}` before `ray start`, or LimitNOFILE of its service")
    if allowed < _PROCESSES:
        fixes.append(f"allow {_PROCESSES} processes (ulimit -u, pids.max): a worker has some dozen threads")
    yield Finding("limits", "warn" if fixes else "ok", text, "; ".join(fixes), facts)


def _cgroup(name: str) -> float:
    """What the container allows; infinity where it does not say."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return float("inf")
    return float(text) if text.isdecimal() else float("inf")
