"""Every key of a config as Markdown: type, range, default, meaning; read off the pydantic models that check them."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import annotated_types as ranges
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scaleaudio.config import Config
from scaleaudio.data.build import BuildConfig
from scaleaudio.sweep import SweepConfig

_INTRO = """# Configuration

Every key of a run's config, as `scaleaudio show keys` prints it. A config is a YAML file; any key can be set on the
command line by its dotted name, and a misspelt one is refused with the nearest that there is:

```bash
scaleaudio pretrain configs/quickstart.yaml negatives.frequency_strength=0.3 views.mixup=null
```

A part that has a `kind` takes the keys of that kind; without `kind` it has the default one. `config.yaml` in a run's
folder spells out every value that the run had.
"""
_SIGNS = {ranges.Ge: "≥", ranges.Gt: ">", ranges.Le: "≤", ranges.Lt: "<"}
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}


def reference(prefix: str = "") -> str:
    """The whole reference, or only the parts whose dotted name begins with `prefix`; "" where there is none."""
    sections = [*_sections(Config), _Section("sweep", SweepConfig), _Section("shards build", BuildConfig)]
    chosen = [_text(at) for at in sections if not prefix or f"{at.name}.".startswith(f"{prefix}.")]
    return "\n".join(chosen if prefix else [_INTRO, *chosen])


def part_names() -> list[str]:
    """The dotted names that `reference` knows."""
    return [*dict.fromkeys(at.name for at in _sections(Config) if at.name), "sweep", "shards build"]


def undescribed() -> list[str]:
    """Dotted names of the keys whose meaning is nowhere said."""
    sections = [*_sections(Config), _Section("sweep", SweepConfig), _Section("shards build", BuildConfig)]
    return [_dotted(at.name, key) for at in sections for key, info in _fields(at) if not _meaning(info, f".{key}")]


@dataclass(frozen=True)
class _Section:
    """One model at one place of the tree.

    Attributes:
        name: its dotted name.
        model: whose keys they are.
        values: those that it has by default there; None: the model's own defaults.
        within: the kind of what it is a part of.
    """

    name: str
    model: type[BaseModel]
    values: BaseModel | None = None
    within: str = ""


def _sections(model: type[BaseModel], name: str = "", values: Any = None, within: str = "") -> Iterator[_Section]:
    """`model` and each model among its values, and so on."""
    at = _Section(name, model, values, within)
    yield at
    for key, info in _fields(at):
        default = _value(at, key, info)
        for part in _inner(info.annotation):
            kinds = " or ".join(_kinds(model))
            given = default if isinstance(default, part) else None
            yield from _sections(part, _dotted(name, key), given, kinds or within)


def _text(at: _Section) -> str:
    kinds = " or ".join(_kinds(at.model))
    kind = f" of kind {kinds}" if kinds else f" (where the kind is {at.within})" if at.within else ""
    title = {"": "The run", "shards build": "Settings of `shards build`"}.get(at.name, f"`{at.name}`{kind}")
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for key, info in _fields(at):
        dotted = _dotted(at.name, key)
        cells = (f"`{dotted}`", _type(info), _default(at, key, info), _meaning(info, dotted))
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return f"## {title}\n\n{_summary(at.model)}\n\n" + "\n".join(rows) + "\n"


def _fields(at: _Section) -> list[tuple[str, FieldInfo]]:
    """The keys of a section: `kind` first, then those of its own before the inherited ones."""
    own = at.model.__annotations__
    return sorted(at.model.model_fields.items(), key=lambda item: (item[0] != "kind", item[0] not in own))


def _dotted(name: str, key: str) -> str:
    return key if not name or " " in name else f"{name}.{key}"


def _value(at: _Section, key: str, info: FieldInfo) -> Any:
    return getattr(at.values, key) if at.values is not None else info.get_default(call_default_factory=True)


def _summary(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _meaning(info: FieldInfo, dotted: str) -> str:
    if info.description:
        return info.description
    inner = _inner(info.annotation)
    if inner:
        return f"{'one of several kinds' if len(inner) > 1 else 'a part of its own'}: see `{dotted}` below"
    return "which of the kinds it is" if dotted.endswith(".kind") else ""


def _default(at: _Section, key: str, info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = _value(at, key, info)
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"kind `{kind}`" if kind else "see below"
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        kinds = [{"kind": item.kind} if hasattr(item, "kind") else {} for item in value]
        changed = [item.model_dump(mode="json", exclude_defaults=True) for item in value]
        value = [kind | rest for kind, rest in zip(kinds, changed, strict=True)]
    return f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def _type(info: FieldInfo) -> str:
    return _of_range(_named(info.annotation), info.metadata)


def _named(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        metadata = [item for part in arguments[1:] for item in getattr(part, "metadata", [part])]
        return _of_range(_named(arguments[0]), metadata)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_named(part) for part in arguments))
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(value)}`".replace('"', "") for value in arguments)
    if origin is dict:
        return f"mapping of {_named(arguments[0])} to {_named(arguments[1])}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_named(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(map(_named, arguments)) + "]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _NAMES.get(annotation, "anything")


def _of_range(name: str, metadata: list[Any]) -> str:
    bounds = [
        f"{sign} {getattr(bound, kind.__name__.lower()):,g}"
        for bound in metadata
        for kind, sign in _SIGNS.items()
        if isinstance(bound, kind)
    ]
    plain, null, _ = name.partition(" or null")
    return f"{plain} {', '.join(bounds)}{null}" if bounds else name


def _inner(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value may be, in the order in which they are tried."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    parts = typing.get_args(annotation) if typing.get_origin(annotation) is not typing.Literal else ()
    return list(dict.fromkeys(model for part in parts for model in _inner(part)))


def _kinds(model: type[BaseModel]) -> list[str]:
    info = model.model_fields.get("kind")
    if info is None:
        return []
    values = typing.get_args(info.annotation) if typing.get_origin(info.annotation) is typing.Literal else ()
    return [f"`{value}`" for value in values] or ['`"package:Class"`']
