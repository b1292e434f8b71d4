"""The score on labelled clips while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from servers import s3_server

from scaleaudio.config import Config, ProbeConfig
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.launch.probe import check_tasks, is_due, probe
from scaleaudio.train import PlainEngine


@pytest.mark.parametrize(
    ("every", "steps"),
    [(None, [5, 10, 12]), (4, [4, 8, 12]), (7, [7, 12])],
)
def test_the_probe_is_due_with_checkpoints_or_at_its_own_steps_and_at_the_end(
    every: int | None, steps: list[int]
) -> None:
    config = ProbeConfig(tasks=("clips:pitch",), every_steps=every)
    due = [step for step in range(1, 13) if is_due(config, step, saving=step % 5 == 0, last=step == 12)]
    assert due == steps


def test_without_tasks_nothing_is_ever_due() -> None:
    assert not is_due(ProbeConfig(every_steps=1), 1, saving=True, last=True)


def test_the_score_is_the_mean_over_the_tasks(tiny: Callable[..., Config], clips: Path, tmp_path: Path) -> None:
    """Both tasks have the same clips: labels of one are their pitch, of the other nothing of theirs."""
    rows = [row.split(",") for row in (clips / "labels.csv").read_text().split()[1:]]
    lines = [f"{clips / name},{split},{number % 4 // 2}" for number, (name, _, split) in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,split,label", *lines]) + "\n")
    config = tiny({"frontend.mean": -8.0, "frontend.std": 4.0})
    tensors = dict(PlainEngine(config.build(), config.optimizer).tensors())
    asked = ProbeConfig(tasks=(f"{clips}:pitch", str(tmp_path)))
    pitch, noise, mean = probe(asked, config.model_dump(mode="json"), tensors, 0, torch.device("cpu")).items()
    assert pitch == (f"probe/{clips.name}:pitch", 1.0) and noise[1] < 0.9
    assert mean == ("probe/score", pytest.approx((1.0 + noise[1]) / 2))


def test_a_labelled_folder_in_an_object_store_scores_as_it_does_here(
    tiny: Callable[..., Config], clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"frontend.mean": -8.0, "frontend.std": 4.0})
    tree, tensors = config.model_dump(mode="json"), dict(PlainEngine(config.build(), config.optimizer).tensors())
    with s3_server(monkeypatch, "labelled"):
        for path in clips.iterdir():
            storage.write_atomic(f"s3://labelled/tones/{path.name}", path.read_bytes())
        far = ProbeConfig(tasks=("s3://labelled/tones:pitch",))
        check_tasks(far)
        assert probe(far, tree, tensors, 0, torch.device("cpu")) == {"probe/tones:pitch": 1.0, "probe/score": 1.0}
        with pytest.raises(InputError, match=r"s3://labelled/nothing: no labels\.csv there"):
            check_tasks(ProbeConfig(tasks=("s3://labelled/nothing",)))


def test_a_folder_that_cannot_be_probed_is_refused_before_the_run(clips: Path, tmp_path: Path) -> None:
    check_tasks(ProbeConfig(tasks=(f"{clips}:pitch",)))
    with pytest.raises(InputError, match=r"labels\.csv"):
        check_tasks(ProbeConfig(tasks=(f"{tmp_path}:pitch",)))
    with pytest.raises(InputError, match="pich"):
        check_tasks(ProbeConfig(tasks=(f"{clips}:pich",)))
