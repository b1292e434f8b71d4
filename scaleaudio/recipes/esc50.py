"""ESC-50 (Piczak, 2015): 2,000 environmental recordings of 5 s, 50 classes, with five folds by its author.

Clips cut from one Freesound recording share `src_file`, and the folds do not part them. ESC-10 is the column `esc10`:
scaleaudio evaluate MODEL OUT:label,esc10.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.recipes.base import Recipe, Row, Tree

_TABLE = "meta/esc50.csv"


def _rows(tree: Tree) -> Iterator[Row]:
    base = tree.base(_TABLE)
    for row in tree.table(_TABLE, ("filename", "fold", "category", "esc10", "src_file")):
        yield {
            "filename": f"{base}audio/{row['filename']}",
            "label": row["category"],
            "fold": row["fold"],
            "group": row["src_file"],
            "esc10": row["category"] if row["esc10"] == "True" else "",
        }


RECIPE = Recipe(
    name="esc50",
    title="ESC-50: environmental sounds",
    task="50 classes; 10 of them as column esc10",
    licence="CC BY-NC 3.0; the ESC-10 subset CC BY 3.0",
    gigabytes=0.6,
    url="https://github.com/karolpiczak/ESC-50",
    archives=("ESC-50*.zip", "ESC-50*.tar.gz", "esc-50*.zip"),
    layout="audio/1-100032-A-0.wav and meta/esc50.csv",
    protocol="5-fold cross-validation by the author's column `fold`",
    metric="accuracy, mean of the folds",
    columns=("label", "fold", "group", "esc10"),
    rows=_rows,
    counted="fold",
    expected={str(fold): 400 for fold in range(1, 6)},
    num_labels=50,
)
