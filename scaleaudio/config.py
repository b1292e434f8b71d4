"""The whole run in one frozen tree, and the one way to change it.

`load` reads a YAML file, `override` sets keys by their dotted names, `dump` writes what came out. The command line
and a test go through the same `override`.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from scaleaudio.data.index import ShardIndex
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.errors import InputError
from scaleaudio.report.loggers import LoggerConfig, TensorBoardLogger, given_loggers
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig
from scaleaudio.types import Settings, World


class CheckpointConfig(Settings):
    """When checkpoints are written and which are kept."""

    every_steps: Annotated[int, Field(ge=1, description="steps between two checkpoints")] = 500
    keep_last: Annotated[int, Field(ge=1, description="how many of the newest are kept")] = 2
    patience_seconds: Annotated[
        float, Field(gt=0, description="how long storage that fails is tried again before that counts as a fault")
    ] = 300.0
    keep_best: Annotated[int, Field(ge=0, description="how many of the best by the probe are kept besides")] = 1


class ProbeConfig(Settings):
    """A score on labelled clips while training goes on; what it is measured by changes nothing of what is learned."""

    tasks: Annotated[
        tuple[str, ...],
        Field(description="labelled folders or their URLs, FOLDER:COLUMN; the score is the mean over them"),
    ] = ()
    metric: Annotated[
        Literal["knn", "linear", "linear_c0.05"],
        Field(description="what is fitted on the embeddings; kNN costs a fraction of a linear probe"),
    ] = "knn"
    every_steps: Annotated[
        int | None, Field(ge=1, description="steps between two probes, besides the last; null: with every checkpoint")
    ] = None


class LaunchConfig(Settings):
    """On what the run runs.

    Dropout is drawn and batch norm taken per worker, so with them the number of workers has a part in what is learned.
    Nothing else here has, up to rounding.
    """

    workers: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Field(description="processes that train; auto: one a GPU of the cluster, or one where there is none"),
    ] = "auto"
    min_workers: Annotated[
        int | None,
        Field(ge=1, description="with how few the run goes on when machines are lost; null: with all or none"),
    ] = 1
    resize_seconds: Annotated[
        float, Field(ge=0, description="how long fewer workers go on before they make place for more that could be had")
    ] = 300.0
    wait_minutes: Annotated[
        float, Field(ge=0, description="how long to wait for min_workers, and for more that still come")
    ] = 30.0
    cpus_per_worker: Annotated[float, Field(gt=0, description="cores that a worker has to itself")] = 1
    engine: Annotated[Literal["deepspeed", "plain"], Field(description="deepspeed, or plain: PyTorch alone")] = (
        "deepspeed"
    )
    zero_stage: Annotated[
        int,
        Field(
            ge=0,
            le=3,
            description="what DeepSpeed shares out: 1 optimiser states, 2 gradients as well, 3 weights as well",
        ),
    ] = 1
    max_failures: Annotated[
        int, Field(ge=0, description="faults in a row, without a new checkpoint between, that the run goes on after")
    ] = 3
    hang_seconds: Annotated[
        float, Field(gt=0, description="a worker that makes no progress for so long is ended, and the run goes on")
    ] = 1200.0
    not_finite: Annotated[
        Literal["stop", "skip"],
        Field(
            description="what a loss or gradient that is not finite leads to: the end of the run, or a return to the "
            "newest checkpoint, from where that step is passed over (it counts against max_failures)"
        ),
    ] = "stop"
    tf32: Annotated[bool, Field(description="TensorFloat-32 for matrix products on GPUs that have it")] = True
    deterministic: Annotated[bool, Field(description="only kernels that give the same bits every time; slower")] = False
    report_every_steps: Annotated[int, Field(ge=1, description="steps between two lines of metrics")] = 10


class Config(TaskConfig):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.-]*$", description="the run's; it goes to runs/NAME")]
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig = ProbeConfig()
    launch: LaunchConfig = LaunchConfig()
    loggers: Annotated[
        tuple[LoggerConfig, ...],
        BeforeValidator(given_loggers),
        Field(description="where a run's scalars go besides metrics.jsonl: a kind, or a kind with its settings, each"),
    ] = (TensorBoardLogger(),)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Config:
        lane_clips = self.data.lane_batch // self.data.crops_per_clip
        if self.views.mixup is not None and lane_clips < 2:
            raise ValueError(
                f"data.lanes {self.data.lanes} of data.global_batch {self.data.global_batch} leave {lane_clips} clip a "
                "lane: mixup needs a partner in the lane. Halve data.lanes, or set views.mixup to null."
            )
        if self.objective.embedding is not None and lane_clips < 2:
            raise ValueError(
                f"data.lanes {self.data.lanes} of data.global_batch {self.data.global_batch} leave {lane_clips} clip a "
                "lane: objective.embedding compares with other clips of the lane. Halve data.lanes, or set it to null."
            )
        if self.launch.hang_seconds <= 2 * self.checkpoint.patience_seconds:
            raise ValueError(
                f"launch.hang_seconds {self.launch.hang_seconds:g}: expected more than twice "
                f"checkpoint.patience_seconds ({self.checkpoint.patience_seconds:g}), since a worker may wait for "
                "storage that long and is not hung."
            )
        if self.train.compile != "off" and self.launch.engine == "deepspeed" and self.launch.zero_stage == 3:
            raise ValueError(
                f"train.compile {self.train.compile}: not with launch.zero_stage 3, which gathers weights around each "
                "layer; set it to off, or choose a lower stage"
            )
        if ":" not in self.encoder.kind:  # anyone's own is built by the workers alone
            with torch.device("meta"):
                self.build_encoder()
        return self

    def build_stream(self, world: World | None = None) -> Stream:
        """The batches of one worker.

        Raises:
            InputError: without shards and index at data.url, or with too few clips for one batch.
        """
        return Stream(
            self.data,
            [ShardIndex.load(url) for url in self.data.urls.values()],
            seed=self.seed,
            sample_rate_hz=self.frontend.sample_rate_hz,
            crop_frames=self.clip_samples,
            world=world,
        )


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The config of a YAML file with `overrides` set.

    Raises:
        InputError: naming the file and the key, what was expected, and the nearest known key.
    """
    return validate(override(read_tree(path), overrides or {}), str(path))


