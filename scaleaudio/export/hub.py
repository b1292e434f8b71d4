"""An encoder on the Hugging Face Hub, or in a folder laid out for it: `PyTorchModelHubMixin`.

    HubEncoder.from_pretrained("user/encoder")            # or an exported folder
    HubEncoder(scaleaudio.load(folder)).push_to_hub("user/encoder")

What is saved is an exported folder, so `scaleaudio.load` reads it too. Needs `pip install 'scaleaudio[hub]'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

try:
    from huggingface_hub import HfApi, PyTorchModelHubMixin, snapshot_download
except ImportError as missing:
    raise ImportError("huggingface_hub is not installed: pip install 'scaleaudio[hub]'") from missing

from scaleaudio import bundle
from scaleaudio.embedder import AudioEncoder
from scaleaudio.errors import RunFailed
from scaleaudio.export.folder import write_folder

_FILES = ("*.json", "*.safetensors", "README.md")


class HubEncoder(nn.Module, PyTorchModelHubMixin):
    """An encoder with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Attributes:
        encoder: what embeds.
        sample_rate_hz: the rate that waveforms must have.
        embedding_dim: D.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        """In eval mode."""
        super().__init__()
        self.encoder = encoder
        self.sample_rate_hz = encoder.sample_rate_hz
        self.embedding_dim = encoder.embedding_dim
        self.eval()

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Clip embeddings (B, D), as the encoder gives them."""
        made: Tensor = self.encoder(wave_BT)
        return made

    def frames(self, wave_BT: Tensor) -> Tensor:
        """Frame embeddings (B, S, D), as the encoder gives them."""
        return self.encoder.frames(wave_BT)

    def _save_pretrained(self, save_directory: Path) -> None:
        card = save_directory / "README.md"
        kept = card.read_text(encoding="utf-8") if card.is_file() else None
        write_folder(self.encoder, save_directory, str(self.encoder.origin.get("name", "encoder")), card=kept)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **ignored: Any,
    ) -> Self:
        folder = model_id
        if not Path(model_id).is_dir():
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=list(_FILES),
            )
        return cls(bundle.load(folder))


def push(folder: str | Path, name: str) -> str:
    """Puts all files of an exported folder into the model `name` on the Hub, made where it is not there yet.

    Gives the address of the commit.

    Raises:
        RunFailed: the Hub cannot be reached, or refuses; the folder is as it was.
    """
    hub = HfApi(library_name="scaleaudio")
    try:
        hub.create_repo(name, repo_type="model", exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a scaleaudio encoder"))
    except Exception as error:  # of whichever HTTP client the Hub's library has
        raise RunFailed(
            f"{folder} is written, but {name} was not pushed to the Hub ({type(error).__name__}: {error}). Is there a "
            "network, and a login (`hf auth login`)?"
        ) from error
