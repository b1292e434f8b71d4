"""EVAR's representation class, and state dicts in the layout of BYOL-A's AudioNTT.

A file `evar/ar_scaleaudio.py` in a checkout of EVAR with the line

    from scaleaudio.export.evar import AR_ScaleAudio

and a config with `audio_repr: ar_scaleaudio.AR_ScaleAudio`, `weight_file: encoder/` and the encoder's `sample_rate` are
enough. EVAR's own BYOL-A classes take the state dict that `audio_ntt_state_dict` gives, as `weight_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scaleaudio import initial
from scaleaudio.embedder import AudioEncoder, untrained
from scaleaudio.encoders.audio_ntt import AudioNTTConfig
from scaleaudio.errors import InputError
from scaleaudio.export.which import asked_for
from scaleaudio.frontend import FrontendConfig
from scaleaudio.task import TaskConfig

_BLOCKS = {"audio_ntt": (0, 4, 8), "audio_ntt_v2": (0, 4)}
_CONV = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class AR_ScaleAudio(nn.Module):
    """Clip embeddings (B, D) of waveforms; the front-end keeps the constants that it was trained with.

    Attributes:
        cfg: EVAR's config.
        encoder: what embeds.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        """Loads the encoder that `cfg["weight_file"]` names.

        Raises:
            InputError: no such encoder, or `cfg["sample_rate"]` is not its rate.
        """
        super().__init__()
        self.cfg = cfg
        self.encoder = asked_for(cfg.get("weight_file") or "")
        rate = cfg.get("sample_rate", self.encoder.sample_rate_hz)
        if rate != self.encoder.sample_rate_hz:
            raise InputError(
                f"sample_rate {rate}: the encoder's is {self.encoder.sample_rate_hz}. Set it in the config."
            )
        self.eval()

    def precompute(self, device: Any, data_loader: Any) -> None:
        """Nothing: no statistics of the task are used."""

    def encode_frames(self, batch_audio: Tensor) -> Tensor:
        """Frame embeddings, in EVAR's order (B, D, frames)."""
        return self.encoder.frames(batch_audio).float().transpose(1, 2)

    def forward(self, batch_audio: Tensor) -> Tensor:
        """Clip embeddings (B, D)."""
        made: Tensor = self.encoder(batch_audio).float()
        return made


def audio_ntt_state_dict(encoder: AudioEncoder) -> dict[str, Tensor]:
    """The weights of an AudioNTT in BYOL-A's layout: exactly its names, plain tensors on the CPU.

    Raises:
        InputError: it is another encoder, or has position vectors, for which that layout has no names.
    """
    config = encoder.config.encoder
    if not isinstance(config, AudioNTTConfig) or config.position != "none":
        raise InputError(
            f"encoder.kind {config.kind}: BYOL-A's layout is for audio_ntt and audio_ntt_v2 without position vectors"
        )
    return {name: tensor.detach().cpu().clone() for name, tensor in encoder.encoder.state_dict().items()}


def from_audio_ntt(source: str, frontend: FrontendConfig | None = None) -> AudioEncoder:
    """An encoder with the weights of a state dict in BYOL-A's layout, v1 or v2.

    Args:
        source: the file, as `scaleaudio.initial.read_weights` takes it.
        frontend: the front-end that the weights were trained with; published weights want `mel_scale` slaney and their
            corpus' mean and std.

    Raises:
        InputError: it is no such file, or of another layout.
    """
    weights = list(initial.namings(initial.read_weights(source)))[-1]
    config = _config_of(source, weights)
    num_mels = weights["fc.0.weight"].shape[1] // 64 * 2 ** len(_BLOCKS[config.kind])
    front = (frontend or FrontendConfig()).model_copy(update={"num_mels": num_mels})
    made = untrained(TaskConfig.model_validate({"frontend": front, "encoder": config}))
    initial.load_into(made.encoder, source)
    return made.requires_grad_(False)


def layout(kind: str) -> set[str]:
    """The names of the published state dict of `kind`."""
    names = {f"features.{block}.{leaf}" for block in _BLOCKS[kind] for leaf in _CONV}
    names |= {f"features.{block + 1}.{leaf}" for block in _BLOCKS[kind] for leaf in _NORM}
    return names | {f"fc.{layer}.{leaf}" for layer in (0, 3) for leaf in _CONV}


def _config_of(source: str, weights: Mapping[str, Tensor]) -> AudioNTTConfig:
    kind = "audio_ntt" if "features.8.weight" in weights else "audio_ntt_v2"
    odd = sorted(weights.keys() ^ layout(kind))
    if odd:
        said = ", ".join(f"{name} ({'not in the layout' if name in weights else 'missing'})" for name in odd[:3])
        raise InputError(f"{source}: expected an AudioNTT's state dict in BYOL-A's layout, came one with {said}")
    sizes = [weights[f"fc.{layer}.weight"].shape for layer in (0, 3)]
    if any(len(size) != 2 for size in sizes) or sizes[0][1] % 64:
        raise InputError(f"{source}: expected fc.0.weight of a multiple of 64 columns, came {list(sizes[0])}")
    out, width = sizes[1][0], sizes[0][1]
    dim = out + width if kind == "audio_ntt_v2" else out
    return AudioNTTConfig.model_validate({"kind": kind, "embedding_dim": dim})
