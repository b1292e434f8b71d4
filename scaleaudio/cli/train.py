"""Verbs that train: pretrain, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scaleaudio.cli.app import ConfigFile, Overrides, app, print_table
from scaleaudio.errors import RunFailed


@app.command()
def pretrain(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="run name instead of the config's")] = None,
    out: Annotated[str | None, typer.Option(help="run folder or URL instead of runs/NAME")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the run and start anew")] = False,
    max_hours: Annotated[float | None, typer.Option(help="stop in good order after this time")] = None,
) -> None:
    """Pre-train one encoder, on this machine or on the cluster of RAY_ADDRESS; goes on where it was stopped."""
    from scaleaudio.config import load, parse_overrides
    from scaleaudio.launch.account import Account, next_commands
    from scaleaudio.launch.pretrain import pretrain as run
    from scaleaudio.launch.progress import Progress

    changes = parse_overrides(overrides or []) | ({"name": name} if name else {})
    loaded = load(config, changes)
    url, account = out or f"runs/{loaded.name}", Account()
    with Progress(loaded.schedule.steps) as progress:

        def on_event(event: dict[str, Any]) -> None:
            progress.on_event(event)
            account.on_event(event)

        try:
            outcome = run(loaded, url, fresh=fresh, max_hours=max_hours, on_event=on_event, debug=bool(context.obj))
        except RunFailed:
            _tell([*account.went(), f"what happened: {next(next_commands(url, finished=False))}"])
            raise
    _tell([*account.went(), *(f"next: {command}" for command in next_commands(url, finished=outcome.finished))])
    state = "finished" if outcome.finished else "stopped; the same command goes on"
    print(f"{state} at step {outcome.step}: {outcome.run_url}")
    if outcome.stopped_by == "SIGTERM" and not outcome.finished:
        raise typer.Exit(143)  # as a scheduler expects of what it ended: 0 would count as done


def _tell(lines: list[str]) -> None:
    for line in lines:
        print(line)


@app.command()
def sweep(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of an experiment, maybe with a part `sweep`")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="the sweep's name instead of the config's")] = None,
    out: Annotated[str | None, typer.Option(help="folder or URL instead of sweeps/NAME")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the sweep and start anew")] = False,
) -> None:
    """Try values of config keys (by default both strengths) against the baseline; goes on where it was stopped."""
    from scaleaudio.config import parse_overrides
    from scaleaudio.data import storage
    from scaleaudio.launch.sweep import sweep as run
    from scaleaudio.launch.trials_progress import TrialsProgress
    from scaleaudio.report.sweep import sweep_table
    from scaleaudio.sweep import load_sweep
    from scaleaudio.sweep.results import PICTURE, TEXT, WINNER

    plan = load_sweep(config, parse_overrides(overrides or []) | ({"name": name} if name else {}))
    url = out or f"sweeps/{plan.base.name}"
    stopped_by: str | None = None
    with TrialsProgress(1 + plan.num_trials + 2 * plan.sweep.repeats, plan.base.schedule.steps) as progress:

        def on_event(event: dict[str, Any]) -> None:
            nonlocal stopped_by
            progress.on_event(event)
            stopped_by = event["reason"] if event["kind"] == "ended" and "trial" not in event else stopped_by

        records = run(plan, url, fresh=fresh, on_event=on_event, debug=bool(context.obj))
    print_table(sweep_table(records))
    stopped = stopped_by is not None or not all(record.ended for record in records)
    print("stopped; the same command goes on" if stopped else f"scaleaudio pretrain {storage.join(url, WINNER)}")
    print(f"{storage.join(url, TEXT)}, {storage.join(url, PICTURE)}")
    if stopped_by == "SIGTERM":
        raise typer.Exit(143)  # as for one run
