"""Models by tasks: embed every clip once, fit the probes on each task's folds, and put an interval on each score."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from rich.progress import track
from torch import nn

from scaleaudio.evaluate.embeddings import dim_of, embed_files, rate_of
from scaleaudio.evaluate.probe import Guess, bootstrap_interval, linear_probes, nearest_neighbours, standardise
from scaleaudio.evaluate.split import Fold, Plan, plan_task
from scaleaudio.evaluate.tasks import LabelTable, Task, read_labels
from scaleaudio.scores import METRICS, ModelFacts, Results, Score, TaskFacts
from scaleaudio.types import Reject, keyed_seed

# BYOL-A's unit of 96 frames. What is read off short clips depends on it: change it for all models or for none.
MIN_SECONDS = 0.96
PACKAGES = ("scaleaudio", "torch", "torchaudio", "numpy", "scikit-learn", "soundfile")


def evaluate(
    models: Mapping[str, nn.Module],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    min_seconds: float = MIN_SECONDS,
    linear: bool = True,
    progress: bool = False,
) -> Results:
    """The score of every probe on every model's embeddings of every task.

    Args:
        models: encoders by the name that they have in tables; see `embed_files` for what they must have.
        tasks: as from `parse_tasks`, of different titles; those that share a label table share its embeddings.
        seed: of the bootstrap and of the folds in which C is chosen; 0 to 2**32 - 1.
        min_seconds: clips shorter than this get silence at their end; 0 takes every clip as it is.
        linear: whether linear probes are fitted besides kNN, which costs nearly nothing.
        progress: show progress bars.

    Raises:
        InputError: a task that cannot be set up; all are checked before the first clip is embedded.
        ValueError: a model whose output is of the wrong shape or not finite.
    """
    tables = {task.table_path: read_labels(task.table_path) for task in tasks}
    plans = [plan_task(task, tables[task.table_path]) for task in tasks]
    corpora = {
        path: _embed_table(
            models, table, [plan for plan in plans if plan.task.table_path == path], min_seconds, progress
        )
        for path, table in tables.items()
    }
    plans = [plan.without(corpora[plan.task.table_path].unusable) for plan in plans]
    cells = [(plan, model) for plan in plans for model in models]
    scores = tuple(
        score
        for plan, model in track(cells, "probing", disable=not progress, transient=True)
        for score in _score(model, plan, corpora[plan.task.table_path].by_model[model], seed, linear)
    )
    return Results(
        scores=scores,
        tasks=tuple(_facts(plan, scores) for plan in plans),
        models=tuple(_model_facts(name, model) for name, model in models.items()),
        seed=seed,
        min_seconds=min_seconds,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )


@dataclass(frozen=True)
class _Corpus:
    """The embeddings (rows of the table, D) of one label table by model, and the rows whose file cannot be used."""

    by_model: dict[str, npt.NDArray[np.float32]]
    unusable: dict[int, Reject]


def _embed_table(
    models: Mapping[str, nn.Module], table: LabelTable, plans: Sequence[Plan], min_seconds: float, progress: bool
) -> _Corpus:
    rows = np.unique(np.concatenate([plan.rows() for plan in plans]))
    files = [table.path.parent / table.rows[row]["filename"] for row in rows]
    embedded = embed_files(models, files, min_seconds=min_seconds, progress=progress)
    by_model: dict[str, npt.NDArray[np.float32]] = {}
    for name, made in embedded.by_model.items():
        by_model[name] = np.full((len(table.rows), made.shape[1]), np.nan, np.float32)
        by_model[name][rows] = made
    return _Corpus(by_model, {int(rows[place]): reject for place, reject in embedded.rejects.items()})


def _score(model: str, plan: Plan, z_ND: npt.NDArray[np.float32], seed: int, linear: bool) -> list[Score]:
    by_fold = [_probe(plan, fold, z_ND, seed, linear) for fold in plan.folds]
    true = plan.labels[np.concatenate([fold.test for fold in plan.folds])]
    scores = []
    for metric in METRICS:
        if not all(metric in guesses for guesses in by_fold):
            continue
        right = np.concatenate([guesses[metric].label for guesses in by_fold]) == true
        low, high = bootstrap_interval(right, seed=keyed_seed(seed, plan.task.title, metric))
        settings = dict.fromkeys(guesses[metric].setting for guesses in by_fold)
        scores.append(
            Score(
                model=model,
                task=plan.task.title,
                metric=metric,
                score=float(right.mean()),
                low=low,
                high=high,
                num_train=_mean_train(plan),
                num_test=len(right),
                setting=", ".join(settings),
            )
        )
    return scores


def _probe(plan: Plan, fold: Fold, z_ND: npt.NDArray[np.float32], seed: int, linear: bool) -> dict[str, Guess]:
    train_ND, test_ND = standardise(z_ND[fold.train], z_ND[fold.test])
    label_N, group_N = plan.labels[fold.train], plan.groups[fold.train]
    nearest = {"knn": nearest_neighbours(train_ND, label_N, test_ND)}
    return nearest | (linear_probes(train_ND, label_N, group_N, test_ND, seed=seed) if linear else {})


def _facts(plan: Plan, scores: Sequence[Score]) -> TaskFacts:
    task, test = plan.task, np.concatenate([fold.test for fold in plan.folds])
    counts = Counter(plan.labels[test].tolist())
    num_unseen = sum(int((~np.isin(plan.labels[f.test], plan.labels[f.train])).sum()) for f in plan.folds)
    run = {score.metric for score in scores if score.task == task.title}
    return TaskFacts(
        name=task.title,
        source=str(task.table_path),
        label=task.label,
        protocol=plan.protocol,
        train=task.train,
        test=task.test,
        num_folds=len(plan.folds),
        num_train=_mean_train(plan),
        num_test=len(test),
        num_classes=len(set(plan.labels[plan.rows()])),
        majority=max(counts.values()) / len(test),
        num_unlabelled=plan.num_unlabelled,
        num_unused=plan.num_unused,
        num_unseen=num_unseen,
        rejects=plan.rejects,
        notes=()
        if "linear" in run or "linear_c0.05" not in run
        else ("C is not chosen: a class has fewer than two training clips",),
    )


def _mean_train(plan: Plan) -> int:
    return round(sum(len(fold.train) for fold in plan.folds) / len(plan.folds))


def _model_facts(name: str, model: nn.Module) -> ModelFacts:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelFacts(name, dim_of(model), rate_of(model), num_parameters)
