"""Verbs that use a trained encoder: embed, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scaleaudio.cli.app import app, local_folder


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
    state_dict: Annotated[
        bool, typer.Option("--state-dict", help="also write an AudioNTT's weights in BYOL-A's layout")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="also write model.onnx, checked against torch")] = False,
    program: Annotated[
        bool, typer.Option("--program", help="also write model.pt2, a program of torch.export, checked as well")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="also push it to the Hugging Face Hub, which asks for a login"),
    ] = None,
) -> None:
    """Write a self-contained encoder with its model card; `scaleaudio.load(OUT)` loads no Ray and no DeepSpeed."""
    from scaleaudio.config import parse_overrides
    from scaleaudio.export.card import CardNotes
    from scaleaudio.export.folder import export as write

    notes = CardNotes(data, licence, scores, scores_of)
    keys = parse_overrides(frontend or [])
    if onnx or program:
        print("writing and checking a graph takes half a minute", file=sys.stderr)
    extras = {"state_dict": state_dict, "onnx": onnx, "program": program}
    print(write(model, local_folder(out), notes, frontend=keys, **extras))
    if push is not None:
        from scaleaudio.export.hub import push as push_folder

        print(push_folder(out, push))
