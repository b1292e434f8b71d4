"""Tables of what an evaluation found besides its scores."""

from __future__ import annotations

from rich.console import Console

from scaleaudio.findings import Comparison, FewShot, StageScore
from scaleaudio.report.findings import findings_markdown, section_table, sections
from scaleaudio.scores import Results


def results() -> Results:
    few = [
        FewShot(model, "note|x", "knn", shots, 10, 0.1 * shots, 0.05, 0.5, 2 if shots == 4 else 0)
        for model in ("old", "new [1]")
        for shots in (1, 4)
    ]
    compared = (
        Comparison("note|x", "knn", "new [1]", "old", -0.014, -0.03, 0.002, 0.08, "McNemar, exact", 4, 9),
        Comparison("tags", "linear", "new [1]", "old", 0.1, 0.05, 0.2, 0.0001, "paired bootstrap", None, None),
    )
    stages = (StageScore("old", "note|x", "knn", "blocks.0", 0, 1024, 0.5, 0.4, 0.6),)
    return Results((), (), (), 0, 0.96, {}, tuple(few), compared, stages)


def test_only_what_was_asked_for_has_a_table() -> None:
    assert [section.title for section in sections(results())] == [
        "Models compared",
        "Few clips to learn from",
        "Stage by stage",
    ]
    assert (
        sections(Results((), (), (), 0, 0.96, {})) == [] and findings_markdown(Results((), (), (), 0, 0.96, {})) == ""
    )


def test_each_row_says_who_is_better_by_how_much_and_how_surely() -> None:
    one, two = sections(results())[0].rows
    assert one == ("note|x", "kNN", "new [1] - old", "-.014 (-.030 to +.002)", "4 / 9", ".080")
    assert two[3:] == ("+.100 (+.050 to +.200)", "-", "< .001")


def test_few_clips_have_a_column_a_number_and_say_where_clips_were_missing() -> None:
    section = sections(results())[1]
    assert section.headings[3:] == ("1 a class", "4 a class")
    assert section.rows[0] == ("note|x", "kNN", "old", ".100 (.050-.500)", ".400 (.050-.500)")
    assert "note|x: 2 classes have fewer than 4 training clips." in section.note


def test_markdown_keeps_its_columns_and_the_terminal_its_brackets() -> None:
    text = findings_markdown(results())
    assert "note\\|x" in text and "| models | difference |" in text
    console = Console(width=160)
    with console.capture() as capture:
        for section in sections(results()):
            console.print(section_table(section))
    assert "new [1] - old" in capture.get() and "1,024" in capture.get()
