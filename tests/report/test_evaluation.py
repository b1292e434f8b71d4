"""The page of an evaluation: whole, by itself, and with every word from outside escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from scaleaudio.findings import ClipMap, Comparison, Confusion, FewShot, StageScore
from scaleaudio.report.evaluation import evaluation_page
from scaleaudio.scores import ModelFacts, Results, Score, TaskFacts

EVIL = "<script>alert('no')</script>"


def results(num_classes: int = 3) -> Results:
    models = ("old", f"new {EVIL}")
    classes = tuple(f"class {place}" for place in range(num_classes))
    counts = tuple(tuple(7 if row == column else 1 for column in range(num_classes)) for row in range(num_classes))
    facts = TaskFacts(
        f"task & {EVIL}",
        "clips/labels.csv",
        "label",
        "column split",
        (),
        (),
        1,
        30,
        100,
        num_classes,
        0.25,
        0,
        0,
        0,
        (),
        (),
    )
    scores = [Score(model, facts.name, "knn", 0.5, 0.4, 0.6, 30, 100, "k=3") for model in models]
    return Results(
        scores=tuple(scores),
        tasks=(facts,),
        models=tuple(ModelFacts(model, 64, 16_000, 1234) for model in models),
        seed=0,
        min_seconds=0.96,
        versions={"torch": "2.11.0"},
        few_shot=tuple(
            FewShot(m, facts.name, "knn", n, 10, 0.1 * n, 0.0, 0.9, 0) for m in models for n in (1, 4)
        ),
        comparisons=(
            Comparison(facts.name, "knn", models[1], models[0], -0.1, -0.2, -0.01, 0.03, "McNemar, exact", 1, 9),
        ),
        stages=tuple(StageScore("old", facts.name, "knn", f"blocks.{n}", n, 16, 0.5, 0.4, 0.6) for n in range(3)),
        confusions=(Confusion("old", facts.name, "knn", classes, counts),),
        maps=(ClipMap("old", facts.name, "t-SNE", (EVIL, "b"), (0, 1, 1), ((0.0, 0.0), (1.0, 2.0), (3.0, 1.0))),),
    )  # fmt: skip


class Balanced(HTMLParser):
    """Fails at a tag that is closed out of turn; `open_tags` is empty at the end of a whole page."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "path", "circle"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle"):
            assert self.open_tags.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_the_page_is_whole_and_names_everything_that_was_found() -> None:
    page, balanced = evaluation_page(results()), Balanced()
    balanced.feed(page)
    assert balanced.open_tags == []
    for heading in ("Scores", "Models compared", "Few clips", "Stage by stage", "Maps", "What is taken for what"):
        assert f"<h2>{heading}" in page
    assert ".500 (.400-.600)" in page and "-.100 (-.200 to -.010)" in page and "p = .030" in page


def test_what_was_not_asked_for_is_not_on_the_page() -> None:
    bare = replace(results(), few_shot=(), comparisons=(), stages=(), confusions=(), maps=())
    assert re.findall(r"<h2>(.*?)</h2>", evaluation_page(bare)) == ["Scores", "What the figures stand on"]


def test_words_from_outside_are_text_and_nothing_is_loaded() -> None:
    page = evaluation_page(results())
    assert EVIL not in page and "&lt;script&gt;alert" in page
    assert page.count("<script>") == 1 and "default-src 'none'" in page
    assert not re.search(r"https?://|url\(", page)


@pytest.mark.parametrize(("num_classes", "has_table"), [(30, True), (31, False)])
def test_of_many_classes_the_pairs_confused_most_are_named_instead(num_classes: int, has_table: bool) -> None:
    page = evaluation_page(results(num_classes))
    assert ('class="confusion"' in page) == has_table and "class 0 taken for class 1 (1 of" in page


def test_a_model_that_a_task_was_not_scored_for_has_no_dot() -> None:
    page = evaluation_page(replace(results(), scores=results().scores[:1]))
    assert page.count('class="dot c') == 1
