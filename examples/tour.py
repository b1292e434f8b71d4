# %% [markdown]
# # A tour: from nothing to an encoder that hears where a pattern is
#
# A notebook in the percent format: Jupyter (with jupytext), VS Code and PyCharm open it cell by cell, and
# `python examples/tour.py` runs it from end to end in a few minutes on two cores, without data, Ray or a GPU.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from scaleaudio import bundle
from scaleaudio.config import load
from scaleaudio.data.build import BuildConfig, build
from scaleaudio.data.normalise import with_constants
from scaleaudio.data.synth import synth
from scaleaudio.evaluate import MelStatistics, evaluate, parse_tasks
from scaleaudio.evaluate.embeddings import embed_files
from scaleaudio.report.gallery import draw_gallery
from scaleaudio.report.scores import score_markdown
from scaleaudio.train import PlainEngine, fit

HERE = Path(os.environ.get("TOUR_FOLDER", "tour"))
CLIPS = int(os.environ.get("TOUR_CLIPS", "600"))
STEPS = int(os.environ.get("TOUR_STEPS", "200"))
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"

# %% [markdown]
# ## A corpus
#
# Four families of sounds. What tells their classes apart is the frequency (note), the order in time (order, glide), or
# neither (timbre).

# %%
if not (HERE / "corpus" / "labels.csv").exists():
    synth(str(HERE / "corpus"), CLIPS, seed=0)
built = build(str(HERE / "corpus"), str(HERE / "shards"), BuildConfig(where={"split": "train"}, num_workers=0))
print(f"{built.samples} clips, {built.seconds / 60:.0f} minutes, in {built.shards} shards")

# %% [markdown]
# ## A config
#
# Any file of `configs/`, with any keys changed. `scaleaudio show keys` lists them all.

# %%
config = load(
    CONFIG,
    {
        "data.url": str(HERE / "shards"),
        "data.global_batch": 32,
        "schedule.steps": STEPS,
        "schedule.warmup_steps": STEPS // 10,
    },
)
stream = config.build_stream()
config = config.model_copy(update={"frontend": with_constants(config.frontend, stream)})
print(f"log-mel: mean {config.frontend.mean:.2f}, deviation {config.frontend.std:.2f}, measured from the shards")

# %% [markdown]
# ## What the adversary does
#
# A clip, its two views, and each displacement at three strengths. Over each picture stands its cosine similarity to the
# anchor, here under an encoder that has learned nothing: it hardly notices that anything moved.

# %%
before = bundle.untrained(config)
draw_gallery(config, before, next(stream.batches(0)), HERE / "negatives.png")
print(HERE / "negatives.png")

# %% [markdown]
# ## Training
#
# The loop is a generator; what `scaleaudio pretrain` runs on every worker of a cluster is the same `fit` with another
# engine.

# %%
torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
engine = PlainEngine(config.build(), config.optimizer)
curve = []
for report in fit(engine, stream.batches()):
    metrics = report.metrics()
    curve.append((metrics["similarity/positive"], metrics["similarity/negative"]))
    if report.step % max(1, STEPS // 10) == 0:
        print(f"step {report.step}: positive {curve[-1][0]:.3f}, negative {curve[-1][1]:.3f}")
stream.close()

# %%
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(np.array(curve), label=["to the positive", "to the displaced clip"])
axes.set(xlabel="step", ylabel="similarity to the anchor")
axes.legend()
figure.savefig(HERE / "similarity.png", bbox_inches="tight")

# %% [markdown]
# ## The encoder
#
# Plain PyTorch: waveforms in, vectors out. A bundle on disk needs neither the run nor its config.

# %%
encoder = bundle.from_tensors(config.model_dump(mode="json"), dict(engine.tensors()), STEPS)
bundle.save(encoder, HERE / "encoder")
encoder = bundle.load(HERE / "encoder")

# %% [markdown]
# ## Similar sounds

# %%
files = sorted((HERE / "corpus" / "audio").glob("*.flac"))[:60]
vectors_ND = embed_files({"tour": encoder}, files).by_model["tour"]
unit_ND = vectors_ND - vectors_ND.mean(axis=0)
unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
for place in np.argsort(-unit_ND @ unit_ND[0])[:4]:
    print(f"{float(unit_ND[place] @ unit_ND[0]):.3f}  {files[place].name}")

# %% [markdown]
# ## What it is worth
#
# Against the mean and deviation of the spectrogram, which know no order, and against the encoder before training.

# %%
models = {"mel mean + std": MelStatistics(), "untrained": before, "tour": encoder}
results = evaluate(models, parse_tasks([f"{HERE / 'corpus'}:note,order"]))
print(score_markdown(results))
