"""Adversarial negatives: a clip whose patterns lie elsewhere, so that it means something else.

A reconstruction of arXiv 2303.08561 from its abstract: `displace` moves patterns, `adversary` picks the displacement
that the encoder confuses most with the original.
"""

from scaleaudio.negatives.adversary import Found, HardestOfK, NegativesConfig, NoNegatives

__all__ = ["Found", "HardestOfK", "NegativesConfig", "NoNegatives"]
