"""Miniatures of public data sets: folders of the official layout, with tones for clips, and archives of them."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile


def clip(path: Path) -> None:
    """A tenth of a second of sound, another for each name, in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(path.name.encode()))
    soundfile.write(path, random.uniform(-0.5, 0.5, 1600), 16_000)


def lay_out(root: Path, clips: Iterable[str], texts: Mapping[str, str]) -> Path:
    """A folder with clips and text files of these names."""
    for name in clips:
        clip(root / name)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def pack(root: Path, archive: Path, *below: str) -> Path:
    """These parts of a folder (by default all of it) as a zip or tar, by the archive's suffix."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(path for part in below or ("",) for path in (root / part).rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in files:
                opened.write(path, path.relative_to(root))
        return archive
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as tar:
        for path in files:
            tar.add(path, path.relative_to(root))
    return archive
