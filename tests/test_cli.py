"""The program as people call it: exit codes, one clear line for what is wrong, files where it says they are."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import soundfile
import yaml
from archives import lay_out

import scaleaudio
from scaleaudio import bundle, checkpoint
from scaleaudio.cli import main
from scaleaudio.config import Config, dump
from scaleaudio.data import storage

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run("pretrain", "a.yaml")`: exit code, stdout and stderr of the program, called in an empty folder."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.chdir(tmp_path)

    def called(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scaleaudio", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return called


def one_line(err: str) -> str:
    assert err.startswith("scaleaudio: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_version_and_module_are_the_program() -> None:
    asked = subprocess.run([sys.executable, "-m", "scaleaudio", "--version"], capture_output=True, text=True)
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, f"{scaleaudio.__version__}\n", "")


def test_without_a_verb_there_is_help(run: Run) -> None:
    code, out, err = run()
    assert code == 2 and "pretrain" in out and "evaluate" in out and err == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "No such command 'train'"),
        (["pretrain"], "Missing argument"),
        (["pretrain", "missing.yaml"], "missing.yaml: cannot be read as a config (No such file or directory)"),
        (["evaluate", "missing"], "no task: name at least one folder with a labels.csv"),
        (["evaluate", "missing", "--sensitivity", "clips"], "missing: expected an exported folder"),
        (["evaluate", "timm:no_such_net", "--sensitivity", "clips"], "timm:no_such_net: timm cannot make it"),
    ],
)
def test_wrong_words_are_named_and_exit_2(run: Run, words: list[str], expected: str) -> None:
    code, _, err = run(*words)
    assert code == 2 and expected in one_line(err)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("negatives.frequency_strenght=0.1", "(nearest known key: 'negatives.frequency_strength')"),
        ("schedule.steps=many", "schedule.steps 'many'"),
        ("schedule.steps=-1", "schedule.steps -1"),
        ("data.lanes=3", "lanes 3 does not divide global_batch 8"),
        ("data.global_batch=64", "too few clips for one batch: the index holds 48"),
        ("data.url=nowhere", 'data.url "nowhere": no such folder'),
        ("data.url=pipe:cat", "pipe: addresses run a shell"),
        ("steps", "'steps': expected key=value"),
    ],
)
def test_wrong_settings_are_named_and_exit_2(run: Run, tiny_file: Path, override: str, expected: str) -> None:
    code, _, err = run("pretrain", tiny_file, override)
    assert code == 2 and expected in one_line(err)


def test_clips_without_an_index_are_answered_with_the_command_that_builds_it(
    run: Run, tiny_file: Path, clips: Path
) -> None:
    code, _, err = run("pretrain", tiny_file, f"data.url={clips}")
    assert code == 2 and "no index.parquet here" in one_line(err)
    assert f"scaleaudio shards build {clips}" in err


def test_only_debug_shows_a_traceback(run: Run, tiny_file: Path) -> None:
    code, _, err = run("--debug", "pretrain", tiny_file, "data.url=nowhere")
    assert code == 2 and "Traceback" in err and 'data.url "nowhere"' in err.splitlines()[-1]


def test_damaged_shards_are_named_and_exit_1(run: Run, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    assert run("shards", "verify", "copy") == (0, "all shards are as they were indexed\n", "")
    tar = sorted((tmp_path / "copy").rglob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:5000])
    code, _, err = run("shards", "verify", "copy")
    assert code == 1 and tar.name in err


def test_verify_says_what_an_index_from_headers_only_cannot_check(run: Run, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for tar in shards.glob("*.tar"):
        shutil.copy(tar, tmp_path / "copy")
    assert run("shards", "index", "copy", "--headers-only")[0] == 0
    code, out, _ = run("shards", "verify", "copy")
    assert code == 0 and "of 2, indexed from headers only, no more than the size was checked" in out


def test_foreign_tars_are_indexed_checked_and_each_damaged_member_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    audio = io.BytesIO()
    soundfile.write(audio, np.random.default_rng(0).uniform(-0.5, 0.5, 4000), 16_000, format="WAV")
    for shard in range(2):
        with tarfile.open(tmp_path / "foreign" / f"{shard}.tar", "w") as tar:
            for number in range(3):
                info = tarfile.TarInfo(f"a/{number}.wav")
                info.size = len(audio.getvalue())
                tar.addfile(info, io.BytesIO(audio.getvalue()))
    (tmp_path / "foreign" / "torn.tar").write_bytes((tmp_path / "foreign" / "0.tar").read_bytes()[:12_000])
    (tmp_path / "foreign" / "packed.tar.gz").write_bytes(b"")
    code, out, err = run("shards", "index", "foreign")
    assert code == 0 and "6 samples in 2 shards" in out
    assert "rejected: torn.tar: damaged tar: " in err and "rejected: packed.tar.gz: compressed" in err
    (tmp_path / "foreign" / "torn.tar").unlink()
    assert run("shards", "verify", "foreign")[0] == 0
    with (tmp_path / "foreign" / "1.tar").open("r+b") as file:
        for at in (2000, 12_000):
            file.seek(at)
            file.write(b"dirt")
    code, _, err = run("shards", "verify", "foreign")
    assert code == 1
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["1.tar, a/0.wav", "1.tar, a/1.wav"]


def test_shards_are_built_from_a_folder(run: Run, clips: Path) -> None:
    code, out, _ = run("shards", "build", clips, "built", "num_workers=0", "--where", "split=train")
    assert code == 0 and "32 files as 32 clips" in out and "16 left out" in out
    assert run("shards", "verify", "built")[0] == 0


@pytest.fixture
def model(tiny: Callable[..., Config], tmp_path: Path) -> Path:
    """An encoder on disk."""
    config = tiny({"frontend.mean": -8.0, "frontend.std": 4.0})
    return bundle.save(bundle.untrained(config), tmp_path / "model")


def test_evaluate_prints_a_table_and_writes_what_it_names(run: Run, model: Path, clips: Path, tmp_path: Path) -> None:
    code, out, _ = run("evaluate", model, f"{clips}:pitch", "--baselines", "--out", "scored")
    assert code == 0
    assert all(word in out for word in ("model", "untrained", "mel mean + std", "kNN", "linear probe"))
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert "pitch" in json.dumps(scores)
    assert "| kNN" in (tmp_path / "scored" / "scores.md").read_text()
    assert matplotlib.image.imread(tmp_path / "scored" / "scores.png").std() > 0.01


def test_evaluate_compares_models_and_looks_into_them(
    run: Run, model: Path, tiny: Callable[..., Config], clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = bundle.save(
        bundle.untrained(tiny({"frontend.mean": -8.0, "frontend.std": 4.0, "seed": 5})), tmp_path / "other" / "model"
    )
    words = ["evaluate", model, f"{clips}:pitch", "--against", other, "--few-shot", "--stages", "--out", "scored"]
    code, out, _ = run(*words)
    assert code == 0
    assert all(word in out for word in ("Models compared", "Few clips to learn from", "Stage by stage"))
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert {(c["model"], c["other"]) for c in scores["comparisons"]} == {(str(model), str(other))}
    assert {m["model"] for m in scores["maps"]} == {str(model), str(other)}
    assert "## Models compared" in (tmp_path / "scored" / "scores.md").read_text()
    assert len(list((tmp_path / "scored" / "embeddings").rglob("*.safetensors"))) == 2
    assert run(*words)[1] == out


def test_evaluate_refuses_to_compare_a_model_with_itself(run: Run, model: Path, clips: Path) -> None:
    for against in (["model"], [f"{model}/"], ["timm:resnet18", "timm:resnet18"]):
        words = [word for other in against for word in ("--against", other)]
        code, out, err = run("evaluate", model, f"{clips}:pitch", *words)
        assert (code, out) == (2, "") and f"--against {against[-1]}: the same model is named twice" in one_line(err)


def test_evaluate_draws_sensitivity_curves_without_any_task(run: Run, model: Path, clips: Path, tmp_path: Path) -> None:
    words = ["--sensitivity", clips, "--clips", "4", "--baselines", "--out", "curves"]
    code, out, _ = run("evaluate", model, *words)
    assert code == 0 and "untrained, embedding" in out and "frequency shift, wrap" in out
    read = json.loads((tmp_path / "curves" / "sensitivity.json").read_text())
    assert [entry["model"] for entry in read] == ["untrained", "model"]
    assert "| frequency shift, floor |" in (tmp_path / "curves" / "sensitivity.md").read_text()
    assert matplotlib.image.imread(tmp_path / "curves" / "sensitivity.png").std() > 0.01
    assert not (tmp_path / "curves" / "scores.json").exists()


def test_show_negatives_draws_a_picture_a_clip(run: Run, tiny_file: Path, model: Path, tmp_path: Path) -> None:
    code, out, _ = run("show", "negatives", tiny_file, "--model", model, "--clips", "2", "--out", "seen.png")
    assert code == 0 and out.split() == ["seen.png", "seen-2.png"]
    first, second = (matplotlib.image.imread(tmp_path / name) for name in out.split())
    assert first.std() > 0.05 and (first.shape != second.shape or abs(first - second).max() > 0.1)


def test_show_run_writes_a_page_of_one_run_or_several(run: Run, tiny: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump(tiny()))
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 9, "loss": 1.25}\n')
    assert run("show", "run", "a/") == (0, "a.html\n", "")
    assert run("show", "run", "a", "b", "--out", "new/both.html") == (0, "new/both.html\n", "")
    assert run("show", "run", "b", "--out", "new") == (0, "new/b.html\n", "")
    assert "1.25" in (tmp_path / "a.html").read_text() and ">b<" in (tmp_path / "new" / "both.html").read_text()
    code, _, err = run("show", "run", "nowhere")
    assert code == 2 and "nowhere: no run here" in one_line(err)
    code, _, err = run("show", "run", "a", "b", "--evaluation", "evaluation")
    assert code == 2 and "--evaluation: of one run" in one_line(err)


def test_show_negatives_without_strength_says_that_there_are_none(run: Run, tiny_file: Path) -> None:
    words = ["negatives.frequency_strength=0", "negatives.time_strength=0"]
    code, _, err = run("show", "negatives", tiny_file, *words)
    assert code == 2 and "set a strength above 0" in one_line(err)


def test_export_writes_an_encoder_that_loads(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("export", model, "exported")[0] == 0
    assert scaleaudio.load(tmp_path / "exported").embedding_dim == scaleaudio.load(model).embedding_dim


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server of one's own with a bucket, in the environment as people would set it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        filesystem, _ = storage.open_url("s3://bucket?allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        yield
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_data_and_run_folder_may_be_in_an_object_store(
    s3: None, shards: Path, tiny_tree: dict[str, Any], tmp_path: Path
) -> None:
    """The program with a Ray of its own, twice: up to its hours, and on from there."""
    for path in shards.rglob("*"):
        if path.is_file():
            storage.write_atomic(storage.join("s3://bucket/shards", str(path.relative_to(shards))), path.read_bytes())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_tree))
    words = ["data.url=s3://bucket/shards", "launch.workers=1", "launch.engine=plain", "--out", "s3://bucket/runs/tiny"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"CUDA_VISIBLE_DEVICES": ""}

    def pretrain(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scaleaudio", "pretrain", str(tmp_path / "tiny.yaml"), *words, *more]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    stopped = pretrain("--max-hours", "1e-6")
    assert stopped.returncode == 0 and "stopped; the same command goes on" in stopped.stdout, stopped.stderr
    finished = pretrain()
    assert finished.returncode == 0 and "finished at step 60" in finished.stdout, finished.stderr
    from scaleaudio.report.runlog import read_metrics

    assert [record["step"] for record in read_metrics("s3://bucket/runs/tiny")] == list(range(1, 60, 2))
    assert len(checkpoint.list_checkpoints("s3://bucket/runs/tiny")) == 2
    assert scaleaudio.load("s3://bucket/runs/tiny").step == 60
    assert any("tensorboard/" in url for url in storage.list_files("s3://bucket/runs/tiny"))


def test_a_recipe_writes_a_labelled_folder_and_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    names = [f"AudioWAV/{actor}_DFA_{emotion}_XX.wav" for actor in (1001, 1040) for emotion in ("ANG", "SAD")]
    lay_out(tmp_path / "crema", names, {})
    code, out, err = run("recipe", "cremad", "crema", "cremad")
    assert code == 0 and "4 clips, 2 labels (split train: 2, split test: 2): cremad/labels.csv" in out
    assert "warning: split train: 2 clips; officially there are 5146\n" in err
    assert run("shards", "build", "cremad", "shards", "num_workers=0", "--where", "split=train")[0] == 0


def test_recipes_are_listed_with_licence_size_splits_and_metric(run: Run) -> None:
    code, out, _ = run("recipe", "--list")
    assert code == 0 and all(word in out for word in ("esc50", "CC BY-NC 3.0", "5-fold", "accuracy", "fsd50k", "mAP"))
    code, out, _ = run("recipe", "nsynth")
    assert code == 0 and "https://magenta.tensorflow.org" in out and "train: 289,205" in out
    code, _, err = run("recipe", "ncynth", "a", "b")
    assert code == 2 and "did you mean nsynth?" in one_line(err)
    code, _, err = run("recipe", "nsynth", "a")
    assert code == 2 and "no OUT" in one_line(err)