def read_tree(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, not yet checked.

    Raises:
        InputError: when it cannot be read, or holds no keys.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a config ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of keys such as `name:` and `data:`, got {type(tree).__name__}")
    return tree


def validate(tree: Mapping[str, Any], source: str) -> Config:
    """The config that `tree` spells out; `source` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(error_lines(error, Config))) from error


def override(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with dotted keys set: {"negatives.frequency_strength": 0.3}."""
    result = dict(tree)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            inner = result.get(head)
            result[head] = override(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            result[head] = value
    return result


def parse_overrides(words: list[str], *, as_text: bool = False) -> dict[str, Any]:
    """`key=value` words of a command line, each value read as YAML, or taken as it is with `as_text`.

    Raises:
        InputError: naming the word.
    """
    changes = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"{word!r}: expected key=value, such as negatives.frequency_strength=0.3")
        if as_text:
            changes[key] = value
            continue
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{word!r}: the value is not valid YAML ({' '.join(str(error).split())})") from error
        if isinstance(changes[key], str):
            changes[key] = _number(changes[key])
    return changes


def dump(config: BaseModel) -> str:
    """The config as YAML, every default spelt out; `load` gives the same config back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _number(text: str) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def error_lines(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """What is wrong, a line a key; an unknown key with the nearest one that `model` knows."""
    known = dict.fromkeys(known_keys(model))
    for item in error.errors():
        key = _dotted(item["loc"], known, keep_last=item["type"] == "extra_forbidden")
        if item["type"] == "extra_forbidden" and key in known:
            part, _, name = key.rpartition(".")
            yield f"{key}: {part} of kind {item['loc'][-2]!r} has no {name}; take it out, or choose another kind"
        elif item["type"] == "extra_forbidden":
            yield f"unknown key {key!r}{_nearest(key, known)}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            yield message if not key or key in message else f"{key}: {message}"
        elif item["type"] == "missing":
            yield f"{key}: this key is required"
        else:
            yield f"{key} {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _dotted(location: tuple[int | str, ...], known: Collection[str], *, keep_last: bool) -> str:
    """The key at pydantic's `location`, which also names the members of unions that it tried."""
    key = ""
    for index, part in enumerate(location):
        longer = f"{key}.{part}" if key else str(part)
        if longer in known or isinstance(part, int) or (keep_last and index == len(location) - 1):
            key = longer
    return key


def _nearest(asked: str, known: Collection[str]) -> str:
    """The known key that an unknown one was probably meant to be, wherever in the tree it is."""
    name = asked.rpartition(".")[2]
    by_key = difflib.get_close_matches(asked, known, n=1, cutoff=0.6)
    by_name = [
        k
        for k in known
        if k.rpartition(".")[2] in difflib.get_close_matches(name, {k.rpartition(".")[2] for k in known}, n=1)
    ]
    found = by_key or by_name
    return f" (nearest known key: {found[0]!r})" if found else ""


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config may have."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for inner in _models(info.annotation):
            yield from known_keys(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        for part in typing.get_args(annotation):
            yield from _models(part)
