"""What an encoder's embeddings are worth on labelled audio."""

from scaleaudio.evaluate.baseline import MelStatistics
from scaleaudio.evaluate.foreign import OnMels, timm_model
from scaleaudio.evaluate.run import evaluate
from scaleaudio.evaluate.sensitivity import measure_sensitivity
from scaleaudio.evaluate.tasks import Task, parse_tasks

__all__ = ["MelStatistics", "OnMels", "Task", "evaluate", "measure_sensitivity", "parse_tasks", "timm_model"]
