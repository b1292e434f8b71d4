"""What an evaluation found, as plain data: written by `evaluate`, shown by `report`."""

from __future__ import annotations

from dataclasses import dataclass

from scaleaudio.types import Reject

METRICS = {"knn": "kNN", "linear": "linear probe, C chosen", "linear_c0.05": "linear probe, C = 0.05"}


@dataclass(frozen=True)
class Score:
    """How often one probe on one model's embeddings named the right class of one task.

    Attributes:
        model: its name in this evaluation.
        task: the task's name.
        metric: a key of METRICS.
        score: accuracy over the test clips, in [0, 1]; with folds, over the test clips of all folds together.
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
        majority: accuracy of always naming the commonest test class.
        num_unlabelled: rows left out because their label is empty.
        num_unused: labelled rows that belong to neither train nor test.
        num_unseen: test clips whose class has no training clip; they count as errors.
        rejects: files that could not be used, left out of train and test.
        notes: what a reader of the figures should know, e.g. a probe that could not be run.
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


@dataclass(frozen=True)
class Results:
    """All scores of one evaluation, and what is needed to do it again."""

    scores: tuple[Score, ...]
    tasks: tuple[TaskFacts, ...]
    models: tuple[ModelFacts, ...]
    seed: int
    min_seconds: float
    versions: dict[str, str]

    def find(self, model: str, task: str, metric: str) -> Score | None:
        """The score of one cell, or None when that probe was not run there."""
        wanted = (model, task, metric)
        return next((s for s in self.scores if (s.model, s.task, s.metric) == wanted), None)

    def metrics(self) -> tuple[str, ...]:
        """The metrics that occur, in the order of METRICS."""
        present = {score.metric for score in self.scores}
        return tuple(metric for metric in METRICS if metric in present)
