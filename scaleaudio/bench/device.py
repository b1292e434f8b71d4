"""One training step on one device: what each measure against waste is worth, and how near the floor the best one comes.

    python -m scaleaudio.bench.device configs/real_small.yaml encoder.widths=[64,128,256,512] --batches 256,1024,4096

It needs torch, torchaudio, pydantic and yaml alone, so that it runs where nothing else is installed. The first way is
what one writes without a thought of speed: float32, every operation by itself, a host that waits for each loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn

from scaleaudio.bench.floor import (
    BFLOAT16,
    FLOAT32,
    TF32,
    Counted,
    Rates,
    Work,
    optimizer_bytes,
    rates_by_precision,
    tf32_allowed,
)
from scaleaudio.bench.noise import noise
from scaleaudio.bench.profile import Share, draw, profiled
from scaleaudio.bench.turns import Spread, Timing, Turn, clocked, machine, ratio, take_turns
from scaleaudio.schedule import ema_momentum
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine
from scaleaudio.types import Batch

EAGER, FUSED, BF16, FED = "eager float32", "+ fused optimizer, TF32", "+ bfloat16", "+ int16 from pinned memory"
COMPILED, GRAPHS, NEGATIVES = "+ compile", "+ CUDA graphs", "best without compiling, negatives"
STEPS_A_TURN = 4


class Result(NamedTuple):
    """What a step takes in one way at one batch.

    Attributes:
        way: what is done against waste, on top of the way before.
        batch: clips a step.
        ms: of the clock, median over the turns.
        clips_per_second: at that.
        of_eager: how many times the straightforward way's steps a second.
        floor_ms: the least that this step can take in its precision.
        of_floor: the floor over the time.
        peak_mb: device memory held at most; 0 on a CPU.
    """

    way: str
    batch: int
    ms: float
    clips_per_second: float
    of_eager: Spread
    floor_ms: float
    of_floor: float
    peak_mb: float


class Straightforward:
    """The step as a first draft has it."""

    def __init__(self, config: TaskConfig, optimizer: OptimizerConfig, device: torch.device) -> None:
        """An own task on the device."""
        self.task, self.device = config.build().to(device).train(), device
        trained = [p for p in self.task.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, weight_decay=optimizer.weight_decay, foreach=False)
        self._trained, self._max_norm = trained, optimizer.max_grad_norm

    def step(self, batch: Batch) -> float:
        """Takes a step and waits for its loss."""
        batch = replace(batch, wave_BT=batch.wave_BT.to(self.device))
        losses = self.task(batch)
        self._optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(self._trained, self._max_norm, foreach=False)
        self._optimizer.step()
        with torch.no_grad():
            for online, target in zip(*self.task.target_pairs(), strict=True):
                target.lerp_(online, 1 - ema_momentum(batch.step, self.task.config.schedule))
        return float(losses.total.detach())


def ways(
    config: TaskConfig, optimizer: OptimizerConfig, device: torch.device, batch: Batch, *, compile: bool, graphs: bool
) -> dict[str, Turn]:
    """The ways to take the step of `config`, each with the measures of those before it; negatives only in the last."""
    plain = _changed(config, {"negatives": {"kind": "none"}, "precision": "float32"})
    bf16 = _changed(plain, {"precision": "bfloat16"})
    small = replace(batch, wave_BT=(batch.wave_BT * 32768).round().clamp(-32768, 32767).to(torch.int16))
    if device.type == "cuda":
        small = replace(small, wave_BT=small.wave_BT.pin_memory())
    found = {EAGER: _steps(Straightforward(plain, optimizer, device), batch, tf32=False)}
    chosen = {FUSED: (plain, batch), BF16: (bf16, batch), FED: (bf16, small)}
    if compile:
        chosen[COMPILED] = (_changed(bf16, {"train.compile": "default"}), small)
    if graphs:
        chosen[GRAPHS] = (_changed(bf16, {"train.compile": "reduce-overhead"}), small)
    if config.negatives.active:
        chosen[NEGATIVES] = (_changed(config, {"precision": "bfloat16"}), small)
    for name, (settings, given) in chosen.items():
        found[name] = _steps(PlainEngine(settings.build().train(), optimizer, device), given, tf32=True)
    return found


def work_of(
    config: TaskConfig, optimizer: OptimizerConfig, batch: Batch, rates: Rates, device: torch.device
) -> tuple[Work, float]:
    """What a step does, and its floor in seconds."""
    engine = PlainEngine(config.build().train(), optimizer, device)
    with Counted(rates) as counted:
        engine.step(batch.to(device))
    trained = sum(p.numel() for p in engine.task.parameters() if p.requires_grad)
    target = sum(p.numel() for p in engine.task.parameters() if not p.requires_grad)
    return counted.work, counted.seconds + optimizer_bytes(trained, target) / rates.bandwidth


def waits_for_device(engine: PlainEngine, batch: Batch) -> str | None:
    """Where a step makes the host wait for the GPU; None where it never does."""
    engine.step(batch.to(engine.device))
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(batch.to(engine.device))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def measure(
    config: TaskConfig,
    *,
    device: torch.device,
    batches: tuple[int, ...],
    rounds: int = 10,
    compile: bool = False,
    graphs: bool = False,
    on_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Every way at every batch, in turns; rates, floors and a profile; as plain data."""
    optimizer = OptimizerConfig()
    rates = rates_by_precision(device)
    for name, found in rates.items():
        on_line(f"{name}: {found.operations / 1e12:.2f} TFLOP/s, copies {found.bandwidth / 1e9:.0f} GB/s")
    results: list[Result] = []
    works: dict[str, Any] = {}
    for num in batches:
        batch = noise(config, 0, num, lanes=max(1, num // 16))
        counted = {}
        for name in rates:
            with_negatives = _changed(config, {"precision": "bfloat16" if name == BFLOAT16 else "float32"})
            without = _changed(with_negatives, {"negatives": {"kind": "none"}})
            for kind, settings in (("", without), (" negatives", with_negatives)):
                counted[name + kind] = work_of(settings, optimizer, batch, rates[name], device)
        works[str(num)] = {name: {**work._asdict(), "floor_ms": 1e3 * floor} for name, (work, floor) in counted.items()}
        turns = ways(config, optimizer, device, batch, compile=compile, graphs=graphs)
        peaks: dict[str, float] = {}
        timings = take_turns({name: _watched(turn, name, peaks, device) for name, turn in turns.items()}, rounds)
        for name, own in timings.items():
            results.append(_result(name, num, own, timings[EAGER], counted, peaks[name]))
            on_line(_line(results[-1]))
    best = max((r for r in results if r.way in (FED, BF16)), key=lambda result: result.clips_per_second)
    engine = PlainEngine(_changed(config, {"precision": "bfloat16"}).build().train(), optimizer, device)
    batch = noise(config, 0, best.batch, lanes=max(1, best.batch // 16))
    shares = profiled(lambda: engine.step(batch.to(device)), device)
    waits = waits_for_device(engine, batch) if device.type == "cuda" else None
    on_line(
        f"the host waits for the device in a step: {waits or ('no' if device.type == 'cuda' else 'not asked on a CPU')}"
    )
    return {
        "machine": machine(device),
        "rates": {name: found._asdict() for name, found in rates.items()},
        "work": works,
        "results": [result._asdict() for result in results],
        "profile": {"batch": best.batch, "shares": [share._asdict() for share in shares]},
        "waits": waits,
    }


def _result(
    name: str, num: int, own: list[Timing], eager: list[Timing], counted: Mapping[str, tuple[Work, float]], peak: float
) -> Result:
    seconds = [timing.wall for timing in own]
    median = statistics.median(seconds)
    rate = {EAGER: FLOAT32, FUSED: TF32}.get(name, BFLOAT16)
    floor = counted[rate + (" negatives" if name == NEGATIVES else "")][1]
    faster = ratio([timing.wall for timing in eager], seconds)
    return Result(name, num, 1e3 * median, num / median, faster, 1e3 * floor, floor / median, peak)


def _line(result: Result) -> str:
    return (
        f"{result.way:<36} {result.batch:>6} clips {result.ms:>9.2f} ms {result.clips_per_second:>9.0f} clips/s  "
        f"{result.of_eager:.2f} x eager  {result.of_floor:.2f} of the floor ({result.floor_ms:.2f} ms)  "
        f"{result.peak_mb:.0f} MB"
    )


def _steps(engine: Any, batch: Batch, *, tf32: bool) -> Turn:
    straightforward = isinstance(engine, Straightforward)

    def turn(number: int) -> Timing:
        def take() -> None:
            for step in range(number * STEPS_A_TURN, (number + 1) * STEPS_A_TURN):
                now = replace(batch, step=step)
                engine.step(now if straightforward else now.to(engine.device))

        with tf32_allowed(tf32):
            return clocked(take, engine.device).over(STEPS_A_TURN)

    return turn


def _watched(turn: Turn, name: str, peaks: dict[str, float], device: torch.device) -> Turn:
    """The turn, which also notes the device memory that is held at most."""
    if device.type != "cuda":
        peaks[name] = 0.0
        return turn

    def watched(number: int) -> Timing:
        torch.cuda.reset_peak_memory_stats(device)
        timing = turn(number)
        peaks[name] = torch.cuda.max_memory_allocated(device) / 1e6
        return timing

    return watched


def _changed(config: TaskConfig, changes: Mapping[str, Any]) -> TaskConfig:
    return TaskConfig.model_validate(_set(config.model_dump(), changes))


def _set(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree, in which the dotted keys are set."""
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tree


def _load(path: str | None, words: list[str]) -> TaskConfig:
    """The task of a config file with keys set; what is not part of a task is left aside."""
    tree = yaml.safe_load(Path(path).read_text()) if path else {}
    tree = _set(tree, {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)})
    known = {key: value for key, value in tree.items() if key in TaskConfig.model_fields or not path}
    return TaskConfig.model_validate(known)


def main(words: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m scaleaudio.bench.device", description=__doc__)
    parser.add_argument("config", nargs="?", help="YAML file; without one the defaults")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="keys of the task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", default="256,1024,4096", help="clips a step, with commas between")
    parser.add_argument("--rounds", type=int, default=10, help=f"turns of each way, of {STEPS_A_TURN} steps")
    parser.add_argument("--compile", action="store_true", help="also by torch.compile")
    parser.add_argument("--graphs", action="store_true", help="also by torch.compile with CUDA graphs")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--json", help="write what was found there")
    parser.add_argument("--picture", help="draw the profile there (with matplotlib)")
    asked = parser.parse_args(words)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.config and "=" in asked.config:
        asked.config, asked.changes = None, [asked.config, *asked.changes]
    try:
        config = _load(asked.config, asked.changes)
        batches = tuple(int(number) for number in asked.batches.split(","))
        if min(batches) < 2:
            raise ValueError(f"--batches {asked.batches}: expected numbers from 2 on")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    found = measure(
        config,
        device=torch.device(asked.device),
        batches=batches,
        rounds=asked.rounds,
        compile=asked.compile,
        graphs=asked.graphs,
        on_line=lambda line: print(line, flush=True),
    )
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1))
    if asked.picture:
        draw([Share(**share) for share in found["profile"]["shares"]], asked.picture)


if __name__ == "__main__":
    main()
