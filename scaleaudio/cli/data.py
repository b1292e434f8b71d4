"""Verbs that make data: synth, shards."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scaleaudio.cli.app import app, shards_app
from scaleaudio.errors import InputError


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
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]", help="build settings, such as min_seconds=0.5; all: show keys 'shards build'"
        ),
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
    """Check tars against their index; each damaged shard is named, and the exit code is then 1."""
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
