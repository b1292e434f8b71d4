"""Which adversaries there are: the shipped ones by `kind`, and anyone's own by "package:Class"."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from scaleaudio.negatives.base import Adversary, NegativesSettings, NoNegatives
from scaleaudio.negatives.field import FieldNegatives
from scaleaudio.negatives.hardest_of_k import HardestOfK
from scaleaudio.negatives.value import ValueNegatives
from scaleaudio.own import OwnKind, make_own, tag_of
from scaleaudio.views import ViewsConfig


class OwnNegatives(NegativesSettings):
    """A user's adversary: the class that `kind` names, called with `views` and `options`.

    It has the method `find` of `scaleaudio.negatives.Adversary`, and tells no families apart.
    """

    kind: OwnKind
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the class")

    def build(self, views: ViewsConfig) -> Adversary:
        """The adversary.

        Raises:
            ValueError: when the class cannot be imported or finds nothing.
        """
        made = make_own("negatives", self.kind, views=views, **self.options)
        if not callable(getattr(made, "find", None)):
            raise ValueError(
                f"negatives.kind {self.kind!r}: expected a class with the method `find` of "
                "scaleaudio.negatives.Adversary"
            )
        adversary: Adversary = made
        return adversary


NegativesConfig = Annotated[
    Annotated[HardestOfK, Tag("hardest_of_k")]
    | Annotated[FieldNegatives, Tag("field")]
    | Annotated[ValueNegatives, Tag("value")]
    | Annotated[NoNegatives, Tag("none")]
    | Annotated[OwnNegatives, Tag("own")],
    Discriminator(tag_of),
]
