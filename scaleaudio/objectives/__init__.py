"""What is learned from positives and adversarial negatives. The union on `kind` is the registry.

s is cosine similarity, a the anchors, p the positives, n each anchor's own adversarial negatives. `infonce` and `byol`
compare projections; `EmbeddingTerm` repels the negatives in the embedding that is kept, and `Predictor` is the rival
that predicts the displacement instead.
"""

from typing import Annotated

from pydantic import Field

from scaleaudio.objectives.base import HeadConfig
from scaleaudio.objectives.byol import BYOL, BYOLConfig
from scaleaudio.objectives.embedding import EmbeddingTerm, EmbeddingTermConfig
from scaleaudio.objectives.infonce import InfoNCE, InfoNCEConfig
from scaleaudio.objectives.pairs import Against, Pairs, gather
from scaleaudio.objectives.predict import PredictConfig, Predictor

ObjectiveConfig = Annotated[InfoNCEConfig | BYOLConfig, Field(discriminator="kind")]

__all__ = [
    "BYOL",
    "Against",
    "BYOLConfig",
    "EmbeddingTerm",
    "EmbeddingTermConfig",
    "HeadConfig",
    "InfoNCE",
    "InfoNCEConfig",
    "ObjectiveConfig",
    "Pairs",
    "PredictConfig",
    "Predictor",
    "gather",
]
