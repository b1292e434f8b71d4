"""Adversarial negatives: a clip whose patterns lie elsewhere, so that it means something else.

A reconstruction of arXiv 2303.08561 from its abstract: `displace` moves patterns, and an adversary picks the
displacement that the encoder confuses most with the original: the hardest of K (`hardest_of_k`), or by gradient
(`field`). `value` changes values instead, as a control. The union on `kind` is the registry.
"""

from scaleaudio.negatives.base import Adversary, Found, NegativesSettings, NoNegatives
from scaleaudio.negatives.draw import scarred
from scaleaudio.negatives.field import FieldAdversary, FieldNegatives
from scaleaudio.negatives.hardest_of_k import HardestOfK, HardestOfKAdversary
from scaleaudio.negatives.registry import NegativesConfig
from scaleaudio.negatives.strengths import DisplacingSettings
from scaleaudio.negatives.value import ValueNegatives

__all__ = [
    "Adversary",
    "DisplacingSettings",
    "FieldAdversary",
    "FieldNegatives",
    "Found",
    "HardestOfK",
    "HardestOfKAdversary",
    "NegativesConfig",
    "NegativesSettings",
    "NoNegatives",
    "ValueNegatives",
    "scarred",
]
