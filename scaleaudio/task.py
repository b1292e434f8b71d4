"""The task is the model: one module from waveforms to losses.

`PretrainTask` holds front-end, views, adversary, encoder, heads and objective. A test steps it in plain torch and
DeepSpeed wraps the same object.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from scaleaudio import initial
from scaleaudio.batch_norms import ViewsStatistics, evaluating, norms_of, own_statistics
from scaleaudio.encoders import Encoder, EncoderConfig
from scaleaudio.encoders.resnet import ResNetConfig
from scaleaudio.frontend import FrontendConfig
from scaleaudio.negatives import (
    Adversary,
    FieldAdversary,
    Found,
    HardestOfK,
    HardestOfKAdversary,
    NegativesConfig,
    NegativesSettings,
    NoNegatives,
    scarred,
)
from scaleaudio.objectives import Against, BYOLConfig, EmbeddingTerm, InfoNCEConfig, ObjectiveConfig, Pairs, Predictor
from scaleaudio.recompute import TrainConfig, in_chunks
from scaleaudio.schedule import ScheduleConfig, ramp
from scaleaudio.types import Batch, Draws, Losses, Settings, Views, World, keyed_seed
from scaleaudio.views import ViewsConfig, make_views


class TaskConfig(Settings):
    """All that decides what is learned, given the batches."""

    seed: Annotated[int, Field(ge=0, description="of the weights and of all that is drawn")] = 0
    clip_seconds: Annotated[float, Field(gt=0, le=60, description="length of the crops that are trained on")] = 0.95
    frontend: FrontendConfig = FrontendConfig()
    views: ViewsConfig = ViewsConfig()
    negatives: NegativesConfig = HardestOfK()
    encoder: EncoderConfig = ResNetConfig()
    init_from: Annotated[
        str | None,
        Field(
            description="weights that a new run's encoder begins with: an exported folder, or a .safetensors or .pth "
            "file of its state dict, such as AudioNTT's as BYOL-A publishes it"
        ),
    ] = None
    objective: ObjectiveConfig = InfoNCEConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="of the forward and backward pass; bfloat16 by autocast")
    ] = "float32"

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
        """The whole task, with freshly drawn weights; those of the encoder are at `init_from` where that is set."""
        return PretrainTask(self, world or World())


class _Embedded(NamedTuple):
    """Embeddings that are kept, and their projections."""

    kept_ND: Tensor
    projected_ND: Tensor


class _Sought(NamedTuple):
    """The negatives, and the rows of the batch (M) that they belong to."""

    found: Found
    clip_M: Tensor

    def against(self, z_ND: Tensor) -> Against:
        """Vectors of the negatives, put together clip by clip."""
        num = len(self.clip_M)
        return Against(z_ND.view(num, -1, z_ND.shape[1]), self.found.valid_N.view(num, -1), self.clip_M)


class PretrainTask(nn.Module):
    """Batch -> Losses."""

    def __init__(self, config: TaskConfig, world: World) -> None:
        """Draws the weights; they depend on the config's seed and `init_from` only.

        Raises:
            InputError: the weights at `init_from` are none, or do not fit.
            ValueError: `negatives.batch_norm` is `views`, and a BatchNorm keeps no moving statistics.
        """
        super().__init__()
        self.config = config
        self.world = world
        self.frontend = config.frontend.build()
        self.encoder = config.build_encoder()
        if config.init_from is not None:
            initial.load_into(self.encoder, config.init_from)
        if config.train.checkpoint_activations:
            self.encoder.checkpoint_activations()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(config.seed, "heads"))
            self.projector = config.objective.projector.build(self.encoder.embedding_dim)
            self.objective = config.objective.build()
        self.target: nn.Sequential | None = None
        if config.objective.needs_target:
            self.target = nn.Sequential(copy.deepcopy(self.encoder), copy.deepcopy(self.projector))
            self.target.requires_grad_(False)
        self.adversary: Adversary | None = None
        self.predictor: Predictor | None = None
        self.embedding_term: EmbeddingTerm | None = None
        if config.objective.embedding is not None:
            self.embedding_term = config.objective.embedding.build(config.objective.negative_gradient)
        self.views_statistics: ViewsStatistics | None = None
        if not isinstance(config.negatives, NoNegatives) and config.negatives.active:
            self.adversary = config.negatives.build(config.views)
            self._act(config.negatives)

    def _act(self, negatives: NegativesSettings) -> None:
        """Makes what the negatives act by beside the projections' loss."""
        objective = self.config.objective
        if objective.predict is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(keyed_seed(self.config.seed, "predictor"))
                self.predictor = objective.predict.build(self.encoder.embedding_dim, len(negatives.family_names))
        if negatives.batch_norm == "views":
            embeds = (self.target,) if self._target_embeds_negatives else (self.encoder, self.projector)
            self.views_statistics = ViewsStatistics(
                norms_of(*(module for module in embeds if module is not None)),
                in_place=self.config.train.compile == "reduce-overhead",
            )

    def forward(self, batch: Batch) -> Losses:
        """One step's losses; but for dropout, random numbers depend on (seed, step) and the clip's slot alone."""
        device = batch.wave_BT.device
        torch.manual_seed(keyed_seed(self.config.seed, batch.step, self.world.rank, "dropout"))
        draws = Draws(self.config.seed, batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            with torch.autocast(device.type, enabled=False):
                mel_BFS = self.frontend(batch.wave_BT)
                views = make_views(mel_BFS, self.config.views, draws, lane_batch=batch.lane_batch)
            sought = self._find(views.anchor_BFS, draws, batch)
            mel_NFS = torch.cat(self._scarred(views, draws, batch.step))
            # before the negatives, so that its dropout does not depend on whether there are any
            with self._noting(mel_NFS, by_target=True):
                target_ND = None if self.target is None else self.target[1](self._encoded(mel_NFS, self.target[0]))
            embedded, negative = self._embed(mel_NFS, sought)
        kept = _pairs(embedded.kept_ND, None if negative is None else negative.kept_ND, sought, None)
        projected = _pairs(
            embedded.projected_ND, None if negative is None else negative.projected_ND, sought, target_ND
        )
        total = self._total(kept, projected, sought, batch)
        parts = {"loss": total.detach(), **projected.similarities(), **kept.similarities("embedding_")}
        if sought is not None:
            parts |= sought.found.shares(self._negatives.family_names)
        return Losses(total, parts, kept.anchor_BD.detach())

    def _total(self, kept: Pairs, projected: Pairs, sought: _Sought | None, batch: Batch) -> Tensor:
        counts = self.world.counts(batch.num_lanes, batch.lane_batch)

        def seen(pairs: Pairs, where: Literal["projector", "embedding"]) -> Pairs:
            return pairs if self.config.objective.repels(where) else pairs._replace(against=None)

        total: Tensor = self.objective(seen(projected, "projector"), self.world, counts)
        if self.embedding_term is not None:
            total = total + self.embedding_term(seen(kept, "embedding"), self.world, counts, batch.lane_batch)
        if self.predictor is not None and sought is not None:
            found = sought.found
            total = total + self.predictor(kept, found.family_N, found.motion_N2, self.world, counts)
        return total

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

    def _find(self, anchor_BFS: Tensor, draws: Draws, batch: Batch) -> _Sought | None:
        if self.adversary is None:
            return None
        row_M = self._negatives.rows(len(anchor_BFS), batch.lane_batch)
        clip_M = row_M.to(anchor_BFS.device, non_blocking=True)
        with evaluating(self.encoder, self.projector):
            found = self.adversary.find(
                anchor_BFS[clip_M],
                lambda mel: self.projector(self._encoded(mel)),
                draws.of(row_M),
                ramp(batch.step, self.config.schedule),
            )
        return _Sought(found, clip_M)

    def _scarred(self, views: Views, draws: Draws, step: int) -> Views:
        """The views, some of them with the artefacts of displacement that negatives bear."""
        adversary = self.adversary
        if not isinstance(adversary, HardestOfKAdversary | FieldAdversary) or not adversary.config.artefact_positives:
            return views
        strength = ramp(step, self.config.schedule)
        return Views(
            *(
                scarred(adversary.displacer, v, draws, strength, name)
                for v, name in zip(views, Views._fields, strict=True)
            )
        )

    def _encoded(self, mel_NFS: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """Embeddings by the trained encoder or another, of as many clips at once as fit."""
        max_clips = self.config.train.max_clips_per_worker
        return in_chunks(encoder or self.encoder, mel_NFS, None if max_clips is None else 2 * max_clips)  # two views

    def _online(self, mel_NFS: Tensor) -> _Embedded:
        kept_ND = self._encoded(mel_NFS)
        return _Embedded(kept_ND, self.projector(kept_ND))

    def _embed(self, mel_NFS: Tensor, sought: _Sought | None) -> tuple[_Embedded, _Embedded | None]:
        """The views (2B), and the negatives (N)."""
        if sought is None:
            return self._online(mel_NFS), None
        negative_NFS = sought.found.mel_NFS
        if self._target_embeds_negatives:
            assert self.target is not None
            views = self._online(mel_NFS)
            with self._apart(self.target), torch.no_grad():
                kept_ND = self._encoded(negative_NFS, self.target[0])
                return views, _Embedded(kept_ND, self.target[1](kept_ND))
        if self._negatives.batch_norm == "shared":
            both = self._online(torch.cat([mel_NFS, negative_NFS]))
            num = len(mel_NFS)
            return _Embedded(*(z[:num] for z in both)), _Embedded(*(z[num:] for z in both))
        with self._noting(mel_NFS, by_target=False):
            views = self._online(mel_NFS)
        without_gradient = self.config.objective.negative_gradient == "anchor" and self.predictor is None
        with self._apart(self.encoder, self.projector), torch.no_grad() if without_gradient else nullcontext():
            return views, self._online(negative_NFS)

    @property
    def _negatives(self) -> NegativesSettings:
        assert isinstance(self.config.negatives, NegativesSettings)
        return self.config.negatives

    def _apart(self, *modules: nn.Module) -> AbstractContextManager[None]:
        """Keeps the negatives out of the views' BatchNorm statistics, by which they could be told apart."""
        if self.views_statistics is not None:
            return self.views_statistics.normalising()
        treatment = evaluating if self._negatives.batch_norm == "eval" else own_statistics
        return treatment(*norms_of(*modules))

    def _noting(self, mel_NFS: Tensor, *, by_target: bool) -> AbstractContextManager[None]:
        """Notes the statistics of the views in here, where the network that embeds negatives embeds them."""
        if self.views_statistics is None or by_target != self._target_embeds_negatives:
            return nullcontext()
        return self.views_statistics.noting(mel_NFS.shape)

    @property
    def _target_embeds_negatives(self) -> bool:
        objective = self.config.objective
        return isinstance(objective, BYOLConfig) and objective.negative_side == "target"


def _pairs(z_ND: Tensor, negative_ND: Tensor | None, sought: _Sought | None, target_ND: Tensor | None) -> Pairs:
    """Vectors of both views, of the negatives and of the target, in float32."""
    num = len(z_ND) // 2
    against = None if negative_ND is None or sought is None else sought.against(negative_ND)
    targets = (None, None) if target_ND is None else (target_ND[:num], target_ND[num:])
    return Pairs(z_ND[:num], z_ND[num:], against, *targets).float()
