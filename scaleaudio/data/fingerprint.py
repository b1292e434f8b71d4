"""Whether a checkpoint's steps are counted in the stream that is read now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scaleaudio.errors import InputError


class _Past(NamedTuple):
    """A fingerprint as far as the steps before a step depend on it: sources by their place, phases by first step."""

    settings: dict[str, Any]
    names: dict[int, str]
    indexes: dict[int, str]
    phases: dict[int, dict[int, int]]

    def name(self, at: int) -> str:
        """Of the source at that place."""
        return self.names.get(at) or f"source {at}"


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any], step: int) -> None:
    """Refuses to go on at `step` in another stream than the one that a checkpoint was made with.

    The mixture may change from `step` on, and a source may have another name.

    Raises:
        InputError: naming each setting, source and phase that differs, with both values.
    """
    before, now = _past(saved, step), _past(current, step)
    before.names.update({at: name for at, name in now.names.items() if not before.names.get(at)})
    changes = list(_changes(before, now))
    if changes:
        how = "" if before.phases == now.phases else f": {_old_weights(before, now, step)}"
        raise InputError(
            f"the checkpoint counts its steps in another stream: {'; '.join(changes)}. Set them back{how}; or start "
            "anew with --fresh."
        )


def _past(fingerprint: Mapping[str, Any], step: int) -> _Past:
    """What older checkpoints lack was the default."""
    settings = {"crops_per_clip": 1, "short_clips": "pad", **fingerprint}
    past = _Past(settings, dict(enumerate(settings.pop("sources", [""]))), {}, {})
    index, mixture = settings.pop("index", None), settings.pop("mixture", None)
    last: list[Any] = []
    for from_step, sources in mixture or [[0, [[0, index, 1]]]]:
        # A source alone goes on as it was where a phase names it again; several begin their turns anew.
        if from_step < max(step, 1) and not (len(sources) == 1 and sources == last):
            past.indexes.update({at: index for at, index, _ in sources})
            past.phases[from_step] = {at: weight for at, _, weight in sources}
        last = sources
    return past


def _changes(before: _Past, now: _Past) -> Iterator[str]:
    for key in {**now.settings, **before.settings}:
        old, new = before.settings.get(key), now.settings.get(key)
        if old != new:
            yield f"{key} was {old} and is now {new}"
    for at in before.indexes.keys() & now.indexes.keys():
        old, new = before.indexes[at], now.indexes[at]
        if old != new:
            of = f" of {now.names[at]}" if now.names.get(at) else ""
            yield f"index{of} was {old} and is now {new}"
    for step in sorted(before.phases.keys() | now.phases.keys()):
        if before.phases.get(step) != now.phases.get(step):
            yield f"mixture from step {step} was {_shares(before, step)} and is now {_shares(now, step)}"


def _shares(past: _Past, step: int) -> str:
    weights = past.phases.get(step)
    if weights is None:
        return "not there"
    return ", ".join(f"{past.name(at)} {weight / sum(weights.values()):.1%}" for at, weight in weights.items())


def _old_weights(before: _Past, now: _Past, step: int) -> str:
    """What to put into the config, so that the steps before `step` are as they were."""
    old = "; ".join(
        f"from_step {from_step}, weights {{{', '.join(f'{before.name(at)}: {w}' for at, w in weights.items())}}}"
        for from_step, weights in before.phases.items()
    )
    added = ", ".join(now.name(at) for at in now.indexes.keys() - before.indexes.keys())
    return f"write out the old weights in data.mixture ({old}) and weigh {added or 'anew'} from step {step} on"
