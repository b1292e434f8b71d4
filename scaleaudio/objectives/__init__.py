"""What is learned from positives and adversarial negatives.

s is cosine similarity, a the anchors, p the positives, n each anchor's own adversarial negatives. `infonce` and `byol`
compare projections; `EmbeddingTerm` contrasts the embeddings that are kept, with or without negatives, and `Predictor`
is the rival that predicts the displacement instead.
"""

from scaleaudio.objectives.base import HeadConfig
from scaleaudio.objectives.byol import BYOL, BYOLConfig
from scaleaudio.objectives.embedding import EmbeddingTerm, EmbeddingTermConfig
from scaleaudio.objectives.infonce import InfoNCE, InfoNCEConfig
from scaleaudio.objectives.pairs import Against, Pairs, gather
from scaleaudio.objectives.predict import PredictConfig, Predictor
from scaleaudio.objectives.registry import ObjectiveConfig

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
