"""GTZAN (Tzanetakis, Cook, 2002): ten genres, 1,000 excerpts of 30 s.

`split` is the fault-filtered one (Kereliuk, Sturm, Larsen, 2015): 930 clips without repetitions, artists on one side
only; torchaudio carries its lists. The other clips have no split and take no part. jazz.00054 is damaged in the copies
that were converted to WAV; the filtered lists hold it all the same, and evaluation names it and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

from scaleaudio.recipes.base import Recipe, Row, Tree

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")


def _rows(tree: Tree) -> Iterator[Row]:
    from torchaudio.datasets.gtzan import filtered_test, filtered_train, filtered_valid

    parts = {"train": filtered_train, "val": filtered_valid, "test": filtered_test}
    split = {name: part for part, names in parts.items() for name in names}
    for path in tree.audio():
        genre, _, number = path.stem.partition(".")
        if genre in GENRES and number.isdigit():
            yield {"filename": str(path), "label": genre, "split": split.get(path.stem, "")}


RECIPE = Recipe(
    name="gtzan",
    title="GTZAN: genres of music",
    task="10 genres",
    licence="none is stated; excerpts of commercial recordings, for research",
    gigabytes=1.2,
    url="http://marsyas.info/downloads/datasets.html (often offline; mirrors carry genres.tar.gz)",
    archives=("genres.tar.gz", "gtzan*.zip", "gtzan*.tar.gz"),
    layout="genres/blues/blues.00000.wav (or .au)",
    protocol="fault-filtered, artist-disjoint: 443 train, 197 validate, 290 test",
    metric="accuracy",
    columns=("label", "split"),
    rows=_rows,
    expected={"train": 443, "val": 197, "test": 290, "": 70},
    num_labels=10,
)
