"""Tables, JSON and the picture of scores."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from scaleaudio.report.scores import draw_scores, notes, score_markdown, score_table, write_json
from scaleaudio.scores import ModelFacts, Results, Score, TaskFacts
from scaleaudio.types import Reject


@pytest.fixture
def results() -> Results:
    """Two models, two tasks; the second task is one-shot, so that C was not chosen there."""
    scores = []
    for model, better in (("mel [std]", 0.0), ("trained", 0.1)):
        for task, metrics in (("note", ("knn", "linear", "linear_c0.05")), ("one-shot", ("knn", "linear_c0.05"))):
            for metric in metrics:
                value = 0.4 + better
                scores.append(Score(model, task, metric, value, value - 0.05, value + 0.06, 20, 100, "x"))
    rejects = tuple(Reject("clips", f"{place}.wav", "empty file (0 bytes)") for place in range(5))
    facts = [
        TaskFacts(
            name=name,
            source="clips/labels.csv",
            label="label",
            protocol="column split: train and val against test",
            train=("group=v16",),
            test=(),
            num_folds=1,
            num_train=20,
            num_test=100,
            num_classes=4,
            majority=0.25,
            num_unlabelled=3,
            num_unused=2,
            num_unseen=1,
            rejects=rejects if name == "note" else (),
            notes=(),
        )
        for name in ("note", "one-shot")
    ]
    models = (ModelFacts("mel [std]", 128, 16000, 0), ModelFacts("trained", 512, 16000, 1000))
    return Results(tuple(scores), tuple(facts), models, seed=7, min_seconds=0.96, versions={"torch": "2.11.0"})


def test_the_terminal_table_holds_every_cell_and_survives_brackets_in_names(results: Results) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(score_table(results))
    text = capture.get()
    assert "mel [std]" in text
    assert text.count(".400 (.350-.460)") == 5 and text.count(".500 (.450-.560)") == 5


def test_a_probe_that_was_not_run_is_a_dash_in_markdown(results: Results) -> None:
    lines = score_markdown(results).splitlines()
    assert lines[0] == "| task | probe | mel [std] | trained |"
    assert lines[2] == "| note | kNN | .400 (.350-.460) | .500 (.450-.560) |"
    assert "|  | linear probe, C chosen | - | - |" in lines
    assert len({line.count("|") for line in lines[:8]}) == 1


def test_what_was_left_out_stands_in_the_notes(results: Results) -> None:
    said = notes(results)[1]
    for text in ("20 train, 100 test", ".250", "3 rows without a label", "2 labelled rows in neither", "1 test clips"):
        assert text in said
    assert "5 files unusable: clips/0.wav (empty file (0 bytes))" in said and "and 2 more" in said


def test_the_json_holds_what_is_needed_to_do_it_again(results: Results, tmp_path: Path) -> None:
    write_json(results, tmp_path / "scores.json")
    read = json.loads((tmp_path / "scores.json").read_text())
    assert read["seed"] == 7 and read["min_seconds"] == 0.96 and read["versions"] == {"torch": "2.11.0"}
    assert read["tasks"][0]["train"] == ["group=v16"] and len(read["tasks"][0]["rejects"]) == 5
    assert read["scores"][0] == {
        "model": "mel [std]",
        "task": "note",
        "metric": "knn",
        "score": 0.4,
        "low": pytest.approx(0.35),
        "high": pytest.approx(0.46),
        "num_train": 20,
        "num_test": 100,
        "setting": "x",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_the_picture_shows_a_colour_a_model(results: Results, tmp_path: Path) -> None:
    draw_scores(results, tmp_path / "scores.png")
    pixels = (imread(tmp_path / "scores.png")[..., :3] * 255).round().astype(int).reshape(-1, 3)
    areas = [(pixels == colour).all(axis=1).sum() for colour in ((0x99, 0x99, 0x99), (0x56, 0xB4, 0xE9))]
    assert areas[1] > areas[0] > 1000  # .5 against .4
