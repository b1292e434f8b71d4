"""The program and its groups of verbs, and what the verbs have in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaleaudio import __version__
from scaleaudio.errors import InputError

if TYPE_CHECKING:
    from scaleaudio.config import Config

app = typer.Typer(
    name="scaleaudio",
    help="Pre-trains audio encoders without labels, at any scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards_app = typer.Typer(help="Make, index and check WebDataset shards.", no_args_is_help=True)
show_app = typer.Typer(help="Draw pictures; list the keys of a config.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure on this machine what the hot paths cost.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(show_app, name="show")
app.add_typer(bench_app, name="bench")

ConfigFile = Annotated[Path, typer.Argument(help="YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]", help="config keys to set")]


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


def load_config(config: Path, overrides: list[str] | None) -> Config:
    """The run that a file and the keys on the command line say."""
    from scaleaudio.config import load, parse_overrides

    return load(config, parse_overrides(overrides or []))


def local_folder(out: Path) -> Path:
    """`out`, once it can be a folder on this machine.

    Raises:
        InputError: it is an address, or a file.
    """
    if ":/" in str(out):
        raise InputError(f"{out}: expected a local folder. Write it here and copy it there afterwards.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; expected a folder to write to. Give another.")
    return out


def print_table(table: Any, width: int = 132) -> None:
    """Prints a rich table, `width` columns wide where nobody looks."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width).print(table)
