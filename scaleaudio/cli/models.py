"""Verbs that use a trained encoder: evaluate, embed, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaleaudio.cli.app import app, local_folder, print_table

if TYPE_CHECKING:
    from scaleaudio.evaluate import Task


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="exported folder, run folder, checkpoint, or timm:NAME[@WEIGHTS]")],
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="FOLDER, FOLDER:COLUMN,COLUMN or YAML file")
    ] = None,
    label: Annotated[str | None, typer.Option(help="column to predict, for tasks that name none")] = None,
    train: Annotated[list[str] | None, typer.Option(help="training rows, such as 'group=v16'")] = None,
    test: Annotated[list[str] | None, typer.Option(help="test rows")] = None,
    baselines: Annotated[bool, typer.Option(help="also score mel statistics and the untrained encoder")] = False,
    sensitivity: Annotated[
        str | None,
        typer.Option(metavar="CORPUS", help="folder or list of audio: measure how displacements change the embedding"),
    ] = None,
    clips: Annotated[int, typer.Option(min=2, help="how many clips of that corpus")] = 200,
    out: Annotated[Path, typer.Option(help="folder for JSON, Markdown and pictures")] = Path("evaluation"),
    seed: Annotated[int, typer.Option(min=0, help="of all that is drawn, such as the bootstrap's resamples")] = 0,
) -> None:
    """Score an encoder on labelled folders, with 95 % intervals, and draw its position-sensitivity curves."""
    from scaleaudio.evaluate import parse_tasks

    folder = local_folder(out)
    only_curves = sensitivity is not None and not tasks
    asked = [] if only_curves else parse_tasks(tasks or [], label=label, train=train or (), test=test or ())
    models = _models(model, baselines, seed)
    if sensitivity is not None:
        _evaluate_sensitivity(model, models, sensitivity, folder, clips, seed)
    if asked:
        _evaluate_tasks(models, asked, folder, baselines, seed)


def _models(model: str, baselines: bool, seed: int) -> dict[str, Any]:
    from scaleaudio import bundle
    from scaleaudio.evaluate import timm_model

    if model.startswith("timm:"):
        return {model: timm_model(model.removeprefix("timm:"), seed=seed)}
    encoder = bundle.load(model)
    return ({"untrained": bundle.untrained(encoder.config)} if baselines else {}) | {Path(model).name: encoder}


def _evaluate_tasks(models: dict[str, Any], tasks: list[Task], folder: Path, baselines: bool, seed: int) -> None:
    from scaleaudio.evaluate import MelStatistics
    from scaleaudio.evaluate import evaluate as score
    from scaleaudio.report import scores as report

    scored = ({"mel mean + std": MelStatistics()} if baselines else {}) | models
    results = score(scored, tasks, seed=seed, progress=sys.stderr.isatty())
    print_table(report.score_table(results))
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(results, folder / "scores.json")
    report.draw_scores(results, folder / "scores.png")
    (folder / "scores.md").write_text(report.score_markdown(results))
    print(f"{folder / 'scores.json'}, {folder / 'scores.md'}, {folder / 'scores.png'}")


def _evaluate_sensitivity(model: str, models: dict[str, Any], corpus: str, folder: Path, clips: int, seed: int) -> None:
    from scaleaudio import bundle
    from scaleaudio.evaluate import measure_sensitivity
    from scaleaudio.report import sensitivity as report
    from scaleaudio.report.scores import write_json

    results = []
    for name, measured in models.items():
        trained = not model.startswith("timm:") and name == Path(model).name
        projector = bundle.load_projector(model) if trained else None
        options: dict[str, Any] = {"num_clips": clips, "seed": seed, "progress": sys.stderr.isatty()}
        results.append(measure_sensitivity(measured, corpus, name=name, projector=projector, **options))
    print_table(report.sensitivity_table(results))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(results, folder / "sensitivity.json")
    report.draw_sensitivity(results, folder / "sensitivity.png")
    (folder / "sensitivity.md").write_text(report.sensitivity_markdown(results))
    print(f"{folder / 'sensitivity.json'}, {folder / 'sensitivity.md'}, {folder / 'sensitivity.png'}")


@app.command()
def embed(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="exported folder, run folder or checkpoint")],
    shards: Annotated[str, typer.Argument(metavar="INPUT", help="folder or URL of shards with their index")],
    out: Annotated[str, typer.Argument(metavar="OUT.parquet", help="table to write: a path or URL")],
    unit_samples: Annotated[int, typer.Option(min=1, help="clips that one task embeds")] = 512,
    max_bad_fraction: Annotated[float, typer.Option(min=0, max=1, help="part of the clips that may be bad")] = 0.01,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete what is at OUT and begin anew")] = False,
) -> None:
    """Embed every clip of a corpus, on this machine or on the cluster of RAY_ADDRESS; goes on where it was stopped."""
    from scaleaudio.launch.embed import embed as run
    from scaleaudio.launch.progress import Counted

    with Counted("embedding") as progress:
        done = run(
            model,
            shards,
            out,
            unit_samples=unit_samples,
            max_bad_fraction=max_bad_fraction,
            fresh=fresh,
            on_done=progress.update,
            debug=bool(context.obj),
        )
    print(
        f"{done.num_samples} clips, {done.embedding_dim} numbers each: {done.url}; {done.num_rejects} rejected "
        f"({done.rejects_url})"
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="run folder, checkpoint, exported folder, or BYOL-A's weights (.pth)")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    scores: Annotated[Path | None, typer.Option(help="scores.json of an evaluation, for the model card")] = None,
    scores_of: Annotated[str | None, typer.Option(help="the model's name in it, where it is another")] = None,
    data: Annotated[str | None, typer.Option(help="what it was trained on, in words, for the card")] = None,
    licence: Annotated[str | None, typer.Option(help="licence of the weights, such as cc-by-4.0, for the card")] = None,
    frontend: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="front-end of a .pth file, such as mel_scale=slaney")
    ] = None,
    state_dict: Annotated[bool, typer.Option(help="also write an AudioNTT's weights in BYOL-A's layout")] = False,
) -> None:
    """Write a self-contained encoder with its model card: `scaleaudio.load(OUT)` needs torch and torchaudio alone."""
    from scaleaudio.config import parse_overrides
    from scaleaudio.export.card import CardNotes
    from scaleaudio.export.folder import export as write

    notes = CardNotes(data, licence, scores, scores_of)
    keys = parse_overrides(frontend or [])
    print(write(model, local_folder(out), notes, frontend=keys, state_dict=state_dict))
