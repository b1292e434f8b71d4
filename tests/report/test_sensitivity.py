"""Tables, JSON and the picture of position-sensitivity curves."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from scaleaudio.report.scores import write_json
from scaleaudio.report.sensitivity import HEADINGS, draw_sensitivity, notes, sensitivity_markdown, sensitivity_table
from scaleaudio.scores import Curve, Displaced, Sensitivity, Similarity, StageCurves


def level(mean: float) -> Similarity:
    return Similarity(mean, mean - 0.01, mean + 0.02)


@pytest.fixture
def results() -> list[Sensitivity]:
    """One model of two stages: similarity falls by 1 a unit of strength, half as fast when moved back."""
    curves = []
    for axis, length, turned in (("frequency", 20, "flip"), ("time", 40, "reversal")):
        for motion in ("shift, floor", "shift, wrap", turned, "permutation", "smooth field"):
            points = []
            for places in (0, 1, 4, 8, 10):
                far = places / length
                back = None if motion == "smooth field" and far > 0.2 else level(1 - far / 2)
                shifted = places if "shift" in motion else None
                points.append(Displaced(shifted, far, 10 * far, level(1 - far), back))
            curves.append(Curve(axis, motion, tuple(points)))
    stages = tuple(StageCurves(name, level(0.9), level(0.4), tuple(curves)) for name in ("embedding", "projector"))
    return [Sensitivity("net [1]", "clips", 50, 2, (), 0, 0.95, 20, 40, 4, stages, {"torch": "2.11.0"})]


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if name in line)
    return [cell.strip() for cell in line.replace("│", "|").split("|")][-len(HEADINGS) - 1 : -1]


def test_a_line_holds_one_place_the_strides_and_the_strengths(results: list[Sensitivity]) -> None:
    # 1, 4 and 8 of 20 places; strengths .05, .15, .3, .5; moved back at .15; and (.85 - .4) / (1 - .4)
    expected = [".950", ".800", ".600", ".950", ".850", ".700", ".500", ".925", ".750"]
    assert row(sensitivity_markdown(results), "frequency shift, floor") == expected
    console = Console(width=132)
    with console.capture() as capture:
        console.print(sensitivity_table(results))
    assert row(capture.get(), "frequency shift, floor") == expected
    assert "net [1], projector" in capture.get()


def test_what_was_not_measured_is_a_dash(results: list[Sensitivity]) -> None:
    # 10 of 40 places are as far as these curves along time go
    expected = ["-", "-", "-", ".950", ".850", "-", "-", ".925", ".750"]
    assert row(sensitivity_markdown(results), "time reversal") == expected


def test_the_levels_and_what_was_left_out_stand_in_the_notes(results: list[Sensitivity]) -> None:
    said = " ".join(notes(results))
    for text in (
        "50 crops of 0.95 s of clips",
        "total stride 4",
        "2 silent",
        "two views .900, other clips .400",
        "±.015",
    ):
        assert text in said


def test_the_json_holds_every_point(results: list[Sensitivity], tmp_path: Path) -> None:
    write_json(results, tmp_path / "sensitivity.json")
    read = json.loads((tmp_path / "sensitivity.json").read_text())
    point = read[0]["stages"][1]["curves"][0]["points"][2]
    assert point["places"] == 4 and point["similarity"]["mean"] == pytest.approx(0.8)
    assert read[0]["stages"][1]["curves"][4]["points"][4]["returned"] is None


def test_the_picture_has_a_row_a_stage(results: list[Sensitivity], tmp_path: Path) -> None:
    draw_sensitivity(results, tmp_path / "two.png")
    two = imread(tmp_path / "two.png")
    pixels = (two[..., :3] * 255).round().astype(int).reshape(-1, 3)
    for colour in ((0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)):  # the curve that is drawn last, and the level of two views
        assert (abs(pixels - colour).max(axis=1) < 40).sum() > 1000
    one = [Sensitivity(**{**results[0].__dict__, "stages": results[0].stages[:1]})]
    draw_sensitivity(one, tmp_path / "one.png")
    assert two.shape[0] > 1.5 * imread(tmp_path / "one.png").shape[0]
