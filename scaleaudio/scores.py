"""What an evaluation found, as plain data: written by `evaluate`, shown by `report`."""

from __future__ import annotations

from dataclasses import dataclass

from scaleaudio.findings import ClipMap, Comparison, Confusion, FewShot, StageScore
from scaleaudio.types import Reject

METRICS = {"knn": "kNN", "linear": "linear probe, C chosen", "linear_c0.05": "linear probe, C = 0.05"}


@dataclass(frozen=True)
class Score:
    """How well one probe on one model's embeddings tells the classes of one task.

    Attributes:
        model: its name in this evaluation.
        task: the task's name.
        metric: a key of METRICS.
        score: in [0, 1], over the test clips (with folds, over those of all folds together): how many were given the
            right class or, where a clip may have several, the mean over classes of the average precision.
        low: lower end of the 95 % bootstrap interval over test clips.
        high: its upper end. The interval knows nothing of the spread between training seeds.
        num_train: clips that the probe was fitted on; with folds, on average.
        num_test: clips that it was tested on.
        setting: what the probe was set to, e.g. "k=20".
    """

    model: str
    task: str
    metric: str
    score: float
    low: float
    high: float
    num_train: int
    num_test: int
    setting: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known of an evaluated model besides its scores."""

    name: str
    embedding_dim: int
    sample_rate_hz: int
    num_parameters: int


@dataclass(frozen=True)
class TaskFacts:
    """What a task's figures stand on: everything needed to draw the same split again, and every row not used.

    Attributes:
        name: the task's name.
        source: the label table it was read from.
        label: the column that holds the classes.
        protocol: how train and test were told apart, in words.
        train: the training filters that were given.
        test: the test filters that were given.
        num_folds: 1 for a plain split.
        num_train: clips trained on; with folds, on average.
        num_test: clips tested on, over all folds.
        num_classes: classes among both.
        majority: accuracy of always naming the commonest test class; for mAP that of an order by chance.
        num_unlabelled: rows left out because their label is empty.
        num_unused: labelled rows that belong to neither train nor test.
        num_unseen: test clips whose class has no training clip; they count as errors.
        rejects: files that could not be used, left out of train and test.
        notes: what a reader of the figures should know, e.g. a probe that could not be run.
        measure: what its scores are: "accuracy", or "mAP" where a clip may have several classes.
    """

    name: str
    source: str
    label: str
    protocol: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_folds: int
    num_train: int
    num_test: int
    num_classes: int
    majority: float
    num_unlabelled: int
    num_unused: int
    num_unseen: int
    rejects: tuple[Reject, ...]
    notes: tuple[str, ...]
    measure: str = "accuracy"


@dataclass(frozen=True)
class Results:
    """All scores of one evaluation, what else it found, and what is needed to do it again."""

    scores: tuple[Score, ...]
    tasks: tuple[TaskFacts, ...]
    models: tuple[ModelFacts, ...]
    seed: int
    min_seconds: float
    versions: dict[str, str]
    few_shot: tuple[FewShot, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    stages: tuple[StageScore, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    maps: tuple[ClipMap, ...] = ()

    def find(self, model: str, task: str, metric: str) -> Score | None:
        """The score of one cell, or None when that probe was not run there."""
        wanted = (model, task, metric)
        return next((s for s in self.scores if (s.model, s.task, s.metric) == wanted), None)

    def metrics(self) -> tuple[str, ...]:
        """The metrics that occur, in the order of METRICS."""
        present = {score.metric for score in self.scores}
        return tuple(metric for metric in METRICS if metric in present)


@dataclass(frozen=True)
class Similarity:
    """A mean of cosine similarities over clips.

    Attributes:
        mean: in [-1, 1].
        low: lower end of its 95 % bootstrap interval over clips.
        high: its upper end. The interval knows nothing of the spread between training seeds.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Displaced:
    """How similar clips stay to themselves when their patterns are moved by one distance.

    Attributes:
        places: mel bins or frames that a shift moves everything by; 0 is the clip itself; None for a rearrangement.
        strength: root mean square displacement / axis length, as in the config; the mean over clips.
        amount: the same distance in semitones (a median over the bins: mel bins are not of equal size) or in
            milliseconds; None where the front-end does not say what its bins are.
        similarity: of the displaced clips to the clips.
        returned: the control: of clips displaced and moved back, so that only what was lost on the way is missing;
            None where there is no way back.
    """

    places: int | None
    strength: float
    amount: float | None
    similarity: Similarity
    returned: Similarity | None


@dataclass(frozen=True)
class Curve:
    """Similarity against displacement: one axis ("frequency" or "time") and one way of moving along it."""

    axis: str
    motion: str
    points: tuple[Displaced, ...]


@dataclass(frozen=True)
class StageCurves:
    """The curves of one stage of a model: the "embedding" that is kept, or the "projector" above it.

    Attributes:
        stage: its name.
        positive: similarity of two views of a clip, which training pulls together.
        others: similarity of different clips.
        curves: one for each axis and motion.
    """

    stage: str
    positive: Similarity
    others: Similarity
    curves: tuple[Curve, ...]

    def blindness(self, displaced: Similarity) -> float:
        """Where a similarity lies between other clips (0) and the clip itself (1): comparable between models.

        Embeddings of different clips may all lie in a narrow cone, where every raw similarity is near 1.
        """
        return (displaced.mean - self.others.mean) / max(1 - self.others.mean, 1e-12)


@dataclass(frozen=True)
class Sensitivity:
    """The position-sensitivity curves of one model, and what is needed to measure them again.

    Attributes:
        model: its name.
        corpus: where the clips are from.
        num_clips: how many clips the means are over.
        num_still: clips left out because nothing happens in them: wherever silence is, it means the same.
        rejects: files that could not be used.
        seed: of the choice of clips, crops, directions and views.
        clip_seconds: length of the crops.
        num_mels: length of the frequency axis.
        num_frames: length of the time axis.
        stride: places of the spectrogram to one of the encoder's last map; None where the encoder does not say.
        stages: the embedding's curves, then the projector's where there is one.
        versions: of the packages that took part.
    """

    model: str
    corpus: str
    num_clips: int
    num_still: int
    rejects: tuple[Reject, ...]
    seed: int
    clip_seconds: float
    num_mels: int
    num_frames: int
    stride: int | None
    stages: tuple[StageCurves, ...]
    versions: dict[str, str]

    def length(self, axis: str) -> int:
        """Places along an axis."""
        return self.num_mels if axis == "frequency" else self.num_frames
