"""Which objectives there are: the shipped ones by `kind`, and anyone's own by "package:Class"."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from torch import nn

from scaleaudio.objectives.base import AgainstNegatives, HeadConfig
from scaleaudio.objectives.byol import BYOLConfig
from scaleaudio.objectives.infonce import InfoNCEConfig
from scaleaudio.own import OwnKind, make_own, tag_of


class OwnObjective(AgainstNegatives):
    """A user's objective: the class that `kind` names, called with `options`.

    It is an `nn.Module` called as (pairs, world, counts) -> the loss, as `scaleaudio.objectives.InfoNCE` is: the mean
    over this rank's clips, scaled so that the mean over ranks is that over the global batch. With `needs_target` the
    pairs hold the projections of an EMA target too.
    """

    kind: OwnKind
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the class")
    projector: HeadConfig = HeadConfig()
    needs_target: Annotated[bool, Field(description="whether the objective compares with an EMA target")] = False

    def build(self) -> nn.Module:
        """The objective.

        Raises:
            ValueError: when the class cannot be imported or is no module.
        """
        made = make_own("objective", self.kind, **self.options)
        if not isinstance(made, nn.Module):
            raise ValueError(f"objective.kind {self.kind!r}: expected a subclass of torch.nn.Module")
        return made


ObjectiveConfig = Annotated[
    Annotated[InfoNCEConfig, Tag("infonce")] | Annotated[BYOLConfig, Tag("byol")] | Annotated[OwnObjective, Tag("own")],
    Discriminator(tag_of),
]
