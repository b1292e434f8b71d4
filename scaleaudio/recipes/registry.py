"""The recipes by name."""

from __future__ import annotations

import difflib

from scaleaudio.errors import InputError
from scaleaudio.recipes import (
    audioset,
    cremad,
    esc50,
    fsd50k,
    gtzan,
    librispeech,
    nsynth,
    speechcommands,
    surge,
    urbansound8k,
    voxceleb1,
    voxforge,
)
from scaleaudio.recipes.base import Recipe

_TASKS = (esc50, urbansound8k, speechcommands, nsynth, voxceleb1, voxforge, cremad, gtzan, surge, fsd50k, audioset)
RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in (*_TASKS, librispeech)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: naming the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), RECIPES, n=1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
    raise InputError(f"no recipe {name!r}; {meant}")
