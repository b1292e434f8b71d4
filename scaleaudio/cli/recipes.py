"""The verb that prepares public data sets: recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaleaudio.cli.app import app, local_folder, print_table
from scaleaudio.errors import InputError

_BUILD = "scaleaudio shards build {}/labels.csv SHARDS --where split=train"

if TYPE_CHECKING:
    from scaleaudio.recipes import Recipe


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="data set; without SRC, what to know about it")] = None,
    src: Annotated[Path | None, typer.Argument(help="its official archive, a folder of them, or unpacked")] = None,
    out: Annotated[Path | None, typer.Argument(help="labelled folder to write")] = None,
    everything: Annotated[bool, typer.Option("--list", help="all data sets: licence, size, splits, metric")] = False,
) -> None:
    """Turn a public data set's official archive into a labelled folder with its official splits."""
    from scaleaudio.recipes import RECIPES, find_recipe, make

    if everything or name is None:
        _print_list(list(RECIPES.values()))
        return
    chosen = find_recipe(name)
    if src is None:
        _print_card(chosen)
        return
    if out is None:
        raise InputError(f"recipe {name}: no OUT. scaleaudio recipe {name} {src} OUT")
    made = make(chosen, src, local_folder(out), progress=sys.stderr.isatty())
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    parts = ", ".join(f"{part}: {count}" for part, (count, _) in made.parts.items() if count)
    print(f"{made.num_clips} clips, {made.num_labels} labels ({parts}): {out}/labels.csv")
    print(f"licence: {chosen.licence}. Metric: {chosen.metric}")
    several = f" --separator '{chosen.separator}'" if chosen.separator else ""
    print(f"next: scaleaudio evaluate MODEL {out}{several}" if chosen.num_labels else f"next: {_BUILD.format(out)}")


def _print_list(recipes: list[Recipe]) -> None:
    from rich.table import Table

    table = Table("name", "what", "to predict", "GB", "splits", "metric", "licence")
    for recipe in recipes:
        size = f"{recipe.gigabytes:g}"
        table.add_row(recipe.name, recipe.title, recipe.task, size, recipe.protocol, recipe.metric, recipe.licence)
    print_table(table, width=180)


def _print_card(recipe: Recipe) -> None:
    counts = ", ".join(f"{part or 'in none'}: {count:,}" for part, count in recipe.expected.items())
    lines = {
        "task": recipe.task,
        "get it": recipe.url,
        "archives": ", ".join(recipe.archives),
        "size": f"{recipe.gigabytes:g} GB packed",
        "unpacked": recipe.layout,
        "splits": recipe.protocol,
        "clips": counts or "no official number",
        "columns": ", ".join(("filename", *recipe.columns)),
        "metric": recipe.metric,
        "licence": recipe.licence,
    }
    print(recipe.title)
    for key, value in lines.items():
        print(f"  {key:9} {value}")
    print(f"scaleaudio recipe {recipe.name} ARCHIVE_OR_FOLDER OUT")
