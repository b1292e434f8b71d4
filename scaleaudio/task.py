"""The task is the model: one module from waveforms to losses.

`PretrainTask` holds front-end, views, adversary, encoder, heads and objective. A test steps it in plain torch and
DeepSpeed wraps the same object.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scaleaudio.encoders import Encoder, EncoderConfig
from scaleaudio.encoders.resnet import ResNetConfig
from scaleaudio.frontend import FrontendConfig
from scaleaudio.negatives import Found, HardestOfK, NegativesConfig
from scaleaudio.objectives import InfoNCEConfig, ObjectiveConfig, Pairs
from scaleaudio.schedule import ScheduleConfig, ramp
from scaleaudio.types import Batch, Draws, Losses, Settings, World, keyed_seed
from scaleaudio.views import ViewsConfig, make_views


class TaskConfig(Settings):
    """All that decides what is learned, given the batches."""

    seed: Annotated[int, Field(ge=0)] = 0
    clip_seconds: Annotated[float, Field(gt=0, le=60)] = 0.95
    frontend: FrontendConfig = FrontendConfig()
    views: ViewsConfig = ViewsConfig()
    negatives: NegativesConfig = HardestOfK()
    encoder: EncoderConfig = ResNetConfig()
    objective: ObjectiveConfig = InfoNCEConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _kinds_have_defaults(cls, tree: Any) -> Any:
        """A part without `kind` is of the default kind, so that {"negatives": {"time_strength": 0.2}} says enough."""
        if not isinstance(tree, dict):
            return tree
        kinds = {name: getattr(info.default, "kind", None) for name, info in cls.model_fields.items()}
        parts = {name: part for name, part in tree.items() if kinds.get(name) and isinstance(part, dict)}
        return tree | {name: {"kind": kinds[name]} | part for name, part in parts.items()}

    @model_validator(mode="after")
    def _negatives_lie_outside_the_positives(self) -> Self:
        if isinstance(self.negatives, HardestOfK):
            self.negatives.check(self.views, self.frontend.num_mels, self.num_frames)
        return self

    @property
    def clip_samples(self) -> int:
        """Samples in one training crop (T)."""
        return round(self.clip_seconds * self.frontend.sample_rate_hz)

    @property
    def num_frames(self) -> int:
        """Spectrogram frames in one training crop (S)."""
        return self.frontend.num_frames(self.clip_samples)

    def build_encoder(self) -> Encoder:
        """The encoder alone, with freshly drawn weights that depend on `seed` only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(self.seed, "encoder"))
            return self.encoder.build(self.frontend.num_mels, self.num_frames)

    def build(self, world: World | None = None) -> PretrainTask:
        """The whole task, with freshly drawn weights."""
        return PretrainTask(self, world or World())


