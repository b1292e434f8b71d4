"""From the official archives of public data sets to labelled folders: one file a data set, with its official splits."""

from scaleaudio.recipes.base import Recipe
from scaleaudio.recipes.make import Made, make
from scaleaudio.recipes.registry import RECIPES, find_recipe

__all__ = ["RECIPES", "Made", "Recipe", "find_recipe", "make"]
