"""What all objectives have: heads, the term in the embedding, and where adversarial negatives act."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from scaleaudio.objectives.embedding import EmbeddingTermConfig
from scaleaudio.objectives.pairs import Gradient
from scaleaudio.objectives.predict import PredictConfig
from scaleaudio.types import Settings


class HeadConfig(Settings):
    """A perceptron with one hidden layer."""

    hidden_dim: Annotated[int, Field(ge=1, description="width of the hidden layer")] = 512
    output_dim: Annotated[int, Field(ge=1, description="width of what comes out")] = 128
    norm: Annotated[
        Literal["batch", "layer"],
        Field(description="in the hidden layer: batch, or layer, which does not look at the other clips"),
    ] = "batch"

    def build(self, input_dim: int, output_dim: int | None = None) -> nn.Sequential:
        """The head; `output_dim` overrides the config's."""
        norm = nn.BatchNorm1d(self.hidden_dim) if self.norm == "batch" else nn.LayerNorm(self.hidden_dim)
        return nn.Sequential(
            nn.Linear(input_dim, self.hidden_dim),
            norm,
            nn.ReLU(),
            nn.Linear(self.hidden_dim, output_dim or self.output_dim),
        )


class AgainstNegatives(Settings):
    """Where and on whom adversarial negatives act, and whether embeddings are compared too.

    Without an adversary only `embedding` matters.
    """

    negative_on: Annotated[
        Literal["projector", "embedding", "both"],
        Field(description="where negatives are repelled: in the projection, in the embedding that is kept, or in both"),
    ] = "projector"
    negative_gradient: Annotated[
        Gradient,
        Field(
            description="which side a negative's similarity moves; with `anchor` the negative has no gradient and "
            "costs no backward pass"
        ),
    ] = "both"
    embedding: Annotated[
        EmbeddingTermConfig | None,
        Field(description="contrast the embeddings that are kept as well, beside the projections; null: do not"),
    ] = None
    predict: Annotated[
        PredictConfig | None,
        Field(description="predict the displacement from anchor and negative instead of repelling: a control"),
    ] = None

    @model_validator(mode="after")
    def _negatives_act_where_something_is_compared(self) -> Self:
        if self.embedding is None and self.negative_on != "projector":
            raise ValueError(
                f"objective.negative_on {self.negative_on}: the embeddings are not compared; set "
                "objective.embedding to {} so that they are, or negative_on to projector"
            )
        return self

    def repels(self, where: Literal["projector", "embedding"]) -> bool:
        """Whether negatives are pushed away there."""
        return self.predict is None and self.negative_on in (where, "both")
