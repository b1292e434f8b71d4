"""A run may begin with the weights of another encoder, and with none that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, BYOL, batch, config

from scaleaudio import bundle, checkpoint, initial
from scaleaudio.embedder import AudioEncoder
from scaleaudio.errors import InputError
from scaleaudio.export.folder import export
from scaleaudio.train import OptimizerConfig, PlainEngine


@pytest.fixture
def other() -> AudioEncoder:
    return bundle.untrained(config({"seed": 7}))


def test_a_task_begins_with_the_weights_of_an_exported_folder_or_its_file(other: AudioEncoder, tmp_path: Path) -> None:
    folder = bundle.save(other, tmp_path)
    for source in (folder, folder / "model.safetensors"):
        task = config({"init_from": str(source)}).build()
        for name, tensor in task.encoder.state_dict().items():
            assert torch.equal(tensor, other.encoder.state_dict()[name])


def test_a_task_begins_with_a_state_dict_and_so_does_its_target(tmp_path: Path) -> None:
    other = bundle.untrained(config({"seed": 7}, AUDIO_NTT))
    torch.save(other.encoder.state_dict(), tmp_path / "weights.pth")
    task = config({"init_from": str(tmp_path / "weights.pth")}, AUDIO_NTT, BYOL).build()
    assert task.target is not None
    for encoder in (task.encoder, task.target[0]):
        assert torch.equal(encoder.fc[0].weight, other.encoder.fc[0].weight)  # type: ignore[union-attr, index]


def test_heads_and_all_else_are_drawn_as_without(other: AudioEncoder, tmp_path: Path) -> None:
    begun = config({"init_from": str(bundle.save(other, tmp_path))}).build()
    plain = config().build()
    assert all(
        torch.equal(a, b) for a, b in zip(begun.projector.parameters(), plain.projector.parameters(), strict=True)
    )


def test_a_trained_run_loads_without_the_weights_it_began_with(other: AudioEncoder, tmp_path: Path) -> None:
    source = bundle.save(other, tmp_path / "private" / "first")
    engine = PlainEngine(config({"init_from": str(source)}).build(), OptimizerConfig())
    engine.step(batch(engine.task.config))
    tree = json.loads(engine.task.config.model_dump_json())
    checkpoint.save(str(tmp_path / "run"), engine, checkpoint.Meta(1, tree, {}))
    source.rename(tmp_path / "gone")
    folder = export(str(tmp_path / "run"), tmp_path / "out")
    wave_BT = torch.randn(2, 8000)
    assert torch.equal(bundle.load(folder)(wave_BT), bundle.load(tmp_path / "run")(wave_BT))
    assert "Began with the weights of `private/first`" in (folder / "README.md").read_text()
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_encoders_whose_own_names_look_like_a_prefix_load(tmp_path: Path) -> None:
    class Nested(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 2))

    first, second = Nested(), Nested()
    torch.save({f"module.{name}": tensor for name, tensor in first.state_dict().items()}, tmp_path / "weights.pt")
    initial.load_into(second, str(tmp_path / "weights.pt"))
    assert torch.equal(first.encoder[0].weight, second.encoder[0].weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not there; expected an exported folder or a state dict"),
        (b"", "cannot be read as a state dict"),
        (b"\x80\x04 nonsense", "cannot be read as a state dict"),
        (
            {"stem.0.weight": torch.zeros(8, 1, 3, 3)},
            r"the encoder has stem.1.weight, .*weights.pth has not. There are 1",
        ),
        ([torch.zeros(2)], "it holds a list"),
        ({"optimizer": {"lr": 1.0}}, "it holds optimizer"),
    ],
)
def test_weights_that_are_none_are_refused_in_one_line(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        config({"init_from": str(path)}).build()
    assert "\n" not in str(caught.value)


def test_weights_of_another_size_are_refused_with_both_shapes(other: AudioEncoder, tmp_path: Path) -> None:
    folder = bundle.save(other, tmp_path)
    with pytest.raises(InputError, match=r"stem.0.weight is \[8, 1, 3, 3\], the encoder's \[12, 1, 3, 3\]"):
        config({"init_from": str(folder)}, {"encoder.widths": [12, 16]}).build()


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"weights": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="cannot be read as a state dict"):
        config({"init_from": str(tmp_path / "weights.pth")}).build()
    assert not (tmp_path / "touched").exists()
