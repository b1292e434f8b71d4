"""An encoder as X-ARES asks for it (PyPI `xares`), and the one-class file that its command line takes.

Each exported folder holds such a file. From the folder that holds `encoder/`:

    python -m xares.run encoder/xares_encoder.py tasks/esc50_task.py
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from torch import Tensor, nn

from scaleaudio import bundle

FILE = "xares_encoder.py"


class Adapter(nn.Module):
    """Frame embeddings (B, frames, D) of waveforms; a subclass says which encoder.

    Attributes:
        folder: of the exported encoder.
        sampling_rate: in Hz.
        output_dim: D.
        hop_size_in_ms: time from one frame to the next.
    """

    folder: str | Path

    def __init__(self) -> None:
        """Loads the encoder."""
        super().__init__()
        self.encoder = bundle.load(self.folder)
        self.sampling_rate = self.encoder.sample_rate_hz
        self.output_dim = self.encoder.embedding_dim
        self.hop_size_in_ms = 1000 * self.encoder.hop_seconds
        self.eval()

    def forward(self, audio: Tensor) -> Tensor:
        """(B, frames, D) of (B, samples), or of one clip (samples,)."""
        return self.encoder.frames(audio[None] if audio.ndim == 1 else audio).float()


def class_file(encoder: bundle.AudioEncoder, name: str) -> str:
    """The source of FILE: exactly one name that ends in Encoder.

    X-ARES files what it has embedded under the class' name, so the name has the weights' digest in it.
    """
    digest = hashlib.sha256()
    for tensor in encoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).numpy().tobytes())
    words = "".join(word.capitalize() for word in re.findall(r"[A-Za-z0-9]+", name))
    return f'''"""The encoder of this folder for X-ARES."""

from pathlib import Path

from scaleaudio.export import xares


class Scaleaudio{words}_{digest.hexdigest()[:8]}_Encoder(xares.Adapter):
    folder = Path(__file__).parent
'''
