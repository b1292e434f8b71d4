"""Where a run's scalars go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each kind has its settings, and opens a `Sink` in a thread of its own (`report.forward`), so that no server can hold
up or end the training. A run keeps one id for all of them, so that a resumed run goes on in the same place.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, field_validator

from scaleaudio.data.addresses import check_no_credentials
from scaleaudio.errors import InputError
from scaleaudio.trees import flatten
from scaleaudio.types import Settings

State = Literal["finished", "failed", "stopped"]
Record = tuple[int, float, dict[str, float]]  # step, seconds since the epoch, scalars


@dataclass(frozen=True)
class RunFacts:
    """What a sink is told of the run that it is opened for.

    Attributes:
        id: of the run, the same in all its attempts.
        url: the run folder.
        folder: on this machine; what is written there ends in the run folder.
        start_step: the step that this attempt begins with.
        config: the resolved config as a tree.
    """

    id: str
    url: str
    folder: Path
    start_step: int
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name in a list of runs."""
        return str(self.config.get("name", self.url.rstrip("/").rpartition("/")[2]))


class Sink(Protocol):
    """Takes scalars; every method may raise whatever its library raises."""

    def write(self, records: Sequence[Record]) -> None:
        """Takes over some records, oldest first; what raised is given again."""

    def flush(self) -> None:
        """Makes what came so far visible."""

    def close(self, state: State) -> None:
        """Takes leave of the run, which ended so."""


class TensorBoardLogger(Settings):
    """Files in the run folder, for `tensorboard --logdir`."""

    kind: Literal["tensorboard"] = "tensorboard"
    module: ClassVar[str] = "tensorboard"
    local: ClassVar[bool] = True

    def open(self, run: RunFacts) -> Sink:
        """A writer of TensorBoard's files; what was written of `start_step` and later is not shown."""
        return _TensorBoard(run)


class WandbLogger(Settings):
    """A run at Weights & Biases. The key comes from WANDB_API_KEY or `wandb login` where the workers are."""

    kind: Literal["wandb"] = "wandb"
    project: Annotated[str, Field(description="where the run appears")] = "scaleaudio"
    entity: Annotated[str | None, Field(description="user or team; null: the key's own")] = None
    group: Annotated[str | None, Field(description="runs that belong together")] = None
    tags: Annotated[tuple[str, ...], Field(description="words to find the run by")] = ()
    mode: Annotated[
        Literal["online", "offline"], Field(description="offline: files in the run folder, for `wandb sync`")
    ] = "online"
    module: ClassVar[str] = "wandb"
    local: ClassVar[bool] = False

    def open(self, run: RunFacts) -> Sink:
        """The run at the server, or in files."""
        return _Wandb(self, run)


class MlflowLogger(Settings):
    """A run at an MLflow server, or in a database. Tokens come from MLflow's own environment variables."""

    kind: Literal["mlflow"] = "mlflow"
    tracking_uri: Annotated[
        str | None, Field(description="https://..., sqlite:////absolute/path.db; null: MLFLOW_TRACKING_URI")
    ] = None
    experiment: Annotated[str, Field(description="where the run appears; made where it is not yet")] = "scaleaudio"
    module: ClassVar[str] = "mlflow"
    local: ClassVar[bool] = False

    @field_validator("tracking_uri")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        return uri if uri is None else check_no_credentials(uri)

    def open(self, run: RunFacts) -> Sink:
        """The run at the server, made where it is not yet."""
        return _Mlflow(self, run)


LoggerConfig = Annotated[TensorBoardLogger | WandbLogger | MlflowLogger, Field(discriminator="kind")]


