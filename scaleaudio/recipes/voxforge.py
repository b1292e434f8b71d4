"""VoxForge (voxforge.org): which of six languages is spoken, from what people recorded for a free speech corpus.

Thousands of small archives, LANGUAGE/.../USER-DATE-xxx.tgz, each of which unpacks to a folder of its name. There is no
official split, and how many clips there are depends on the day of the download. Here a speaker (the user's name; a
single submission where that is `anonymous`) goes to test (20 %), val (10 %) or train by a hash of the name: the same
for everybody, and no speaker on two sides. The folders that the download makes (wget -x) hold the language as
.../de/Trunk/...; English, which has none there, is taken to lie under .../SpeechCorpus/Trunk/... (not verified).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from scaleaudio.recipes.base import Recipe, Row, Tree, split_by_hash

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")


def _rows(tree: Tree) -> Iterator[Row]:
    for path in tree.audio():
        language, submission = _language(path), _submission(path)
        if language is None or submission is None:
            continue
        user = submission.partition("-")[0]
        group = f"{language}/{submission if user.lower().startswith('anonymous') else user}"
        yield {"filename": str(path), "label": language, "split": split_by_hash(group), "group": group}


def _language(path: PurePosixPath) -> str | None:
    found = [part.lower() for part in path.parts[:-1] if part.lower() in LANGUAGES]
    if found:
        return found[0]
    return "en" if "SpeechCorpus" in path.parts else None


def _submission(path: PurePosixPath) -> str | None:
    """The folder above wav/ or flac/, such as ralfherzog-20071220-de1."""
    if path.parent.name.lower() not in ("wav", "flac") or len(path.parts) < 3:
        return None
    return re.sub(r"\s+", "_", path.parts[-3])


RECIPE = Recipe(
    name="voxforge",
    title="VoxForge: spoken languages",
    task="6 languages",
    licence="GPL, by the contributors",
    gigabytes=60,
    url="http://www.voxforge.org/home/downloads",
    archives=("*.tgz",),
    layout="de/ralfherzog-20071220-de1/wav/de1-01.wav",
    protocol="none official; here by speaker, 70 : 10 : 20 by a hash of the name",
    metric="accuracy",
    columns=("label", "split", "group"),
    rows=_rows,
    num_labels=6,
)
