"""What an encoder's embeddings are worth on labelled audio."""

from scaleaudio.evaluate.baseline import MelStatistics
from scaleaudio.evaluate.run import evaluate
from scaleaudio.evaluate.tasks import Task, parse_tasks

__all__ = ["MelStatistics", "Task", "evaluate", "parse_tasks"]
