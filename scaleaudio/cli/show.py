"""Verbs that show things: show negatives, show lanes, show keys, show run, show sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scaleaudio.cli.app import ConfigFile, Overrides, load_config, print_table, show_app
from scaleaudio.errors import InputError


@show_app.command("negatives")
def show_negatives(
    config: ConfigFile,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="encoder to ask for similarities; default: untrained")] = None,
    clips: Annotated[int, typer.Option(min=1, help="how many clips, a picture each")] = 1,
    out: Annotated[Path, typer.Option(help="PNG file (numbered from the second clip on)")] = Path("negatives.png"),
) -> None:
    """Draw a clip, its views, and each displacement at three strengths."""
    from scaleaudio import bundle
    from scaleaudio.data.normalise import with_constants
    from scaleaudio.report.gallery import draw_gallery

    loaded = load_config(config, overrides)
    stream = loaded.build_stream()
    if model is None:
        loaded = loaded.model_copy(update={"frontend": with_constants(loaded.frontend, stream)})
        encoder = bundle.untrained(loaded)
    else:
        encoder = bundle.load(model)
        if encoder.sample_rate_hz != loaded.frontend.sample_rate_hz:
            raise InputError(
                f"{model}: takes {encoder.sample_rate_hz} Hz, {config} gives {loaded.frontend.sample_rate_hz} Hz. Set "
                f"frontend.sample_rate_hz={encoder.sample_rate_hz}."
            )
        loaded = loaded.model_copy(update={"frontend": encoder.config.frontend})
    batch = next(stream.batches(0))
    stream.close()
    for clip in range(min(clips, len(batch.key_B))):
        path = out if clip == 0 else out.with_stem(f"{out.stem}-{clip + 1}")
        draw_gallery(loaded, encoder, batch, path, clip=clip)
        print(path)


@show_app.command("lanes")
def show_lanes(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(help="numbers of workers, one after the other")] = "4,3",
    step: Annotated[int, typer.Option(min=0, help="the first step to draw")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file")] = Path("lanes.png"),
) -> None:
    """Draw which worker reads which samples before and after their number changes."""
    from scaleaudio.report.lanes import draw_lanes

    sizes = [int(word) if word.isdecimal() else 0 for word in workers.split(",")]
    if not all(sizes):
        raise InputError(f"--workers {workers!r}: expected numbers of workers, such as 4,3")
    stream = load_config(config, overrides).build_stream()
    draw_lanes(stream.mixture, list(stream.config.urls), out, workers=sizes, start_step=step)
    print(out)


@show_app.command("keys")
def show_keys(
    prefix: Annotated[str, typer.Argument(help="a part, such as negatives; default: everything")] = "",
) -> None:
    """Print every key of a config with its type, range, default and meaning, as Markdown."""
    from scaleaudio.reference import part_names, reference

    text = reference(prefix)
    if not text:
        raise InputError(f"no part {prefix!r}; there are {', '.join(part_names())}")
    print(text, end="")


@show_app.command("run")
def show_run(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders or URLs; several over one another")],
    evaluation: Annotated[
        str | None, typer.Option(help="folder with scores.json or sensitivity.json; default: RUN/evaluation")
    ] = None,
    out: Annotated[str | None, typer.Option(help="HTML file, folder or URL; default: NAME.html here")] = None,
) -> None:
    """Write a run's page, one HTML file: curves, faults, config; also while it goes on, and from any storage."""
    from rich.progress import Progress

    from scaleaudio.data import storage
    from scaleaudio.report.history import read_history
    from scaleaudio.report.page import run_page

    if evaluation is not None and len(runs) > 1:
        raise InputError("--evaluation: of one run; of several, put each evaluation into the folder RUN/evaluation")
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        histories = [read_history(run, evaluation, lambda lines: bar.update(task, completed=lines)) for run in runs]
    named = f"{'-'.join(history.name for history in histories)[:100]}.html"
    path = named if out is None else storage.join(out, named) if storage.is_folder(out) else out
    storage.write_atomic(path, run_page(histories).encode())
    print(path)


@show_app.command("sweep")
def show_sweep(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="folder or URL of a sweep, also while it runs")],
) -> None:
    """Print the trials of a sweep as they stand, and draw their scores anew against both strengths."""
    from scaleaudio.data import storage
    from scaleaudio.report.sweep import sweep_table
    from scaleaudio.report.trials import read_trials
    from scaleaudio.sweep.results import PICTURE, read_views, write_pictures

    views, trials = read_views(sweep), read_trials(sweep)
    print_table(sweep_table(trials))
    write_pictures(sweep, trials, views)
    print(storage.join(sweep, PICTURE))
