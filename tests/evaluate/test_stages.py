"""Looking into encoders of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, config

from scaleaudio import bundle
from scaleaudio.evaluate import MelStatistics, Task, evaluate
from scaleaudio.evaluate.stages import EMBEDDING, Staged

FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "resnet": ({}, ["stem", "stages.0", "stages.1"]),
    "cnn": ({"encoder": {"kind": "cnn", "widths": (8, 12)}}, ["blocks.0", "blocks.1"]),
    "audio_ntt": (AUDIO_NTT, ["features.3", "features.7", "features.11", "fc"]),
    "transformer": (
        {"encoder": {"kind": "transformer", "width": 16, "depth": 2, "heads": 2, "patch_mels": 8}},
        ["blocks.0", "blocks.1"],
    ),
    "timm": ({"encoder": {"kind": "timm", "model": "test_vit"}}, ["backbone.patch_embed", "backbone.blocks.0"]),
}


def staged(family: str) -> Staged:
    if family == "timm":
        pytest.importorskip("timm")
    return Staged(bundle.untrained(config(FAMILIES[family][0])))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_come_in_order_and_the_embedding_last(family: str) -> None:
    names = list(staged(family).columns)
    assert names[: len(FAMILIES[family][1])] == FAMILIES[family][1] and names[-1] == EMBEDDING


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_columns_are_the_models_own_embedding_and_no_hook_stays(family: str) -> None:
    model = staged(family)
    wave_BT = 0.1 * torch.randn(3, 9000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(wave_BT)
        torch.testing.assert_close(found[:, model.columns[EMBEDDING]], model.model(wave_BT))
    assert found.shape == (3, model.embedding_dim) and torch.isfinite(found).all()
    assert all(not module._forward_hooks for module in model.model.modules())


def test_a_long_clip_has_the_embedding_that_the_model_makes_of_its_chunks() -> None:
    model = Staged(bundle.untrained(config({"encoder": {"kind": "cnn", "widths": (4, 8), "norm": "group"}})))
    wave_BT = 0.1 * torch.randn(1, 16_000 * 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(wave_BT)[:, model.columns[EMBEDDING]], model.model(wave_BT))


def test_a_stage_is_averaged_over_all_its_places() -> None:
    model = staged("resnet")
    wave_BT = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    encoder: Any = model.model.encoder
    with torch.inference_mode():
        map_BCFS = encoder.stem(model.model.frontend(wave_BT).unsqueeze(1))  # type: ignore[operator]
        torch.testing.assert_close(model(wave_BT)[:, model.columns["stem"]], map_BCFS.mean(dim=(2, 3)))


def test_the_windows_of_a_long_clip_count_by_their_places() -> None:
    model = staged("transformer")
    encoder: Any = model.model.encoder
    wave_BT = 0.1 * torch.randn(1, 16_000 * 2, generator=torch.Generator().manual_seed(0))
    last = list(model.columns)[-2]
    with torch.inference_mode():
        token_BND: list[torch.Tensor] = []
        hook = encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: token_BND.append(output))
        found = model(wave_BT)[:, model.columns[last]]
        hook.remove()
    assert len({part.shape[1] for part in token_BND}) > 1
    torch.testing.assert_close(found, torch.cat(token_BND, dim=1).mean(dim=1))


def test_a_model_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(ValueError, match="MelStatistics: its stages cannot be probed without parts"):
        Staged(MelStatistics())


def test_each_stage_is_scored_and_the_embeddings_scores_are_those_of_the_model(clips: Path) -> None:
    models = {"own": bundle.untrained(config()), "mel": MelStatistics()}
    results = evaluate(models, [Task(folder=str(clips), label="pitch")], stages=["own"])
    assert [s.stage for s in results.stages if s.metric == "knn"] == ["stem", "stages.0", "stages.1", EMBEDDING]
    assert [s.place for s in results.stages if s.metric == "knn"] == [0, 1, 2, 3]
    last = next(s for s in results.stages if s.stage == EMBEDDING and s.metric == "linear_c0.05")
    whole = results.find("own", f"{clips.name}:pitch", "linear_c0.05")
    assert whole is not None and last.score == whole.score
    assert results.models[0].embedding_dim == models["own"].embedding_dim
