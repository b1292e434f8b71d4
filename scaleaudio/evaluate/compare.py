"""Two models on the same test clips: the difference, its interval, and how likely chance alone would make it.

Paired, because most clips are easy or hard for both: the difference is known far better than either score. For
accuracy the test is McNemar's, exact (of the clips that only one gets right, half would be the one's by chance); for
mAP, where a clip is not right or wrong, the share of paired bootstrap resamples on the other side of 0, twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from scipy.stats import binomtest

from scaleaudio.evaluate.answers import Answer, Named, Ranked, resamples, seed_of
from scaleaudio.evaluate.split import Plan
from scaleaudio.findings import Comparison
from scaleaudio.scores import METRICS

_RESAMPLES = 10_000


def compare(plan: Plan, by_model: Mapping[str, Mapping[str, Answer]], seed: int) -> Iterator[Comparison]:
    """Every pair of models by every metric that both have; the later named model minus the earlier."""
    for other, model in combinations(by_model, 2):
        for metric in METRICS:
            one, two = by_model[model].get(metric), by_model[other].get(metric)
            if one is not None and two is not None:
                yield _compared(plan, metric, (model, one), (other, two), seed_of(seed, plan, f"{metric}/pairs"))


def _compared(plan: Plan, metric: str, one: tuple[str, Answer], two: tuple[str, Answer], seed: int) -> Comparison:
    (model, answer), (other, others) = one, two
    only_model: int | None = None
    only_other: int | None = None
    if isinstance(answer, Named) and isinstance(others, Named):
        only_model = int((answer.right_N & ~others.right_N).sum())
        only_other = int((others.right_N & ~answer.right_N).sum())
        num, differ = len(answer), only_model + only_other
        # A resample is one draw of how many clips fall on either side.
        shares = (only_model / num, only_other / num, 1 - differ / num)
        count_R3 = np.random.default_rng(seed).multinomial(num, shares, _RESAMPLES)
        difference_R = (count_R3[:, 0] - count_R3[:, 1]) / num
        p, test = float(binomtest(only_model, differ).pvalue) if differ else 1.0, "McNemar, exact"
    else:
        assert isinstance(answer, Ranked) and isinstance(others, Ranked)
        count_RN = resamples(len(answer), seed)
        difference_R = answer.resampled(count_RN) - others.resampled(count_RN)
        beyond = min((difference_R <= 0).sum(), (difference_R >= 0).sum())
        p, test = min(1.0, 2 * float(beyond + 1) / (len(count_RN) + 1)), "paired bootstrap"
    low, high = (float(end) for end in np.percentile(difference_R, (2.5, 97.5)))
    title, gap = plan.task.title, answer.score - others.score
    return Comparison(title, metric, model, other, gap, low, high, p, test, only_model, only_other)
