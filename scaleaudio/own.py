"""Anyone's own encoder, adversary or objective: a `kind` of the form "package:Class" names a class to import.

Only run configs that you trust: this imports what they name.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

from pydantic import Field

OwnKind = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


def make_own(part: str, kind: str, /, **arguments: Any) -> Any:
    """An object of the class that `kind` names, called with `arguments`; else as `find_own`."""
    return find_own(part, kind)(**arguments)


def find_own(part: str, kind: str) -> Any:
    """The class that `kind` names.

    Args:
        part: the part of the config, for the error.
        kind: "package:Class".

    Raises:
        ValueError: naming the key, when there is no such class.
    """
    module, _, name = kind.partition(":")
    try:
        own = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{part}.kind {kind!r}: cannot be imported ({error})") from error
    if not callable(own):
        raise ValueError(f"{part}.kind {kind!r}: expected a class, got {type(own).__name__}")
    return own


def tag_of(value: Any) -> str | None:
    """The tag of a part of a config in its union: its `kind`, or "own"."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "own" if isinstance(kind, str) and ":" in kind else kind
