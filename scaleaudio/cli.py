"""The command line. Each verb imports what it needs when it runs, so that --help is instant.

Exit codes: 0 done, 1 failed while running, 2 wrong input (one line on stderr, no traceback unless --debug).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from scaleaudio import __version__
from scaleaudio.errors import InputError, RunFailed

if TYPE_CHECKING:
    from scaleaudio.evaluate import Task

app = typer.Typer(
    name="scaleaudio",
    help="Pre-trains audio encoders without labels, at any scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards_app = typer.Typer(help="Make, index and check WebDataset shards.", no_args_is_help=True)
show_app = typer.Typer(help="Draw pictures.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(show_app, name="show")
bench_app = typer.Typer(help="Measure on this machine what the hot paths cost.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="config keys to set")]


def main() -> None:
    """Runs the program and turns errors into exit codes and one line."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    try:
        code = app(standalone_mode=False, obj=debug)  # an Exit that a verb raises comes back as its number
    except InputError as error:
        _fail(error, 2, debug)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            _fail(InputError(error.format_message()), 2, debug)
        named = str(error) if isinstance(error, RunFailed | OSError) else f"{type(error).__name__}: {error}"
        _fail(RuntimeError(named), 1, debug, cause=error)
    sys.exit(code or 0)


def _fail(error: Exception, code: int, debug: bool, cause: Exception | None = None) -> NoReturn:
    if debug:
        traceback.print_exception(cause or error)
    if str(error):  # a verb without arguments has shown its help instead
        print(f"scaleaudio: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


def _local_folder(out: Path) -> Path:
    if ":/" in str(out):
        raise InputError(f"{out}: expected a local folder. Write it here and copy it there afterwards.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; expected a folder to write to. Give another.")
    return out


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and the workers' logs")] = False,
) -> None:
    """Pre-trains audio encoders without labels, at any scale."""


@app.command()
def synth(
    out: Annotated[str, typer.Argument(help="folder to write")],
    clips: Annotated[int, typer.Option(help="how many clips")] = 1000,
    seed: Annotated[int, typer.Option(help="another seed, another corpus")] = 0,
) -> None:
    """Write the built-in labelled corpus: no download, same bytes for the same seed."""
    from scaleaudio.data.synth import synth as write

    write(out, clips, seed, progress=sys.stderr.isatty())
    print(f"{clips} clips in {out}")


@shards_app.command("build")
def shards_build(
    context: typer.Context,
    src: Annotated[str, typer.Argument(help="folder of audio (with labels.csv, if any), or a CSV or Parquet list")],
    out: Annotated[str, typer.Argument(help="folder for tars and index")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="build settings, such as min_seconds=0.5")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="keep rows by label column, such as split=train")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete an earlier build in OUT")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="spread it over the cluster of RAY_ADDRESS")] = False,
) -> None:
    """Turn audio files into WebDataset tars with a Parquet index; an interrupted build goes on."""
    from pydantic import ValidationError

    from scaleaudio.config import error_lines, parse_overrides
    from scaleaudio.data.build import BuildConfig, build

    wanted = parse_overrides(where or [], as_text=True)
    try:
        config = BuildConfig.model_validate(parse_overrides(settings or []) | ({"where": wanted} if wanted else {}))
    except ValidationError as error:
        raise InputError("shards build: " + "; ".join(error_lines(error, BuildConfig))) from error
    if ray:
        from scaleaudio.launch.shards import build as build_over_ray

        done = build_over_ray(src, out, config, progress=sys.stderr.isatty(), fresh=fresh, debug=bool(context.obj))
    else:
        done = build(src, out, config, progress=sys.stderr.isatty(), fresh=fresh)
    print(
        f"{done.accepted} files as {done.samples} clips ({done.seconds / 3600:.2f} h) in {done.shards} shards: {out}; "
        f"{done.rejected} rejected ({out}/rejects.parquet)" + (f"; {done.left_out} left out" if done.left_out else "")
    )


