"""An encoder goes to a folder in the Hub's layout and comes back the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import AUDIO_NTT, config

import scaleaudio
from scaleaudio import bundle
from scaleaudio.errors import RunFailed
from scaleaudio.export.folder import export
from scaleaudio.export.hub import HubEncoder, push


@pytest.fixture
def hub_encoder() -> HubEncoder:
    return HubEncoder(bundle.untrained(config()))


def test_what_is_saved_comes_back_bit_for_bit(hub_encoder: HubEncoder, tmp_path: Path) -> None:
    hub_encoder.save_pretrained(tmp_path / "saved")
    back = HubEncoder.from_pretrained(str(tmp_path / "saved"))
    wave_BT = torch.randn(2, 16_000)
    assert torch.equal(back(wave_BT), hub_encoder(wave_BT))
    assert torch.equal(back.frames(wave_BT), hub_encoder.frames(wave_BT))
    assert (back.sample_rate_hz, back.embedding_dim, back.training) == (16_000, 16, False)


def test_what_is_saved_is_an_exported_folder_and_the_other_way_round(hub_encoder: HubEncoder, tmp_path: Path) -> None:
    hub_encoder.save_pretrained(tmp_path / "saved")
    wave_BT = torch.randn(2, 16_000)
    assert torch.equal(scaleaudio.load(tmp_path / "saved")(wave_BT), hub_encoder(wave_BT))
    folder = export(str(tmp_path / "saved"), tmp_path / "exported")
    assert torch.equal(HubEncoder.from_pretrained(str(folder))(wave_BT), hub_encoder(wave_BT))
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "saved").iterdir()}


def test_a_card_that_is_there_is_kept(hub_encoder: HubEncoder, tmp_path: Path) -> None:
    hub_encoder.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: scaleaudio\n")
    (tmp_path / "README.md").write_text("---\nlicense: cc0-1.0\n---\nMine.\n")
    hub_encoder.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "---\nlicense: cc0-1.0\n---\nMine.\n"


def test_what_is_saved_into_a_used_folder_leaves_no_weights_of_another_encoder(
    hub_encoder: HubEncoder, tmp_path: Path
) -> None:
    bundle.save(bundle.untrained(config(AUDIO_NTT)), tmp_path / "other")
    folder = export(str(tmp_path / "other"), tmp_path / "used", state_dict=True)
    for name in ("model.onnx", "model.pt2"):
        (folder / name).write_bytes(b"another encoder's")
    hub_encoder.save_pretrained(folder)
    hub_encoder.save_pretrained(tmp_path / "new")
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "new").iterdir()}


def test_a_hub_out_of_reach_is_told_and_the_folder_stays(
    hub_encoder: HubEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_encoder.save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match=r"is written, but user/name was not pushed to the Hub .* and a login"):
        push(tmp_path, "user/name")
    with pytest.raises(RunFailed, match="was not pushed"):
        push(tmp_path, "no/such/name")
    assert scaleaudio.load(tmp_path).embedding_dim == 16
