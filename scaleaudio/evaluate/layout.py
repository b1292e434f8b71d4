"""Test clips laid out in a plane by t-SNE (van der Maaten and Hinton, 2008), to be looked at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from scaleaudio.evaluate.probe import standardise
from scaleaudio.evaluate.split import Plan
from scaleaudio.findings import ClipMap
from scaleaudio.types import keyed_seed

MOST_CLIPS = 1000
_FEWEST_CLIPS = 10
_COMPONENTS = 50


def clip_map(model: str, plan: Plan, z_ND: npt.NDArray[np.float32], seed: int) -> ClipMap | None:
    """Up to 1,000 test clips by their standardised embeddings; None where there are fewer than 10."""
    rows = np.unique(np.concatenate([fold.test for fold in plan.folds]))
    if len(rows) < _FEWEST_CLIPS:
        return None
    if len(rows) > MOST_CLIPS:
        random = np.random.default_rng(keyed_seed(seed, plan.task.title, "map"))
        rows = np.sort(random.choice(rows, MOST_CLIPS, replace=False))
    scaled_ND, _ = standardise(z_ND[rows], z_ND[rows[:1]])
    if not scaled_ND.any():  # every clip has the same embedding
        return None
    few_ND = PCA(min(_COMPONENTS, *scaled_ND.shape), random_state=0).fit_transform(scaled_ND)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    laid_N2 = TSNE(
        init="pca" if few_ND.shape[1] >= 2 else "random", perplexity=perplexity, random_state=0
    ).fit_transform(few_ND)
    classes = sorted(set(plan.labels[rows].tolist()))
    label_N = tuple(classes.index(label) for label in plan.labels[rows].tolist())
    points = tuple((round(float(x), 3), round(float(y), 3)) for x, y in laid_N2)
    return ClipMap(model, plan.task.title, f"t-SNE, perplexity {perplexity:.3g}", tuple(classes), label_N, points)
