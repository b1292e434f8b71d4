"""scaleaudio: audio encoders pre-trained without labels, at any scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaleaudio.bundle import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`scaleaudio.load`, imported when it is asked for, so that `import scaleaudio` is instant."""
    if name == "load":
        from scaleaudio.bundle import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
