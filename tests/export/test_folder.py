"""An exported folder is self-contained, and its card says what is known."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import AUDIO_NTT, NO_NEGATIVES, batch, config

import scaleaudio
from scaleaudio import checkpoint
from scaleaudio.errors import InputError
from scaleaudio.export.card import CardNotes
from scaleaudio.export.folder import export
from scaleaudio.train import OptimizerConfig, PlainEngine


def run_folder(tmp_path: Path, *changes: dict[str, Any]) -> Path:
    """A run of two steps, with the config that a run has beside the task."""
    engine = PlainEngine(config(*changes).build(), OptimizerConfig())
    for step in range(2):
        engine.step(batch(engine.task.config, step))
    tree = json.loads(engine.task.config.model_dump_json())
    data = {"url": "/somewhere/private/corpus/shards", "sources": {}, "global_batch": 16, "cache_dir": "/scratch"}
    tree |= {"name": "tiny", "data": data, "launch": {"workers": 2}}
    checkpoint.save(str(tmp_path / "run"), engine, checkpoint.Meta(2, tree, {}))
    return tmp_path / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folder(tmp_path)


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(matter), text


def test_the_folder_embeds_as_the_run_does_to_the_last_bit(run: Path, tmp_path: Path) -> None:
    folder = export(str(run), tmp_path / "out")
    wave_BT = torch.randn(2, 16_000)
    assert torch.equal(scaleaudio.load(folder)(wave_BT), scaleaudio.load(run)(wave_BT))
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "xares_encoder.py",
    }


def test_the_card_says_what_the_run_knows(run: Path, tmp_path: Path) -> None:
    matter, text = card_of(export(str(run), tmp_path / "out"))
    assert matter["library_name"] == "scaleaudio" and "license" not in matter
    assert "# tiny" in text and "Shards: `corpus/shards`" in text
    assert "Steps: 2 of 16 crops of 0.3 s (32 crops, 0.0 h)" in text
    assert "hardest_of_k, frequency strength 0.15, time strength 0.15" in text
    assert "Not evaluated yet" in text and "Weights: not stated" in text


def test_nothing_that_is_published_tells_where_on_a_machine_the_data_lay(run: Path, tmp_path: Path) -> None:
    folder = export(str(run), tmp_path / "out")
    for name in ("config.json", "README.md"):
        assert not any(word in (folder / name).read_text() for word in ("somewhere", "private", "scratch"))


def test_the_card_says_what_the_exporter_adds(run: Path, tmp_path: Path) -> None:
    scores = json.loads(scores_of_tiny())["scores"] + json.loads(scores_of_tiny(model="other"))["scores"]
    (tmp_path / "scores.json").write_text(json.dumps({"scores": scores}))
    notes = CardNotes("two days of rain", "cc-by-4.0", tmp_path / "scores.json")
    matter, text = card_of(export(str(run), tmp_path / "out", notes))
    assert matter["license"] == "cc-by-4.0" and "Weights: cc-by-4.0." in text
    assert "Data: two days of rain" in text
    assert text.count("| digits |") == 1 and "| digits | knn | .500 (.410-.590) |" in text


def test_a_baseline_and_an_untrained_encoder_are_called_so(tmp_path: Path) -> None:
    _, text = card_of(export(str(run_folder(tmp_path, NO_NEGATIVES)), tmp_path / "out"))
    assert "Adversarial negatives: none (the plain baseline)" in text
    untrained = scaleaudio.bundle.save(scaleaudio.bundle.untrained(config()), tmp_path / "untrained")
    _, text = card_of(export(str(untrained), tmp_path / "out"))
    assert "# untrained" in text and "the weights are untrained" in text and "Data: not known" in text


def test_an_exported_folder_exported_again_still_knows_its_run(run: Path, tmp_path: Path) -> None:
    once = export(str(run), tmp_path / "once")
    twice = export(str(once), tmp_path / "twice")
    assert (once / "README.md").read_text() == (twice / "README.md").read_text()
    again = export(str(once), once)  # onto itself
    assert (again / "README.md").read_text() == (twice / "README.md").read_text()
    assert scaleaudio.load(again).step == 2


def test_the_card_s_code_runs(run: Path, tmp_path: Path) -> None:
    folder = export(str(run), tmp_path / "out")
    code = card_of(folder)[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "code.py").write_text(code.replace("THIS_FOLDER", str(folder)))
    names = runpy.run_path(str(tmp_path / "code.py"))
    assert names["embedding_BD"].shape == (2, 16) and names["frames_BSD"].shape[2] == 16


def scores_of_tiny(**changes: Any) -> str:
    found = {"model": "tiny", "task": "digits", "metric": "knn", "score": 0.5, "low": 0.41, "high": 0.59}
    return json.dumps({"scores": [found | changes]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"scores.json: not a scores.json"),
        ('{"scores": 3}', r"scores.json: not a scores.json"),
        (scores_of_tiny(score="high"), r"scores.json: not a scores.json .*'high'"),
        (scores_of_tiny(low=None), r"scores.json: not a scores.json"),
        ('{"scores": [{"model": "other"}]}', r"no scores of 'tiny', only of other. Name one with --scores-of"),
    ],
)
def test_scores_that_are_none_are_refused_before_anything_is_written(
    text: str, message: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(InputError, match=message):
        export(str(run), tmp_path / "out", CardNotes(scores=tmp_path / "scores.json"))
    assert not (tmp_path / "out").exists()


def test_a_run_folder_is_not_written_into(run: Path) -> None:
    with pytest.raises(InputError, match="an encoder needs a folder of its own"):
        export(str(run), run)
    with pytest.raises(InputError, match="an encoder needs a folder of its own"):
        export(str(run), run / "checkpoints" / "step-00000002")
    assert scaleaudio.load(run).step == 2 and not (run / "config.json").exists()


def test_published_weights_become_a_folder_and_weights_again(tmp_path: Path) -> None:
    made = scaleaudio.bundle.untrained(config(AUDIO_NTT))
    torch.save(made.encoder.state_dict(), tmp_path / "weights.pth")
    keys = {"mel_scale": "slaney", "mean": -6.0, "std": 4.5}
    folder = export(str(tmp_path / "weights.pth"), tmp_path / "out", frontend=keys, state_dict=True)
    loaded = scaleaudio.load(folder)
    assert (loaded.config.frontend.mel_scale, loaded.config.frontend.num_mels) == ("slaney", 16)
    state = torch.load(folder / "audio_ntt.pth", weights_only=True)
    assert all(torch.equal(tensor, made.encoder.state_dict()[name]) for name, tensor in state.items())
    assert len(state) == len(made.encoder.state_dict())
    with pytest.raises(InputError, match=r"--frontend: mel_scale: Input should be 'htk' or 'slaney'"):
        export(str(tmp_path / "weights.pth"), tmp_path / "out", frontend={"mel_scale": "bark"})
    with pytest.raises(InputError, match="knows its front-end"):
        export(str(folder), tmp_path / "again", frontend=keys)
