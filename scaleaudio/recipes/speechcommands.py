"""Speech Commands v0.02 (Warden, 2018, arXiv 1804.03209): 105,829 utterances of 35 words by 2,618 people.

The lists in the archive decide who validates and who tests; both are by speaker, the hash before `_nohash_`. The
column `command` is the twelve-way task less its silence: the ten commands, and "unknown" for the other words. (The
archive speech_commands_test_set_v0.02 with its own balance of unknown and silence is not read.)
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.recipes.base import Recipe, Row, Tree

_COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


def _rows(tree: Tree) -> Iterator[Row]:
    base = tree.base("testing_list.txt")
    split = dict.fromkeys(tree.lines("validation_list.txt"), "val") | dict.fromkeys(
        tree.lines("testing_list.txt"), "test"
    )
    there = {f"{path.parent.name}/{path.name}": str(path) for path in tree.audio() if path.parent.name[:1] != "_"}
    for name in split.keys() | {name for name, path in there.items() if path == base + name}:
        word, _, file = name.partition("/")
        yield {
            "filename": base + name,
            "label": word,
            "split": split.get(name, "train"),
            "group": file.partition("_nohash_")[0],
            "command": word if word in _COMMANDS else "unknown",
        }


RECIPE = Recipe(
    name="speechcommands",
    title="Speech Commands v0.02: single words",
    task="35 words; ten commands or unknown as column command",
    licence="CC BY 4.0",
    gigabytes=2.4,
    url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    archives=("speech_commands_v0.02.tar.gz",),
    layout="yes/0a7c2a8d_nohash_0.wav and testing_list.txt",
    protocol="the official lists validation_list.txt and testing_list.txt; the rest trains",
    metric="accuracy",
    columns=("label", "split", "group", "command"),
    rows=_rows,
    expected={"train": 84_843, "val": 9_981, "test": 11_005},
    num_labels=35,
)
