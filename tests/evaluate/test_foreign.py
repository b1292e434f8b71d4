"""Encoders made elsewhere: anything on mels, and timm's backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scaleaudio.errors import InputError
from scaleaudio.evaluate import OnMels, Task, evaluate, measure_sensitivity, timm_model

timm = pytest.importorskip("timm")
SMALL = "test_resnet"  # timm's own for tests: 0.4 million weights


def test_anything_that_maps_spectrograms_to_vectors_can_be_scored(clips: Path) -> None:
    model = OnMels(lambda mel_BFS: mel_BFS.mean(dim=2), embedding_dim=64)
    results = evaluate({"mean": model}, [Task(folder=str(clips), label="pitch")], linear=False)
    assert results.scores[0].score == 1.0


def test_a_timm_backbone_is_scored_and_its_sensitivity_measured(clips: Path) -> None:
    model = timm_model(SMALL)
    assert model(torch.zeros(2, 16_000)).shape == (2, model.embedding_dim)
    result = measure_sensitivity(model, str(clips), name=SMALL, num_clips=3)
    assert result.stride == 32 and result.stages[0].others.mean < 1


def test_a_transformer_takes_spectrograms_of_any_length() -> None:
    model = timm_model("test_vit")
    assert all(model(torch.zeros(1, num_samples)).shape == (1, model.embedding_dim) for num_samples in (5000, 16_000))


def test_the_seed_decides_a_timm_backbones_weights() -> None:
    one, same, other = (timm_model(SMALL, seed=seed)(torch.ones(1, 8000)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_local_weights_of_three_channels_and_a_head_are_taken(tmp_path: Path) -> None:
    images = timm.create_model(SMALL, pretrained=False)
    save_file({name: t.contiguous() for name, t in images.state_dict().items()}, tmp_path / "weights.safetensors")
    state = timm_model(f"{SMALL}@{tmp_path / 'weights.safetensors'}").state_dict()
    name = next(n for n, t in images.state_dict().items() if t.ndim == 4 and t.shape[1] == 3)
    assert torch.allclose(state[f"encoder.backbone.{name}"], images.state_dict()[name].sum(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [("no_such_net", "timm:no_such_net: timm cannot make it"), (f"{SMALL}@missing.pt", "no such file")],
)
def test_what_timm_cannot_make_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        timm_model(name)
