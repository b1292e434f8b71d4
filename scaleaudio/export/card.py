"""The model card: what a stranger needs in order to use an encoder, and to judge it.

The front matter is the Hugging Face Hub's; the page is the README of the exported folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaleaudio.bundle import AudioEncoder
from scaleaudio.errors import InputError
from scaleaudio.negatives import NoNegatives

METHOD = "https://arxiv.org/abs/2303.08561"


@dataclass(frozen=True)
class CardNotes:
    """What the one who exports knows and the run does not.

    Attributes:
        data: what the audio was, in words.
        licence: of the weights, such as "cc-by-4.0".
        scores: a scores.json of `scaleaudio evaluate`, and the model's name in it where there are several.
        scores_name: which of its models is this one.
    """

    data: str | None = None
    licence: str | None = None
    scores: Path | None = None
    scores_name: str | None = None


def model_card(encoder: AudioEncoder, notes: CardNotes, name: str) -> str:
    """The card in Markdown.

    Raises:
        InputError: the scores cannot be read, or are of other models.
    """
    matter: dict[str, Any] = {"library_name": "scaleaudio", "pipeline_tag": "feature-extraction"}
    matter |= {"tags": ["audio", "self-supervised", "representation-learning"]}
    if notes.licence:
        matter["license"] = notes.licence
    head = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).strip()
    parts = [
        f"---\n{head}\n---",
        f"# {name}",
        _what_it_is(encoder),
        "## How to load it",
        _how_to_load(encoder),
        "## What it was trained on",
        "\n".join(f"- {line}" for line in _training(encoder, notes)),
        "## Scores",
        _scores(notes, name),
        "## Licence",
        _licence(notes),
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_is(encoder: AudioEncoder) -> str:
    num = sum(p.numel() for p in encoder.encoder.parameters())
    return (
        f"An audio encoder of kind `{encoder.config.encoder.kind}` with {num:,} parameters, pre-trained without "
        f"labels. Waveforms at {encoder.sample_rate_hz} Hz become one embedding of {encoder.embedding_dim} numbers a "
        f"clip, and one every {1000 * encoder.hop_seconds:g} ms."
    )


def _how_to_load(encoder: AudioEncoder) -> str:
    return (
        "```python\n"
        "import scaleaudio  # loads neither Ray nor DeepSpeed\n"
        "import torch\n\n"
        'encoder = scaleaudio.load("THIS_FOLDER")\n'
        f"wave_BT = torch.zeros(2, {encoder.sample_rate_hz})  # (clips, samples), mono, in [-1, 1], "
        f"{encoder.sample_rate_hz} Hz\n"
        f"embedding_BD = encoder(wave_BT)  # (2, {encoder.embedding_dim})\n"
        f"frames_BSD = encoder.frames(wave_BT)  # (2, frames, {encoder.embedding_dim})\n"
        "```\n\n"
        "Clips may be one sample to 10 minutes long."
    )


def _training(encoder: AudioEncoder, notes: CardNotes) -> Iterator[str]:
    config, data = encoder.config, encoder.origin.get("data", {})
    if notes.data:
        yield f"Data: {notes.data}"
    sources = data.get("sources") or ({"": data["url"]} if data.get("url") else {})
    for name, url in sources.items():
        yield f"Shards{f' `{name}`' if name else ''}: `{url}`"
    if not notes.data and not sources:
        yield "Data: not known"
    steps = f"Steps: {encoder.step:,}" + ("" if encoder.step else ": the weights are untrained")
    if data.get("global_batch"):
        clips = encoder.step * data["global_batch"]
        hours = clips * config.clip_seconds / 3600
        steps += f" of {data['global_batch']} crops of {config.clip_seconds:g} s ({clips:,} crops, {hours:,.1f} h)"
    yield steps
    if encoder.origin.get("init_from"):
        yield f"Began with the weights of `{encoder.origin['init_from']}`"
    yield f"Objective: {config.objective.kind}; seed {config.seed}"
    yield _negatives(config.negatives)


def _negatives(negatives: Any) -> str:
    if isinstance(negatives, NoNegatives) or not negatives.active:
        return "Adversarial negatives: none (the plain baseline)"
    strengths = {axis: getattr(negatives, f"{axis}_strength", None) for axis in ("frequency", "time")}
    said = ", ".join(f"{axis} strength {value:g}" for axis, value in strengths.items() if value is not None)
    return (
        f"Adversarial negatives: {negatives.kind}{f', {said}' if said else ''}. They are a reconstruction of the idea "
        f"of {METHOD}"
    )


def _scores(notes: CardNotes, name: str) -> str:
    if notes.scores is None:
        return "Not evaluated yet: `scaleaudio evaluate THIS_FOLDER LABELLED`."
    asked = notes.scores_name or name
    lines = ["| task | probe | score (95 % interval over test clips) |", "|---|---|---|"]
    for task, metric, *numbers in _read_scores(notes.scores, asked):
        value, low, high = (f"{number:.3f}".removeprefix("0") for number in numbers)
        lines.append(f"| {task} | {metric} | {value} ({low}-{high}) |")
    return "\n".join(lines)


def _read_scores(path: Path, name: str) -> list[tuple[Any, ...]]:
    """Task, metric, score and the interval's two ends, a row each."""
    try:
        every = json.loads(path.read_text(encoding="utf-8"))["scores"]
        names = sorted({score["model"] for score in every})
        rows = [score for score in every if score["model"] == name]
        found = [(s["task"], s["metric"], *(float(s[key]) for key in ("score", "low", "high"))) for s in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a scores.json of `scaleaudio evaluate` ({error!r})") from error
    if not found:
        raise InputError(f"{path}: no scores of {name!r}, only of {', '.join(names)}. Name one with --scores-of.")
    return found


def _licence(notes: CardNotes) -> str:
    return (
        f"Weights: {notes.licence or 'not stated'}. The licences of the audio that an encoder was trained on may "
        "restrict what its weights may be used for. The code that runs it is Apache-2.0."
    )
