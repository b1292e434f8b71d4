"""What makes a folder a run: the one resolved config in it, which a run that goes on has to fit."""

from __future__ import annotations

import json
from typing import Any

import yaml

from scaleaudio.config import Config, dump, validate
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.launch import lease
from scaleaudio.trees import differences

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"

# How the run is carried out, not what it learns: may differ when a run goes on.
# Sources and mixture are for the stream's fingerprint to judge: they may change from a later step on.
FREE = (
    "launch.",
    "loggers",
    "train.",
    "checkpoint.",
    "probe.",
    "data.url",
    "data.sources",
    "data.mixture",
    "data.num_",
    "data.read_ahead",
    "data.fetch_ahead",
    "data.max_bad",
    "data.stall_",
    "data.read_deadline",
    "data.cache_",
)


def resume_config(config: Config, run_url: str) -> Config:
    """`config` with the front-end constants of the run in `run_url`; unchanged where no run has begun.

    Raises:
        InputError: when the folder holds something else, or a run of another config, naming the keys.
    """
    refuse_foreign(run_url, "a run folder")
    path = storage.join(run_url, CONFIG)
    if not storage.exists(path):
        return config
    saved = validate(yaml.safe_load(storage.read_bytes(path)), path)
    if config.frontend.mean is None:
        measured = {"mean": saved.frontend.mean, "std": saved.frontend.std}
        config = config.model_copy(update={"frontend": config.frontend.model_copy(update=measured)})
    changed = differences(saved.model_dump(mode="json"), config.model_dump(mode="json"))
    changed = [line for line in changed if not line.startswith(FREE)]
    if changed:
        raise InputError(
            f"{run_url}: holds a run of another config (key: there, now): {'; '.join(changed)}. Set them back, "
            "choose another --name, or delete it with --fresh."
        )
    return config


def begin(config: Config, run_url: str, environment: dict[str, Any]) -> None:
    """Writes down what the run is and where it runs."""
    storage.write_atomic(storage.join(run_url, CONFIG), dump(config).encode())
    storage.write_atomic(storage.join(run_url, ENVIRONMENT), json.dumps(environment, indent=1).encode())


def refuse_foreign(run_url: str, wanted: str) -> None:
    """Raises InputError where there is something that is no run; `wanted` says what it would be taken for."""
    if storage.exists(run_url) and not storage.is_folder(run_url):
        raise InputError(f"{run_url}: a file; expected {wanted}. Give another --out.")
    if not _is_run(run_url) and files(run_url):
        raise InputError(f"{run_url}: holds files but no run's {CONFIG}, so it is not {wanted}. Give another --out.")


def clear(run_url: str) -> None:
    """Deletes all that the run has left, but not its lease."""
    for name in sorted({_below(run_url, url).partition("/")[0] for url in files(run_url)}):
        storage.delete_tree(storage.join(run_url, name))


def files(run_url: str) -> list[str]:
    """The files of a run's or a sweep's folder, as far as they are not a driver's claim to it."""
    return [url for url in storage.list_files(run_url) if not _below(run_url, url).startswith(f"{lease.FOLDER}/")]


def _below(run_url: str, url: str) -> str:
    """The path of a file inside the run folder."""
    if storage.is_local(run_url):
        return url.removeprefix(storage.join(run_url, ""))
    return url.partition("?")[0].removeprefix(storage.join(run_url, "").partition("?")[0])


def _is_run(run_url: str) -> bool:
    path = storage.join(run_url, CONFIG)
    if not storage.exists(path):
        return False
    try:
        tree = yaml.safe_load(storage.read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(tree, dict) and tree.keys() >= {"name", "data", "encoder", "objective", "schedule"}
