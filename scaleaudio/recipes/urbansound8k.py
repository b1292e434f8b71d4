"""UrbanSound8K (Salamon, Jacoby, Bello, 2014): 8,732 excerpts of up to 4 s, 10 classes, ten folds by its authors.

The folds keep the slices of one Freesound recording together; any other division leaks. Zenodo's record gives the
licence as CC BY-NC 4.0, the authors' page as CC BY-NC 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.recipes.base import Recipe, Row, Tree

_TABLE = "metadata/UrbanSound8K.csv"
_FOLDS = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)


def _rows(tree: Tree) -> Iterator[Row]:
    base = tree.base(_TABLE)
    for row in tree.table(_TABLE, ("slice_file_name", "fsID", "fold", "class")):
        yield {
            "filename": f"{base}audio/fold{row['fold']}/{row['slice_file_name']}",
            "label": row["class"],
            "fold": row["fold"],
            "group": row["fsID"],
        }


RECIPE = Recipe(
    name="urbansound8k",
    title="UrbanSound8K: sounds of the city",
    task="10 classes",
    licence="CC BY-NC 3.0",
    gigabytes=6.0,
    url="https://urbansounddataset.weebly.com/urbansound8k.html (zenodo.org/records/1203745)",
    archives=("UrbanSound8K*.tar.gz", "UrbanSound8K*.zip"),
    layout="audio/fold1/101415-3-0-2.wav and metadata/UrbanSound8K.csv",
    protocol="10-fold cross-validation by the authors' column `fold`",
    metric="accuracy, mean of the folds",
    columns=("label", "fold", "group"),
    rows=_rows,
    counted="fold",
    expected={str(number): count for number, count in enumerate(_FOLDS, start=1)},
    num_labels=10,
)