@shards_app.command("index")
def shards_index(
    url: Annotated[str, typer.Argument(help="folder of tars that somebody else made")],
    out: Annotated[str | None, typer.Option(help="where the index goes, for folders that cannot be written")] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="tar headers alone: quick, but no checksums")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="replace the index that is there")] = False,
) -> None:
    """Index existing tars, so that they can be streamed."""
    from scaleaudio.data.scan import index

    done = index(url, out, headers_only=headers_only, progress=sys.stderr.isatty(), replace=replace)
    print(f"{done.samples} samples in {done.shards} shards: {out or url}")
    for name, reason in done.rejects[:20]:
        print(f"rejected: {name}: {reason}", file=sys.stderr)
    if len(done.rejects) > 20:
        print(f"and {len(done.rejects) - 20} more in {out or url}/rejects.parquet", file=sys.stderr)


@shards_app.command("verify")
def shards_verify(url: Annotated[str, typer.Argument(help="folder with an index.parquet")]) -> None:
    """Check tars against their index; exit 1 names each damaged shard."""
    from scaleaudio.data.shards import num_unchecked, verify

    damages = verify(url, progress=sys.stderr.isatty())
    for damage in damages:
        print(f"{damage.shard}{f', {damage.member}' if damage.member else ''}: {damage.reason}", file=sys.stderr)
    if damages:
        raise typer.Exit(1)
    unchecked = num_unchecked(url)
    print(
        "all shards are as they were indexed"
        + (f"; of {unchecked}, indexed from headers only, no more than the size was checked" if unchecked else "")
    )


@app.command()
def pretrain(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="run name instead of the config's")] = None,
    out: Annotated[str | None, typer.Option(help="run folder or URL instead of runs/NAME")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the run and start anew")] = False,
    max_hours: Annotated[float | None, typer.Option(help="stop in good order after this time")] = None,
) -> None:
    """Pre-train one encoder, on this machine or on the cluster of RAY_ADDRESS; goes on where it was stopped."""
    from scaleaudio.config import load, parse_overrides
    from scaleaudio.launch.pretrain import pretrain as run
    from scaleaudio.launch.progress import Progress

    changes = parse_overrides(overrides or []) | ({"name": name} if name else {})
    loaded = load(config, changes)
    with Progress(loaded.schedule.steps) as progress:
        outcome = run(
            loaded,
            out or f"runs/{loaded.name}",
            fresh=fresh,
            max_hours=max_hours,
            on_event=progress.on_event,
            debug=bool(context.obj),
        )
    state = "finished" if outcome.finished else "stopped; the same command goes on"
    print(f"{state} at step {outcome.step}: {outcome.run_url}")


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

    folder = _local_folder(out)
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
    _show_table(report.score_table(results))
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
    _show_table(report.sensitivity_table(results))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(results, folder / "sensitivity.json")
    report.draw_sensitivity(results, folder / "sensitivity.png")
    (folder / "sensitivity.md").write_text(report.sensitivity_markdown(results))
    print(f"{folder / 'sensitivity.json'}, {folder / 'sensitivity.md'}, {folder / 'sensitivity.png'}")


def _show_table(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 132).print(table)


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
    model: Annotated[str, typer.Argument(help="run folder or checkpoint")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
) -> None:
    """Write a self-contained encoder: `scaleaudio.load(OUT)` needs torch and torchaudio, no cluster."""
    from scaleaudio import bundle

    _local_folder(out)
    print(bundle.save(bundle.load(model), out))


