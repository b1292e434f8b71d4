"""Models by tasks, on a folder of real tones."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from scaleaudio.errors import InputError
from scaleaudio.evaluate import MelStatistics, Task, evaluate
from scaleaudio.scores import METRICS

NOTES = {"low": 300.0, "middle": 1200.0, "high": 4000.0}


class Deaf(nn.Module):
    """Embeds noise that has nothing to do with the clip."""

    sample_rate_hz = 16000
    embedding_dim = 8

    def forward(self, wave_BT: Tensor) -> Tensor:
        """(B, 8)."""
        seeds = (wave_BT.abs().sum(dim=1) * 1e6).long().tolist()
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 tones: `note` by frequency, `coin` by nothing, and columns split, fold and group."""
    rng = np.random.default_rng(0)
    rows = []
    for place in range(60):
        note = list(NOTES)[place % 3]
        time_T = np.arange(4000 + 400 * (place % 2)) / 16000
        wave_T = 0.3 * np.sin(2 * np.pi * NOTES[note] * rng.uniform(0.9, 1.1) * time_T) + rng.normal(
            0, 0.01, len(time_T)
        )
        soundfile.write(tmp_path / f"{place:02}.flac", wave_T, 16000)
        split = "test" if place >= 30 else "val" if place >= 24 else "train"
        coin = str(rng.integers(2)) if place % 10 else ""
        rows.append([f"{place:02}.flac", note, split, place // 12, coin])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "label", "split", "quarter", "coin"], *rows])
    return tmp_path


def test_a_label_that_the_embedding_holds_scores_high_and_a_coin_does_not(folder: Path) -> None:
    tasks = [Task(folder=str(folder), name="note"), Task(folder=str(folder), label="coin", name="coin")]
    results = evaluate({"mel": MelStatistics(), "deaf": Deaf()}, tasks)
    assert [task.name for task in results.tasks] == ["note", "coin"]
    assert len(results.scores) == 2 * 2 * len(METRICS)
    note, coin, deaf = (
        results.find(*key, "linear_c0.05") for key in [("mel", "note"), ("mel", "coin"), ("deaf", "note")]
    )
    assert note and coin and deaf
    assert note.score > 0.95 and coin.score < 0.8 and deaf.score < 0.65
    assert (note.num_train, note.num_test, note.setting) == (30, 30, "C=0.05")
    assert all(score.low <= score.score <= score.high for score in results.scores)
    assert results.tasks[1].num_unlabelled == 6 and results.tasks[0].majority == pytest.approx(1 / 3)


def test_the_same_seed_gives_the_same_results(folder: Path) -> None:
    task = Task(folder=str(folder), label="coin")
    first, again, other = (evaluate({"deaf": Deaf()}, [task], seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert [s.score for s in first.scores if s.metric == "knn"] == [s.score for s in other.scores if s.metric == "knn"]


def test_cross_validation_tests_every_clip_once(folder: Path) -> None:
    results = evaluate({"mel": MelStatistics()}, [Task(folder=str(folder), folds="quarter")])
    assert results.tasks[0].num_folds == 5
    assert {(score.num_train, score.num_test) for score in results.scores} == {(48, 60)}
    assert all(score.score > 0.95 for score in results.scores)


def test_one_shot_reports_that_c_was_not_chosen(folder: Path) -> None:
    table = (folder / "labels.csv").read_text().replace("0.flac,low,train,0", "0.flac,low,train,first")
    table = table.replace("01.flac,middle,train,0", "01.flac,middle,train,first")
    (folder / "labels.csv").write_text(table.replace("02.flac,high,train,0", "02.flac,high,train,first"))
    results = evaluate({"mel": MelStatistics()}, [Task(folder=str(folder), train=("quarter=first",))])
    assert {score.metric: score.setting for score in results.scores} == {"knn": "k=1", "linear_c0.05": "C=0.05"}
    assert results.tasks[0].notes and results.tasks[0].num_test == 57


def test_an_unreadable_file_is_named_and_left_out(folder: Path) -> None:
    (folder / "07.flac").write_bytes((folder / "07.flac").read_bytes()[:200])
    (folder / "59.flac").unlink()
    results = evaluate({"mel": MelStatistics()}, [Task(folder=str(folder))])
    facts = results.tasks[0]
    assert (facts.num_train, facts.num_test) == (29, 29)
    assert [reject.key for reject in facts.rejects] == ["07.flac", "59.flac"]


def test_a_folder_without_one_readable_file_is_refused(folder: Path) -> None:
    for file in folder.glob("*.flac"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"no labelled clip to train on .*; 60 unusable, such as .*\.flac: empty file"):
        evaluate({"mel": MelStatistics()}, [Task(folder=str(folder))])


def test_test_clips_of_a_class_never_trained_on_count_as_errors(folder: Path) -> None:
    table = (folder / "labels.csv").read_text().replace("59.flac,high", "59.flac,highest")
    (folder / "labels.csv").write_text(table)
    results = evaluate({"mel": MelStatistics()}, [Task(folder=str(folder))])
    assert results.tasks[0].num_unseen == 1
    assert max(score.score for score in results.scores) <= 29 / 30


def test_clips_of_several_classes_are_scored_by_map(folder: Path) -> None:
    table = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(table.replace(",low,", ",low; deep,").replace(",high,", ",high; bright;loud,"))
    task = Task(folder=str(folder), separator=";")
    results = evaluate({"mel": MelStatistics(), "deaf": Deaf()}, [task], shots=(4,))
    facts = results.tasks[0]
    assert facts.measure == "mAP" and facts.num_classes == 6 and facts.majority == pytest.approx(1 / 3)
    mel, deaf = (results.find(model, facts.name, "linear") for model in ("mel", "deaf"))
    assert mel and deaf and mel.score > 0.95 and deaf.score < 0.75 and mel.low <= mel.score <= mel.high
    assert {point.shots for point in results.few_shot} == {4}
    assert results.confusions == () and results.comparisons[0].test == "paired bootstrap"


def test_labels_that_look_like_several_classes_are_pointed_out(folder: Path) -> None:
    table = (folder / "labels.csv").read_text().replace(",low,", ",low;deep,")
    (folder / "labels.csv").write_text(table)
    assert 'separator ";"' in evaluate({"mel": MelStatistics()}, [Task(folder=str(folder))]).tasks[0].notes[0]


def test_models_are_compared_confused_and_mapped_on_the_same_clips(folder: Path) -> None:
    results = evaluate(
        {"deaf": Deaf(), "mel": MelStatistics()}, [Task(folder=str(folder), folds="quarter")], maps=["mel"]
    )
    (found,) = [c for c in results.comparisons if c.metric == "linear_c0.05"]
    scores = {model: results.find(model, found.task, found.metric) for model in ("mel", "deaf")}
    assert scores["mel"] and scores["deaf"]
    assert found.difference == pytest.approx(scores["mel"].score - scores["deaf"].score) and found.p < 0.001
    for confusion in results.confusions:
        score = results.find(confusion.model, confusion.task, confusion.metric)
        assert score and sum(row[i] for i, row in enumerate(confusion.counts)) == pytest.approx(60 * score.score)
        assert sum(map(sum, confusion.counts)) == 60
    (laid,) = results.maps
    assert laid.model == "mel" and len(laid.xy_N2) == 60
    xy_N2, label_N = np.array(laid.xy_N2), np.array(laid.label_N)
    distance_NN = np.linalg.norm(xy_N2[:, None] - xy_N2[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (label_N[distance_NN.argmin(axis=1)] == label_N).mean() > 0.9


def test_stored_embeddings_give_the_same_results(folder: Path, tmp_path: Path) -> None:
    first, again = (
        evaluate({"mel": MelStatistics()}, [Task(folder=str(folder))], store=tmp_path / "store") for _ in range(2)
    )
    assert first == again == evaluate({"mel": MelStatistics()}, [Task(folder=str(folder))])
