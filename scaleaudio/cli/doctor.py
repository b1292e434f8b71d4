"""The verb that looks before a run: doctor."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scaleaudio.cli.app import Overrides, app, load_config

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file: its shards and run folder are looked at too")
    ] = None,
    overrides: Overrides = None,
    data: Annotated[list[str] | None, typer.Option(help="folder or URL of shards to look at")] = None,
    out: Annotated[str | None, typer.Option(help="folder or URL that runs go to")] = None,
    deadline: Annotated[float, typer.Option(min=1, help="seconds that a check may take")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON when all is done")] = False,
) -> None:
    """Tell what this machine and the cluster of RAY_ADDRESS have, what is missing, and the fix; exit 1 on a failure."""
    from scaleaudio.launch.apart import Asked, Finding
    from scaleaudio.launch.doctor import doctor as examine

    urls, place = list(data or []), out
    if config is not None:
        loaded = load_config(config, overrides)
        urls, place = [*urls, *loaded.data.urls.values()], out or f"runs/{loaded.name}"
    found: list[Finding] = []
    for finding in examine(Asked(tuple(dict.fromkeys(urls)), place or "runs", deadline)):
        found.append(finding)
        if not as_json:
            _show(finding.status, finding.check, finding.text, finding.fix)
    failed = sum(finding.status == "fail" for finding in found)
    warned = sum(finding.status == "warn" for finding in found)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        print(f"{len(found) - failed - warned} ok, {warned} to think about, {failed} to mend")
    if failed:
        raise typer.Exit(1)


def _show(status: str, check: str, text: str, fix: str) -> None:
    typer.echo(f"{typer.style(f'{status:5}', fg=_COLOURS[status])} {check:10} {text}")
    if fix:
        typer.echo(f"{'':16} -> {fix}")
