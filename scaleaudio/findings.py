"""What an evaluation found besides its scores: curves over few clips, comparisons, stages, confusions, maps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FewShot:
    """How a probe scores that was fitted on a few clips of each class.

    Attributes:
        model: its name in this evaluation.
        task: the task's name.
        metric: a key of METRICS.
        shots: clips of each class that were drawn to be fitted on.
        num_draws: how often they were drawn; every model had the same draws.
        score: mean over draws.
        low: lower end of the 95 % bootstrap interval over draws and test clips together.
        high: its upper end.
        num_short: classes that have fewer training clips than `shots`, of which all were taken.
    """

    model: str
    task: str
    metric: str
    shots: int
    num_draws: int
    score: float
    low: float
    high: float
    num_short: int


@dataclass(frozen=True)
class Comparison:
    """Two models on the same test clips of one task.

    Attributes:
        task: the task's name.
        metric: a key of METRICS.
        model: the one model.
        other: the other.
        difference: score of `model` minus score of `other`.
        low: lower end of the 95 % interval of the difference, over paired bootstrap resamples of the test clips.
        high: its upper end. The interval knows nothing of the spread between training seeds.
        p: how often a difference as large would come by chance if both were equally good.
        test: the test that p is of.
        only_model: test clips that `model` alone gets right; None where clips are not right or wrong.
        only_other: test clips that `other` alone gets right.
    """

    task: str
    metric: str
    model: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    test: str
    only_model: int | None
    only_other: int | None


@dataclass(frozen=True)
class StageScore:
    """How a probe scores on what one stage of an encoder gives out, averaged over its places.

    Attributes:
        model: its name in this evaluation.
        task: the task's name.
        metric: a key of METRICS.
        stage: the stage's name in the encoder; "embedding" is what is kept.
        place: 0 for the first stage that a clip goes through.
        num_features: how many numbers the stage gives.
        score: accuracy or mAP.
        low: lower end of its 95 % bootstrap interval over test clips.
        high: its upper end.
    """

    model: str
    task: str
    metric: str
    stage: str
    place: int
    num_features: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """Which class was given for which: counts of test clips, a row a true class, a column a given one."""

    model: str
    task: str
    metric: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClipMap:
    """Test clips laid out in a plane so that clips with near embeddings lie near each other.

    Attributes:
        model: its name in this evaluation.
        task: the task's name.
        method: how it was made, with its setting.
        classes: the labels' names.
        label_N: for each clip the place of its label in `classes`.
        xy_N2: where it lies; the axes mean nothing.
    """

    model: str
    task: str
    method: str
    classes: tuple[str, ...]
    label_N: tuple[int, ...]
    xy_N2: tuple[tuple[float, float], ...]
