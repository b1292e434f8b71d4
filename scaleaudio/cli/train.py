"""Verbs that train: pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaleaudio.cli.app import Overrides, app


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