def given_loggers(value: Any) -> Any:
    """`loggers` as it may be written: [tensorboard, {kind: wandb, project: mine}]; each kind once.

    Raises:
        ValueError: for a kind that comes twice.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    spelt = [{"kind": item} if isinstance(item, str) else item for item in value]
    kinds = [item.get("kind") if isinstance(item, Mapping) else getattr(item, "kind", None) for item in spelt]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"loggers: {kind!r} comes {kinds.count(kind)} times; expected each kind once")
    return spelt


def check_installed(loggers: Sequence[LoggerConfig]) -> None:
    """Refuses a logger whose package is not there.

    Raises:
        InputError: naming what to install.
    """
    for logger in loggers:
        if importlib.util.find_spec(logger.module) is None:
            wanted = logger.module if isinstance(logger, TensorBoardLogger) else f"'scaleaudio[{logger.kind}]'"
            raise InputError(f"loggers: {logger.kind} is not installed: pip install {wanted}, or take it out")


class _TensorBoard:
    _MAX_BYTES = 32 << 20  # of a file: where they are copied to an object store, what is full is copied once

    def __init__(self, run: RunFacts) -> None:
        self._folder = run.folder / "tensorboard"
        self._begin(run.start_step)

    def _begin(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._written = 0
        self._board = SummaryWriter(str(self._folder), purge_step=purge_step)

    def write(self, records: Sequence[Record]) -> None:
        for step, seconds, metrics in records:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step, walltime=seconds)
                self._written += 50 + len(name)  # about as many bytes

    def flush(self) -> None:
        self._board.flush()
        if self._written > self._MAX_BYTES:
            self._board.close()
            self._begin(None)

    def close(self, state: State) -> None:
        self._board.close()


class _Wandb:
    def __init__(self, settings: WandbLogger, run: RunFacts) -> None:
        import wandb

        options: dict[str, Any] = {} if settings.mode == "offline" else {"resume": "allow"}
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags or None,
            mode=settings.mode,
            id=run.id,
            name=run.name,
            config={**run.config, "run_url": run.url},
            allow_val_change=True,
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True, disable_code=True, save_code=False, init_timeout=60),
            **options,
        )
        # wandb's own counter only rises, and a resumed run takes some steps again; so the step is a value like others.
        self._run.define_metric("*", step_metric="step")

    def write(self, records: Sequence[Record]) -> None:
        for step, seconds, metrics in records:
            self._run.log({"step": step, "_timestamp": seconds, **metrics})

    def flush(self) -> None:
        pass  # it sends by itself

    def close(self, state: State) -> None:
        self._run.finish(exit_code=1 if state == "failed" else 0)


class _Mlflow:
    _TAG = "scaleaudio.run_id"
    _MAX_METRICS, _MAX_PARAMS, _MAX_TEXT = 1000, 100, 500  # of one request, by MLflow's REST interface

    def __init__(self, settings: MlflowLogger, run: RunFacts) -> None:
        # By default it tries for many minutes, and what is told meanwhile waits.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=settings.tracking_uri)
        found = self._client.get_experiment_by_name(settings.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(settings.experiment)
        same = self._client.search_runs([experiment], filter_string=f"tags.`{self._TAG}` = '{run.id}'", max_results=1)
        self._id = same[0].info.run_id if same else self._create(experiment, run)
        self._client.update_run(self._id, status="RUNNING")

    def _create(self, experiment: str, run: RunFacts) -> str:
        from mlflow.entities import Param

        tags = {self._TAG: run.id, "scaleaudio.run_url": run.url}
        made = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, str(value)[: self._MAX_TEXT]) for key, value in flatten(run.config)]
        for start in range(0, len(params), self._MAX_PARAMS):
            self._client.log_batch(made, params=params[start : start + self._MAX_PARAMS])
        return str(made)

    def write(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        values = [
            Metric(name, value, round(1000 * seconds), step)
            for step, seconds, metrics in records
            for name, value in metrics.items()
        ]
        for start in range(0, len(values), self._MAX_METRICS):
            self._client.log_batch(self._id, metrics=values[start : start + self._MAX_METRICS])

    def flush(self) -> None:
        pass  # nothing waits here

    def close(self, state: State) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[state]
        self._client.set_terminated(self._id, status, end_time=round(1000 * time.time()))
