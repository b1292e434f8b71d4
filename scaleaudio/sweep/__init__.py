"""What a sweep tries: keys of the config and their values, as a plan that is the same however often it is read."""

from scaleaudio.sweep.plan import Plan, SweepConfig, load_sweep
from scaleaudio.sweep.space import Changes, Range

__all__ = ["Changes", "Plan", "Range", "SweepConfig", "load_sweep"]
