"""Whether requirements.lock is what pyproject.toml asks for: run by `make check`.

Every requirement is locked at a version inside its range, every package carries hashes, and no address is in the file.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^[A-Za-z0-9].*(?:\n .*)*", re.MULTILINE)
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def problems(lock: str, wanted: list[Requirement]) -> list[str]:
    locked = {_name(name): version for name, version in PINNED.findall(lock)}
    found = [f"address in the lock: {line}" for line in lock.splitlines() if "://" in line]
    found += [f"{block.split()[0]}: no hash" for block in BLOCK.findall(lock) if "--hash=sha256:" not in block]
    for requirement in wanted:
        version = locked.get(_name(requirement.name))
        if version is None:
            found.append(f"{requirement}: not in the lock")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}: the lock has {version}")
    return found


def requirements(pyproject: str) -> list[Requirement]:
    tree = tomllib.loads(pyproject)
    return [Requirement(text) for text in [*tree["project"]["dependencies"], *tree["dependency-groups"]["dev"]]]


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    found = problems((ROOT / "requirements.lock").read_text(), requirements((ROOT / "pyproject.toml").read_text()))
    sys.exit("\n".join(f"requirements.lock: {line}. Run `make lock`." for line in found) or None)
