"""Where a run comes from: what was typed, on which machine, from which state of the code."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from typing import Any


def provenance() -> dict[str, Any]:
    """The command, its folder and host, and the commit of that folder where it is in a git repository."""
    command, folder = shlex.join(sys.argv), _folder()
    return {"command": command, "folder": folder, "host": socket.gethostname(), "git": git_state(".")}


def _folder() -> str | None:
    """Where the program was started; None where that is gone, as the unpacked folder of a job may be."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def git_state(folder: str) -> dict[str, Any] | None:
    """The commit of `folder` and how many of its tracked files have other contents; None where git knows nothing."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "changed_files": len((changed or "").splitlines())}


def _git(folder: str, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