@show_app.command("negatives")
def show_negatives(
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="encoder to ask for similarities; default: untrained")] = None,
    clips: Annotated[int, typer.Option(min=1, help="how many clips, a picture each")] = 1,
    out: Annotated[Path, typer.Option(help="PNG file (numbered from the second clip on)")] = Path("negatives.png"),
) -> None:
    """Draw a clip, its views, and each displacement at three strengths."""
    from scaleaudio import bundle
    from scaleaudio.config import load, parse_overrides
    from scaleaudio.data.normalise import with_constants
    from scaleaudio.report.gallery import draw_gallery

    loaded = load(config, parse_overrides(overrides or []))
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
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(help="how many workers, one number after the other")] = "4,3",
    step: Annotated[int, typer.Option(min=0, help="the first step to draw")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file")] = Path("lanes.png"),
) -> None:
    """Draw which worker reads which samples before and after their number changes."""
    from scaleaudio.config import load, parse_overrides
    from scaleaudio.report.lanes import draw_lanes

    sizes = [int(word) if word.isdecimal() else 0 for word in workers.split(",")]
    if not all(sizes):
        raise InputError(f"--workers {workers!r}: expected numbers of workers, such as 4,3")
    stream = load(config, parse_overrides(overrides or [])).build_stream()
    draw_lanes(stream.mixture, list(stream.config.urls), out, workers=sizes, start_step=step)
    print(out)


@bench_app.command("plan")
def bench_plan(
    shards: Annotated[int, typer.Option(min=1, help="how many shards of 1,000 samples")] = 1_000_000,
    ranks: Annotated[int, typer.Option(min=1, help="how many workers, each with 8 lanes")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """What it costs a worker to know what it reads next, over an index of a billion samples that do not exist."""
    from scaleaudio.bench.plan import PlanScale, plan_table
    from scaleaudio.bench.plan import bench_plan as measure

    _show(measure(PlanScale(shards=shards, ranks=ranks)), plan_table, as_json)


@bench_app.command("loader")
def bench_loader(
    url: Annotated[str | None, typer.Option(help="local shards with an index, instead of clips made for it")] = None,
    shards: Annotated[int, typer.Option(min=1, help="how many shards are made")] = 10,
    workers: Annotated[str, typer.Option(help="numbers of decoding threads and of the others' processes")] = "1,2,4",
    crop_seconds: Annotated[float, typer.Option(min=0.01, help="how much of each clip is used")] = 0.96,
    seconds: Annotated[float, typer.Option(min=0.1, help="how long each is measured")] = 4.0,
    repeats: Annotated[int, typer.Option(min=1, help="how often, in turns")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """This stream beside the usual WebDataset recipe and bare tar bytes: clips a second and a core, memory."""
    from rich.progress import Progress

    from scaleaudio.bench.loader import LoaderScale, loader_table
    from scaleaudio.bench.loader import bench_loader as measure

    if not all(number.isdecimal() and int(number) for number in workers.split(",")):
        raise InputError(f"--workers {workers}: expected numbers from 1 on with commas between, as 1,2,4")
    numbers = tuple(map(int, workers.split(",")))
    scale = LoaderScale(
        url=url, shards=shards, workers=numbers, crop_seconds=crop_seconds, seconds=seconds, repeats=repeats
    )
    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("measuring")
        result = measure(scale, lambda done, total: bar.update(task, completed=done, total=total))
    _show(result, loader_table, as_json)


@bench_app.command("adversary")
def bench_adversary(
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="steps of each kind that are timed, in turns")] = 10,
    only: Annotated[str, typer.Option(help="kinds whose name holds this")] = "",
    threads: Annotated[int, typer.Option(min=1, help="of torch, without a GPU")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measure a training step with every kind of negatives against the step without them."""
    from dataclasses import asdict

    import torch

    from scaleaudio.bench import adversary
    from scaleaudio.config import load, parse_overrides

    torch.set_num_threads(threads)
    loaded = load(config, parse_overrides(overrides or []))
    arms = {name: arm for name, arm in adversary.arms(loaded).items() if only in name or name == adversary.BASELINE}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    costs = adversary.measure(arms, loaded.data, loaded.optimizer, rounds=rounds, device=device)
    _show([asdict(cost) for cost in costs], lambda _: adversary.table(costs, device), as_json)


def _show(result: Any, table: Any, as_json: bool) -> None:
    """Prints what a benchmark found."""
    from rich.console import Console

    if as_json:
        print(json.dumps(result, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 150).print(table(result))
