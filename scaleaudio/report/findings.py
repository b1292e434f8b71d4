"""What an evaluation found besides its scores, as tables: for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from scaleaudio.findings import FewShot, StageScore
from scaleaudio.report.scores import short
from scaleaudio.scores import METRICS, Results


@dataclass(frozen=True)
class Section:
    """A table with a title and what a reader must know of it; the first `num_names` columns hold words."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int


def sections(results: Results) -> list[Section]:
    """The tables of all that was asked for, in the order in which they are read."""
    return [section for section in (_comparisons(results), _few_shot(results), _stages(results)) if section.rows]


def section_table(section: Section) -> Table:
    """A table for the terminal."""
    table = Table(
        title=escape(section.title), title_justify="left", caption=escape(section.note), caption_justify="left",
        caption_style="dim",
    )  # fmt: skip
    for place, heading in enumerate(section.headings):
        table.add_column(escape(heading), justify="left" if place < section.num_names else "right")
    for row in section.rows:
        table.add_row(*map(escape, row))
    return table


def findings_markdown(results: Results) -> str:
    """All tables in Markdown."""
    return "".join(f"\n{block}\n" for section in sections(results) for block in _markdown(section))


def _markdown(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    lines = [section.headings, *section.rows]
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    rule = "|" + "---|" * section.num_names + "---:|" * (len(section.headings) - section.num_names)
    yield "\n".join([cells[0], rule, *cells[1:]])
    yield section.note


def _comparisons(results: Results) -> Section:
    rows = tuple(
        (
            found.task,
            METRICS[found.metric],
            f"{found.model} - {found.other}",
            f"{signed(found.difference)} ({signed(found.low)} to {signed(found.high)})",
            "-" if found.only_model is None else f"{found.only_model} / {found.only_other}",
            "< .001" if found.p < 0.001 else short(found.p),
        )
        for found in results.comparisons
    )
    note = (
        "Difference of two models on the same test clips, with the 95 % interval of paired resamples of the clips; it "
        "knows nothing of the spread between training seeds. right alone: clips that only the first, only the second "
        "gets right. p: McNemar's exact test (for mAP the paired bootstrap), not corrected for the number of pairs."
    )
    headings = ("task", "probe", "models", "difference", "right alone", "p")
    return Section("Models compared", note, headings, rows, 3)


def _few_shot(results: Results) -> Section:
    shots = sorted({point.shots for point in results.few_shot})
    cells = {(p.task, p.metric, p.model, p.shots): p for p in results.few_shot}
    lines = dict.fromkeys((p.task, p.metric, p.model) for p in results.few_shot)
    rows = tuple(
        (task, METRICS[metric], model, *(_interval(cells[task, metric, model, num]) for num in shots))
        for task, metric, model in lines
    )
    draws = {point.num_draws for point in results.few_shot}
    short_of = sorted({(p.task, p.shots, p.num_short) for p in results.few_shot if p.num_short})
    said = "".join(f" {task}: {num} classes have fewer than {shots} training clips." for task, shots, num in short_of)
    note = (
        f"Probes fitted on so many clips of each class; the mean of {', '.join(map(str, sorted(draws)))} draws, the "
        f"same for every model, with the 95 % interval over draws and test clips together.{said}"
    )
    headings = ("task", "probe", "model", *(f"{num} a class" for num in shots))
    return Section("Few clips to learn from", note, headings, rows, 3)


def _stages(results: Results) -> Section:
    metrics = [metric for metric in METRICS if any(stage.metric == metric for stage in results.stages)]
    cells = {(s.model, s.task, s.stage, s.metric): s for s in results.stages}
    lines = dict.fromkeys((s.task, s.model, s.stage, s.num_features) for s in results.stages)
    rows = tuple(
        (task, model, stage, f"{width:,}", *(_interval(cells[model, task, stage, metric]) for metric in metrics))
        for task, model, stage, width in lines
    )
    note = "What each stage of an encoder gives out, averaged over all its places, probed like an embedding."
    headings = ("task", "model", "stage", "features", *(METRICS[metric] for metric in metrics))
    return Section("Stage by stage", note, headings, rows, 3)


def signed(number: float) -> str:
    """With its sign: "+.014"."""
    return f"{'-' if number < 0 else '+'}{short(abs(number))}"


def _interval(found: FewShot | StageScore) -> str:
    return f"{short(found.score)} ({short(found.low)}-{short(found.high)})"
