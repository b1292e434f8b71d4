"""The verb evaluate: scores, comparisons, curves, and the page that shows them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaleaudio.cli.app import app, local_folder, print_table
from scaleaudio.errors import InputError

if TYPE_CHECKING:
    from scaleaudio.evaluate import Task
    from scaleaudio.scores import Results, Sensitivity


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="exported folder, run folder, checkpoint, or timm:NAME, or timm:NAME@FILE with its weights"
        ),
    ],
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]", help="FOLDER, FOLDER:COLUMN,COLUMN or YAML file")
    ] = None,
    label: Annotated[str | None, typer.Option(help="column to predict, for tasks that name none")] = None,
    separator: Annotated[
        str, typer.Option(help="what stands between the classes of a clip that may have several, such as ';'")
    ] = "",
    train: Annotated[list[str] | None, typer.Option(help="training rows, such as 'group=v16'")] = None,
    test: Annotated[list[str] | None, typer.Option(help="test rows, likewise; 'group!=a,b' leaves those out")] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="another model to compare with; may be repeated")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="also score mel statistics and the untrained encoder")] = False,
    few_shot: Annotated[bool, typer.Option("--few-shot", help="also learn from 1, 4 and 16 clips a class")] = False,
    stages: Annotated[bool, typer.Option("--stages", help="also probe every stage of the encoder")] = False,
    sensitivity: Annotated[
        str | None,
        typer.Option(metavar="CORPUS", help="folder or list of audio: measure how displacements change the embedding"),
    ] = None,
    clips: Annotated[int, typer.Option(min=2, help="how many clips of that corpus")] = 200,
    out: Annotated[Path, typer.Option(help="folder for JSON, Markdown, pictures and the page")] = Path("evaluation"),
    store: Annotated[
        Path | None, typer.Option(help="folder of embeddings to read and add to; default: OUT/embeddings")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of all that is drawn, such as the bootstrap's resamples")] = 0,
) -> None:
    """Score encoders on labelled folders, with 95 % intervals, compare them, and draw position-sensitivity curves."""
    from scaleaudio.evaluate import parse_tasks
    from scaleaudio.evaluate.fewshot import SHOTS

    folder = local_folder(out)
    kept = local_folder(store or folder / "embeddings")
    only_curves = sensitivity is not None and not tasks
    rows: dict[str, Any] = {"train": train or (), "test": test or ()}
    asked = [] if only_curves else parse_tasks(tasks or [], label=label, separator=separator, **rows)
    words = _named([*(against or ()), model])
    models = _models(words, baselines, seed)
    curves = _sensitivity(words, models, sensitivity, folder, clips, seed) if sensitivity is not None else []
    if asked:
        options = {
            "seed": seed,
            "shots": SHOTS if few_shot else (),
            "stages": [name for name in models if stages and not words.get(name, "timm:").startswith("timm:")],
            "maps": list(words),
            "store": kept,
        }
        _scores(models, asked, folder, baselines, curves, options)


def _named(words: list[str]) -> dict[str, str]:
    """The models' paths by the name that each has in tables: the last part of its path where that is its own."""
    places = [Path(word).resolve() for word in words]
    if twice := [word for word, place in zip(words, places, strict=True) if places.count(place) > 1]:
        raise InputError(f"--against {twice[0]}: the same model is named twice, so there is nothing to compare it with")
    names = [word if word.startswith("timm:") else Path(word).name for word in words]
    return {word if names.count(name) > 1 else name: word for name, word in zip(names, words, strict=True)}


def _models(words: dict[str, str], baselines: bool, seed: int) -> dict[str, Any]:
    """What is evaluated, the model itself last."""
    from scaleaudio import bundle
    from scaleaudio.evaluate import timm_model

    models: dict[str, Any] = {
        name: timm_model(word.removeprefix("timm:"), seed=seed) if word.startswith("timm:") else bundle.load(word)
        for name, word in words.items()
    }
    last = list(models.values())[-1]
    untrained = {"untrained": bundle.untrained(last.config)} if baselines and hasattr(last, "config") else {}
    return untrained | models


def _scores(
    models: dict[str, Any],
    tasks: list[Task],
    folder: Path,
    baselines: bool,
    curves: list[Sensitivity],
    options: dict[str, Any],
) -> None:
    from scaleaudio.evaluate import MelStatistics
    from scaleaudio.evaluate import evaluate as score
    from scaleaudio.report import scores as report
    from scaleaudio.report.findings import section_table, sections

    scored = ({"mel mean + std": MelStatistics()} if baselines else {}) | models
    results = score(scored, tasks, progress=sys.stderr.isatty(), **options)
    for table in (report.score_table(results), *map(section_table, sections(results))):
        print_table(table)
    _write(results, curves, folder)


def _write(results: Results, curves: list[Sensitivity], folder: Path) -> None:
    from scaleaudio.report import scores as report
    from scaleaudio.report.evaluation import evaluation_page
    from scaleaudio.report.findings import findings_markdown

    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(results, folder / "scores.json")
    report.draw_scores(results, folder / "scores.png")
    (folder / "scores.md").write_text(report.score_markdown(results) + findings_markdown(results), encoding="utf-8")
    (folder / "report.html").write_text(evaluation_page(results, curves), encoding="utf-8")
    print(", ".join(str(folder / name) for name in ("scores.json", "scores.md", "scores.png", "report.html")))


def _sensitivity(
    words: dict[str, str], models: dict[str, Any], corpus: str, folder: Path, clips: int, seed: int
) -> list[Sensitivity]:
    from scaleaudio import bundle
    from scaleaudio.evaluate import measure_sensitivity
    from scaleaudio.report import sensitivity as report
    from scaleaudio.report.scores import write_json

    results = []
    for name, measured in models.items():
        word = words.get(name, "timm:")
        projector = None if word.startswith("timm:") else bundle.load_projector(word)
        options: dict[str, Any] = {"num_clips": clips, "seed": seed, "progress": sys.stderr.isatty()}
        results.append(measure_sensitivity(measured, corpus, name=name, projector=projector, **options))
    print_table(report.sensitivity_table(results))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(results, folder / "sensitivity.json")
    report.draw_sensitivity(results, folder / "sensitivity.png")
    (folder / "sensitivity.md").write_text(report.sensitivity_markdown(results), encoding="utf-8")
    print(f"{folder / 'sensitivity.json'}, {folder / 'sensitivity.md'}, {folder / 'sensitivity.png'}")
    return results