class PretrainTask(nn.Module):
    """Batch -> Losses."""

    def __init__(self, config: TaskConfig, world: World) -> None:
        """Draws the weights; they depend on the config's seed only."""
        super().__init__()
        self.config = config
        self.world = world
        self.frontend = config.frontend.build()
        self.encoder = config.build_encoder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(config.seed, "heads"))
            self.projector = config.objective.projector.build(self.encoder.embedding_dim)
            self.objective = config.objective.build()
        self.target: nn.Sequential | None = None
        if config.objective.needs_target:
            self.target = nn.Sequential(copy.deepcopy(self.encoder), copy.deepcopy(self.projector))
            self.target.requires_grad_(False)
        self.adversary = None
        if config.negatives.active:
            assert isinstance(config.negatives, HardestOfK)
            self.adversary = config.negatives.build(config.views)

    def forward(self, batch: Batch) -> Losses:
        """One step's losses; every random number in it depends on (seed, step) and the clip's slot alone."""
        device = batch.wave_BT.device
        torch.manual_seed(keyed_seed(self.config.seed, batch.step, self.world.rank, "dropout"))
        draws = Draws(self.config.seed, batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            with torch.autocast(device.type, enabled=False):
                mel_BFS = self.frontend(batch.wave_BT)
                views = make_views(mel_BFS, self.config.views, draws, lane_batch=batch.lane_batch)
            found = self._find(views.anchor_BFS, draws, batch.step)
            mel_NFS = torch.cat(views)
            # before the negatives, so that its dropout does not depend on whether there are any
            target_ND = None if self.target is None else self.target(mel_NFS)
            embedding_ND, negative_BD = self._embed(mel_NFS, found)
            pairs = self._project(embedding_ND, negative_BD, found, target_ND)
        pairs = pairs.float()
        counts = self.world.counts(batch.num_lanes, batch.lane_batch)
        total = self.objective(pairs, self.world, counts)
        parts = _watch(pairs, embedding_ND.detach().float(), negative_BD, found)
        return Losses(total, {"loss": total.detach(), **parts}, embedding_ND[: len(mel_BFS)].detach().float())

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Moves the EMA target towards the online weights; does nothing where there is no target."""
        online, target = self.target_pairs()
        if target:
            torch._foreach_lerp_(target, online, 1 - momentum)

    def target_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The online parameters that have a target, and their targets, in the same order."""
        if self.target is None:
            return [], []
        return [*self.encoder.parameters(), *self.projector.parameters()], list(self.target.parameters())

    def _find(self, anchor_BFS: Tensor, draws: Draws, step: int) -> Found | None:
        if self.adversary is None:
            return None
        with _evaluating(self.encoder, self.projector):
            return self.adversary.find(
                anchor_BFS, lambda mel: self.projector(self.encoder(mel)), draws, ramp(step, self.config.schedule)
            )

    def _embed(self, mel_NFS: Tensor, found: Found | None) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the views (2B, D) and of the negatives (B, D)."""
        if found is None:
            return self.encoder(mel_NFS), None
        if self._negatives_norm == "shared":
            both: Tensor = self.encoder(torch.cat([mel_NFS, found.mel_BFS]))
            return both[: len(mel_NFS)], both[len(mel_NFS) :]
        embedding_ND = self.encoder(mel_NFS)
        with self._apart(self.encoder):
            return embedding_ND, self.encoder(found.mel_BFS)

    def _project(
        self, embedding_ND: Tensor, negative_BD: Tensor | None, found: Found | None, target_ND: Tensor | None
    ) -> Pairs:
        num = len(embedding_ND) // 2
        targets = (None, None) if target_ND is None else (target_ND[:num], target_ND[num:])
        if negative_BD is None or found is None:
            z_ND = self.projector(embedding_ND)
            return Pairs(z_ND[:num], z_ND[num:], None, None, *targets)
        if self._negatives_norm == "shared":
            z_ND = self.projector(torch.cat([embedding_ND, negative_BD]))
            return Pairs(z_ND[:num], z_ND[num : 2 * num], z_ND[2 * num :], found.valid_B, *targets)
        z_ND = self.projector(embedding_ND)
        with self._apart(self.projector):
            return Pairs(z_ND[:num], z_ND[num:], self.projector(negative_BD), found.valid_B, *targets)

    @property
    def _negatives_norm(self) -> str:
        assert isinstance(self.config.negatives, HardestOfK)
        return self.config.negatives.batch_norm

    @contextmanager
    def _apart(self, module: nn.Module) -> Iterator[None]:
        """Keeps the negatives out of the views' BatchNorm statistics, by which they could be told apart."""
        context = _evaluating_norms if self._negatives_norm == "eval" else _own_statistics
        with context(module):
            yield


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    were = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, were, strict=True):
            module.train(training)


@contextmanager
def _evaluating_norms(module: nn.Module) -> Iterator[None]:
    with _evaluating(*_norms(module)):
        yield


@contextmanager
def _own_statistics(module: nn.Module) -> Iterator[None]:
    """The batch at hand is normalised by its own statistics and leaves no trace in the running ones."""
    norms = _norms(module)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@torch.no_grad()
def _watch(pairs: Pairs, embedding_ND: Tensor, negative_BD: Tensor | None, found: Found | None) -> dict[str, Tensor]:
    """Similarities of the anchor to positive, negative and other clips: in the projector, and in the embedding."""
    num = len(pairs.anchor_BD)
    anchor_BD, positive_BD = embedding_ND[:num], embedding_ND[num:]
    parts = {
        "similarity/positive": F.cosine_similarity(pairs.anchor_BD, pairs.positive_BD).mean(),
        "similarity/others": F.cosine_similarity(pairs.anchor_BD, pairs.positive_BD.roll(1, 0)).mean(),
        "similarity/embedding_positive": F.cosine_similarity(anchor_BD, positive_BD).mean(),
        "similarity/embedding_others": F.cosine_similarity(anchor_BD, positive_BD.roll(1, 0)).mean(),
    }
    if pairs.negative_BD is not None and negative_BD is not None and found is not None:
        parts["similarity/negative"] = F.cosine_similarity(pairs.anchor_BD, pairs.negative_BD).mean()
        parts["similarity/embedding_negative"] = F.cosine_similarity(anchor_BD, negative_BD.float()).mean()
        parts["negatives/valid"] = found.valid_B.float().mean()
    return parts
