"""Line charts as inline SVG: paths in a square of 1000 by 1000 that CSS stretches.

Words and numbers stay HTML beside the square, so that they keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scaleaudio.report.history import Bins

_SIDE = 1000
_ROBUST_FROM = 50  # points, from which on a few that lie far out do not set the scale


@dataclass(frozen=True)
class Line:
    """One line of a chart; `colour` and `dash` are CSS class names."""

    label: str
    colour: str
    bins: Bins
    dash: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line at a step: `kind` is a CSS class name."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """What one chart shows.

    Attributes:
        title: what it is.
        lines: in order; of a stacked chart from the bottom up.
        note: one sentence on how to read it.
        log: logarithmic values.
        stacked: lines are shares that lie on one another.
        include: values that the scale always reaches.
        threshold: a value drawn as a dashed line, with what it means.
    """

    title: str
    lines: tuple[Line, ...]
    note: str = ""
    log: bool = False
    stacked: bool = False
    include: tuple[float, ...] = ()
    threshold: tuple[float, str] | None = None


def draw(chart: Chart, x_range: tuple[float, float], marks: Sequence[Mark] = ()) -> dict[str, Any]:
    """The chart as the template shows it: paths, ticks and legend; "data" is for the readouts."""
    shown = _stack(chart.lines) if chart.stacked else chart.lines
    low, high, beyond = _y_range(chart, shown)
    log = chart.log and low > 0

    def y(value_N: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        bottom, top = (math.log(low), math.log(high)) if log else (low, high)
        with np.errstate(invalid="ignore", divide="ignore"):
            heights = (np.log(value_N) if log else value_N) - bottom
        return _SIDE * (1 - heights / (top - bottom))

    def x(value_N: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return _SIDE * (value_N - x_range[0]) / (x_range[1] - x_range[0])

    def path(line: Line, floor_N: np.ndarray[Any, Any]) -> dict[str, Any]:
        bins, x_N = line.bins, x(line.bins.x_N)
        area = _area(x_N, y(bins.mean_N), y(floor_N)) if chart.stacked else ""
        band = _area(x_N, y(bins.high_N), y(bins.low_N)) if _spreads(bins) and not chart.stacked else ""
        return {"colour": line.colour, "dash": line.dash, "d": _curve(x_N, y(bins.mean_N)), "band": area or band}

    floors = [np.zeros_like(shown[0].bins.mean_N) if shown else np.empty(0), *(line.bins.mean_N for line in shown)]
    bad_x_N = np.unique(np.concatenate([line.bins.bad_x_N for line in chart.lines] or [np.empty(0)]))
    return {
        "title": chart.title,
        "note": chart.note,
        "stacked": chart.stacked,
        "paths": [path(line, floor) for line, floor in zip(shown, floors, strict=False)],
        "x_ticks": [(100 * (t - x_range[0]) / (x_range[1] - x_range[0]), short(t)) for t in ticks(*x_range, 5)],
        "y_ticks": [(float(y(np.array([t]))[0]) / 10, short(t)) for t in (_log_ticks if log else ticks)(low, high, 4)],
        "marks": [(float(x(np.array([m.x]))[0]), m) for m in marks if x_range[0] <= m.x <= x_range[1]],
        "threshold": _threshold(chart, low, high, y),
        "legend": [_legend(line) for line in chart.lines],
        "num_bad": sum(line.bins.num_bad for line in chart.lines),
        "bad": "".join(f"M{at:.1f} 0v60" for at in x(bad_x_N).tolist()),
        "beyond": short(beyond) if beyond is not None else "",
        "x_range": list(x_range),
        "data": [{"x": _plain(line.bins.x_N), "y": _plain(line.bins.mean_N)} for line in chart.lines],
    }


def _threshold(chart: Chart, low: float, high: float, y: Any) -> tuple[float, str] | None:
    if chart.threshold is None or not low <= chart.threshold[0] <= high:
        return None
    return float(y(np.array([chart.threshold[0]]))[0]), chart.threshold[1]


def _legend(line: Line) -> dict[str, str]:
    finite_N = line.bins.mean_N[np.isfinite(line.bins.mean_N)]
    last = short(float(finite_N[-1])) if len(finite_N) else "none"
    return {"label": line.label, "colour": line.colour, "dash": line.dash, "last": last}


def _stack(lines: Sequence[Line]) -> list[Line]:
    total, stacked = 0.0, []
    for line in lines:
        total = total + np.nan_to_num(line.bins.mean_N)
        stacked.append(replace(line, bins=line.bins._replace(mean_N=total)))
    return stacked


def _y_range(chart: Chart, lines: Sequence[Line]) -> tuple[float, float, float | None]:
    """Lowest and highest value of the scale, and the highest that lies beyond it, where any does."""
    spans = [_span(line.bins, chart) for line in lines]
    ends = [value for low, high, _ in spans for value in (low, high) if math.isfinite(value)]
    ends += [value for value in chart.include if value > 0 or not chart.log]
    if not ends:
        return 0.0, 1.0, None
    low, high = min(ends), max(ends)
    beyond = max((top for _, _, top in spans if top > 1.001 * abs(high)), default=None)
    if chart.log:
        return max(low, 1e-300) / 1.1, max(high, 1e-300) * 1.1, beyond
    flat = high - low < 1e-9 * max(abs(high), 1e-30)
    pad = (0.1 * abs(high) or 0.5) if flat else 0.06 * (high - low)
    bottom = low if low in chart.include else low - pad
    top = high if high in chart.include else high + pad
    return (bottom, top, beyond) if math.isfinite(top - bottom) else (0.0, 1.0, None)


def _span(bins: Bins, chart: Chart) -> tuple[float, float, float]:
    """Lowest and highest value of a line that set the scale, with most of its band, and the highest mean of all."""
    mean_N, low_N, high_N = bins.mean_N, bins.low_N, bins.high_N
    kept = np.isfinite(mean_N) & ((mean_N > 0) | (not chart.log))
    if not kept.any():
        return math.nan, math.nan, -math.inf
    if chart.stacked:
        return 0.0, float(mean_N[kept].max()), -math.inf
    low, high = float(mean_N[kept].min()), float(mean_N[kept].max())
    top = high
    if kept.sum() >= _ROBUST_FROM:
        usual_low, usual_high = (float(value) for value in np.quantile(mean_N[kept], (0.02, 0.98)))
        if high - usual_high > 2 * (usual_high - usual_low) > 0 and not chart.log:
            high = usual_high + 0.5 * (usual_high - usual_low)
        band_low, band_high = float(np.quantile(low_N[kept], 0.1)), float(np.quantile(high_N[kept], 0.9))
        low = min(low, band_low) if band_low > 0 or not chart.log else low
        high = max(high, band_high)
    return low, high, top


def _curve(x_N: np.ndarray[Any, Any], y_N: np.ndarray[Any, Any]) -> str:
    """A path through the points, with gaps where a value is not finite; a point alone becomes a dot."""
    return "".join(
        f"M{_points(x_N[part], y_N[part])}" + ("h0" if part.stop - part.start == 1 else "") for part in _runs(y_N)
    )


def _area(x_N: np.ndarray[Any, Any], top_N: np.ndarray[Any, Any], bottom_N: np.ndarray[Any, Any]) -> str:
    return "".join(
        f"M{_points(x_N[part], top_N[part])}L{_points(x_N[part][::-1], bottom_N[part][::-1])}Z"
        for part in _runs(top_N + bottom_N)
    )


def _points(x_N: np.ndarray[Any, Any], y_N: np.ndarray[Any, Any]) -> str:
    inside_N = np.clip(y_N, -_SIDE, 2 * _SIDE)  # what lies far out must not lie at 1e300
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(x_N.tolist(), inside_N.tolist(), strict=True))


def _runs(value_N: np.ndarray[Any, Any]) -> Iterator[slice]:
    """The stretches of finite values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.isfinite(value_N).astype(np.int8), [0]])))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield slice(start, stop)


def _spreads(bins: Bins) -> bool:
    return bool(np.nansum(bins.high_N - bins.low_N) > 0)


def _plain(value_N: np.ndarray[Any, Any]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in value_N.tolist()]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between two others, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 2.5, 5, 10) if size * times >= 0.999 * rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)][: 4 * about]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, round((last - first) / about))
    factors = (1, 3) if last - first <= 2 else (1,)
    wanted = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [value for value in wanted if low <= value <= high]


def short(number: float) -> str:
    """A number in at most about six characters: 0.0312, 12.5, 1,234, 250k, 1.2e-05."""
    if not math.isfinite(number):
        return str(number)
    size = abs(number)
    if size < 1e-12:
        return "0"
    if size < 1e-3:
        mantissa, _, power = f"{number:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    if size < 1000:
        return f"{number:.3g}" if size < 100 else f"{number:.4g}"
    for limit, unit in ((1e4, ""), (1e6, "k"), (1e9, "M"), (1e12, "G")):
        if size < 0.9995 * limit:
            return f"{number:,.0f}" if not unit else f"{number / (limit / 1e3):.3g}{unit}"
    return f"{number:.2e}"
