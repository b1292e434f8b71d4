"""The page of a run: what it shows, and that it is one file that trusts nothing it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from servers import s3_server

from scaleaudio.config import dump
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.report import history as histories
from scaleaudio.report.charts import Chart, Line, draw, short, ticks
from scaleaudio.report.curves import with_derived
from scaleaudio.report.events import fault, recovery
from scaleaudio.report.history import Bins, Series, binned, read_history, read_series
from scaleaudio.report.page import run_page
from scaleaudio.report.timeline import duration, happenings, state_of, training_seconds

VOID = {"meta", "link"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7919*7907 }}"


class Page(HTMLParser):
    """A page taken apart; every element has to be closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style" and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def data(self) -> list[Any]:
        """What the readouts read, strictly as a browser does: NaN is no JSON."""

        def refuse(word: str) -> None:
            raise AssertionError(word)

        return [json.loads(script, parse_constant=refuse) for script in self.scripts[:-1]]


def record(step: int, **more: float) -> dict[str, Any]:
    family = {"negatives/family_frequency_shift": 0.25, "negatives/family_time_reversal": 0.75}
    alike = {"similarity/positive": 0.9, "similarity/negative": 0.5, "similarity/others": 0.1}
    pace = {"clips_per_second": 160.0, "step_seconds": 0.4, "data_wait_seconds": 0.1, "learning_rate": 0.001}
    watch = {"embedding/std": 0.5, "embedding/rank": 40.0, "grad_norm": 2.0}
    return {"step": step, "time": 1e9 + step, "loss": 5.0 - step / 100} | alike | family | pace | watch | more


@pytest.fixture
def run(tiny: Any, tmp_path: Path) -> Path:
    """A run of 300 steps that has taken 200, lost a worker on the way, and ended in good order."""
    folder = tmp_path / "nightly"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(tiny({"schedule.steps": 300, "schedule.ramp_steps": 100})))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.11.0", "resources": {"CPU": 2.0}}))
    write_lines(folder / "metrics.jsonl", [record(step) for step in range(9, 200, 10)])
    write_lines(
        folder / "events.jsonl",
        [
            {"time": 1e9, "kind": "started", "step": 0, "workers": 2, "seconds": 12.0},
            {"time": 1e9 + 50, "kind": "checkpoint", "step": 50, "seconds": 0.5},
            {"time": 1e9 + 100, "kind": "checkpoint", "step": 100, "seconds": 0.7},
            fault("worker", 110, "worker 1 on host b died: signal 9") | {"time": 1e9 + 110},
            {"time": 1e9 + 130, "kind": "started", "step": 100, "workers": 2, "seconds": 20.0},
            recovery(
                "worker", 100, "goes on with 2 workers", lost_steps=10, breakdown={"noticed": 2.0, "imports": 18.0}
            )
            | {"time": 1e9 + 131},
            {"time": 1e9 + 230, "kind": "ended", "step": 200, "failure": None},
        ],
    )
    return folder


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in records))


def page_of(*runs: Path) -> Page:
    return Page(run_page([read_history(str(run)) for run in runs]))


def test_the_page_holds_the_figures_of_the_run(run: Path) -> None:
    text = page_of(run).text
    assert "step 200 of 300" in text and "stopped in good order" in text
    assert "loss 3.01" in text and "effective rank 40" in text and "clips/s 160" in text
    assert "waiting for data 25.0 % of 0.4 s a step" in text
    assert "faults 1 10 steps taken again" in text
    assert "a worker's process died: worker 1 on host b died: signal 9" in text
    assert "goes on with 2 workers after 20 s; 10 steps taken again noticed 2.0 s, imports 18.0 s" in text
    assert "2 checkpoints, the last at step 100, 0.6 s each" in text
    assert "schedule.learning_rate 0.0001" in text and "torch 2.11.0" in text and "resources.CPU 2.0" in text


def test_every_scalar_has_its_chart_with_its_values(run: Path) -> None:
    page = page_of(run)
    titles = [
        words for words in page.words if words in {"Loss", "Learning rate", "Strength", "What the adversary chose"}
    ]
    assert sorted(titles) == ["Learning rate", "Loss", "Strength", "What the adversary chose"]
    loss = page.data()[0]["lines"][0]
    assert loss["x"] == list(range(9, 200, 10)) and loss["y"][0] == pytest.approx(5 - 9 / 100)
    chosen = next(item for item in page.data() if len(item["lines"]) == 2 and item["lines"][1]["y"][0] == 0.75)
    assert chosen["lines"][0]["y"][0] == 0.25
    assert sum("mark fault" in (a.get("class") or "") for _, a in page.elements) == len(page.data())


def test_strength_follows_the_ramp_of_the_config(run: Path) -> None:
    ramped = with_derived(read_history(str(run)))["strength/frequency"].value_N
    assert ramped[0] < ramped[len(ramped) // 4] < ramped[-1] == pytest.approx(0.4)


def test_the_page_reaches_for_nothing_outside_itself(run: Path) -> None:
    text = run_page([read_history(str(run))])
    page = Page(text)
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert links == ["data:,"]
    assert "@import" not in text and "url(" not in text and "fetch(" not in text and "XMLHttp" not in text
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy is not None and policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_whatever_a_run_calls_itself_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(3)>"
    folder.mkdir()
    tree = {"name": HOSTILE, "schedule": {"steps": 5}, HOSTILE: {HOSTILE: [HOSTILE]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    write_lines(folder / "metrics.jsonl", [{"step": 1, HOSTILE: 1.0, f"negatives/family_{HOSTILE}": 1.0}])
    write_lines(
        folder / "events.jsonl",
        [
            {"kind": HOSTILE, "step": 1, HOSTILE: HOSTILE, "time": HOSTILE},
            {"kind": "fault", "fault": HOSTILE, "what": HOSTILE, "step": 1},
            {"kind": "recovery", "breakdown": {HOSTILE: 1.0}, "step": 1, "lost_steps": HOSTILE, "seconds": HOSTILE},
            {"kind": "started", "workers": HOSTILE, "step": 2},
            {"kind": "ended", "failure": HOSTILE, "step": HOSTILE},
        ],
    )
    (folder / "evaluation").mkdir()
    score = {"model": HOSTILE, "task": HOSTILE, "metric": HOSTILE, "score": 0.5, "low": 0.4, "high": 0.6}
    (folder / "evaluation" / "scores.json").write_text(json.dumps({"scores": [score]}))
    for page in (page_of(folder), page_of(folder, folder)):
        assert {tag for tag, _ in page.elements} <= {
            "html", "head", "meta", "link", "title", "style", "body", "header", "h1", "h2", "h3", "button", "section",
            "span", "code", "div", "dl", "dt", "dd", "figure", "figcaption", "p", "i", "b", "svg", "path", "script",
            "table", "tr", "th", "td", "details", "summary", "footer", "strong",
        }  # fmt: skip
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert sum(tag == "script" and "type" not in a for tag, a in page.elements) == 1
        assert HOSTILE in page.text and str(7919 * 7907) not in page.text


def test_values_that_are_not_finite_are_gaps_and_are_counted(run: Path) -> None:
    values = {29: math.nan, 39: math.inf, 49: -math.inf}
    write_lines(
        run / "metrics.jsonl",
        [record(step, **({"loss": values[step]} if step in values else {})) for step in range(9, 100, 10)],
    )
    page = page_of(run)
    loss = page.data()[0]["lines"][0]
    assert loss["y"][2:5] == [None, None, None] and loss["y"][5] is not None
    assert "3 values are not finite" in page.text
    line = next(a["d"] for tag, a in page.elements if tag == "path" and a.get("class", "").startswith("line c0"))
    assert line is not None and line.count("M") == 2 and "nan" not in line and "inf" not in line


@pytest.mark.parametrize("value", [math.nan, 0.0, -1.0, 1e300, -1e300, 5e-324, 1e-9])
def test_any_value_can_be_drawn(run: Path, value: float) -> None:
    write_lines(run / "metrics.jsonl", [record(step, loss=value, grad_norm=value) for step in range(3)])
    assert page_of(run).data()


def test_a_run_without_a_report_yet_has_a_page_that_says_so(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(tiny()))
    page = page_of(tmp_path)
    assert "nothing reported yet" in page.text and "No step has been reported yet" in page.text
    assert "schedule.steps 60" in page.text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        read_history(str(tmp_path))
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match=r"neither scores\.json nor sensitivity\.json"):
        read_history(str(tmp_path), evaluation_url=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("environment.json", "{"),
        ("events.jsonl", '{"kind": 3, "step": 1}\n[]\nnull\n{}\n{"step": 1e400}\n'),
        ("rejects.parquet", "no table"),
        ("metrics.jsonl", '{"step": 3, "loss": "x"}\n{"step": 3.5}\n{"step": 1e999}\n\x00\n'),
        ("metrics.jsonl", '{"step": 99999999999999999999, "loss": 1}\n'),
        ("metrics.jsonl", '{"step": -5, "loss": 1}\n{"step": 4, "loss": true, "grad_norm": 99999999999999999999999}\n'),
        ("evaluation/sensitivity.json", '[{"stages": [{"curves": [{"axis": "time", "points": []}]}]}]'),
        ("evaluation/scores.json", '{"scores": [{"model": 1}, null]}'),
    ],
)  # fmt: skip
def test_a_damaged_file_costs_its_part_of_the_page_alone(run: Path, name: str, text: str) -> None:
    (run / "evaluation").mkdir()
    (run / name).write_text(text)
    assert "nightly" in page_of(run).text


def test_of_a_step_that_comes_twice_the_later_value_counts(run: Path) -> None:
    again = [record(step, loss=1.0) for step in range(150, 220, 10)]
    lines = [record(step) for step in range(0, 200, 10)] + [{"step": 100, "probe/knn": 0.5}]
    write_lines(run / "metrics.jsonl", [*lines, *again, {"step": 210, "probe/knn": 0.75}])
    series = read_series(str(run))
    assert series["loss"].step_N.tolist() == list(range(0, 220, 10))
    assert set(series["loss"].value_N[15:].tolist()) == {1.0} and series["loss"].value_N[14] == 5 - 1.4
    assert series["probe/knn"].value_N.tolist() == [0.5, 0.75]


def test_a_million_steps_become_bins_that_keep_the_least_and_the_greatest() -> None:
    noise = np.random.default_rng(0).standard_normal(1_000_000)
    noise[[123_456, 654_321]] = 50.0, -50.0
    noise[777_777] = math.nan
    bins = binned(Series(np.arange(10, 10_000_010, 10), noise), 300)
    assert len(bins.x_N) == 300 and bins.num_bad == 1 and abs(bins.bad_x_N[0] - 7_777_780) < 40_000
    assert np.nanmax(bins.high_N) == 50 and np.nanmin(bins.low_N) == -50
    assert np.nanmean(bins.mean_N) == pytest.approx(np.nanmean(noise), abs=1e-3)
    assert (np.diff(bins.x_N) > 0).all()


def test_a_long_run_has_a_page_of_bounded_size_that_is_made_quickly(run: Path) -> None:
    random.seed(0)
    write_lines(run / "metrics.jsonl", [record(step, loss=random.random()) for step in range(30_000)])
    began = time.process_time()
    text = run_page([read_history(str(run))])
    assert len(text) < 600_000
    assert time.process_time() - began < 10
    assert all(len(line["x"]) <= 300 for item in Page(text).data() for line in item["lines"])


def test_several_runs_lie_over_one_another_and_say_where_their_configs_differ(
    tiny: Any, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "nightly"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text(dump(tiny({"schedule.steps": 300, "schedule.learning_rate": 0.5})))
    write_lines(other / "metrics.jsonl", [record(step, loss=1.0) for step in range(9, 50, 10)])
    page = page_of(run, other)
    loss = page.data()[0]["lines"]
    assert len(loss) == 2 and loss[1]["y"] == [1.0] * 5
    assert "nightly (1)" in page.text and "nightly (2)" in page.text
    assert "schedule.learning_rate 0.0001 0.5" in page.text and "Similarity in the projection: negative" in page.text


def test_a_thousand_faults_and_scalars_stay_readable(run: Path) -> None:
    faults = [fault("worker", step % 200, "died") | {"time": 1e9 + step} for step in range(1000)]
    write_lines(run / "events.jsonl", faults)
    write_lines(run / "metrics.jsonl", [record(9) | {f"mine/{number}": 1.0 for number in range(1000)}])
    text = run_page([read_history(str(run))])
    assert len(text) < 1_000_000 and Page(text).data()


@pytest.mark.parametrize(
    ("last", "age", "kind"),
    [
        ([], 10, "running"),
        ([], 7200, "silent"),
        ([{"kind": "fault", "fault": "worker", "what": "died", "step": 200}], 10, "recovering"),
        ([{"kind": "ended", "step": 200, "failure": "step 200: loss not finite"}], 10, "failed"),
        ([{"kind": "ended", "step": 300, "failure": None}], 10, "finished"),
        ([{"kind": "ended", "step": 200, "failure": None}], 10, "stopped"),
    ],
)
def test_the_state_of_a_run_is_what_it_told_last(run: Path, last: list[dict[str, Any]], age: float, kind: str) -> None:
    now = time.time()
    write_lines(run / "metrics.jsonl", [record(step, time=now - age - 200 + step) for step in range(9, 200, 10)])
    events = [{"time": now - age - 300, "kind": "started", "step": 0, "workers": 2, "seconds": 1.0}]
    write_lines(run / "events.jsonl", events + [{"time": now - age} | event for event in last])
    state = state_of(read_history(str(run)))
    assert (state.kind, state.steps) == (kind, 300)


def test_the_time_of_a_run_leaves_out_the_pauses_between_its_attempts(run: Path) -> None:
    events = [
        {"time": 100.0, "kind": "started"},
        {"time": 160.0, "kind": "ended", "step": 5},
        {"time": 1000.0, "kind": "started"},
        {"time": 1010.0, "kind": "checkpoint"},
        {"time": 1500.0, "kind": "started"},
    ]
    assert training_seconds(events, 1520.0) == 60 + 10 + 20
    assert training_seconds([], 5.0) == 0


def test_an_event_of_a_kind_that_nobody_knows_is_shown_as_it_is() -> None:
    (shown,) = happenings([{"kind": "moved", "step": 7, "time": 0.0, "to": "b", "why": 3}])
    assert (shown.kind, shown.step, shown.text, shown.when) == ("moved", 7, "to b, why 3", "1970-01-01 00:00:00")


def test_sensitivity_curves_beside_the_run_are_on_its_page(run: Path) -> None:
    level = {"mean": 0.9, "low": 0.88, "high": 0.92}
    points = [{"strength": at, "similarity": {"mean": 1 - at, "low": 0.9 - at, "high": 1.0}} for at in (0.0, 0.25, 0.5)]
    curve = {"axis": "time", "motion": "reversal", "points": points}
    stage = {"stage": "embedding", "positive": level, "others": level, "curves": [curve]}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "sensitivity.json").write_text(json.dumps([{"model": "mine", "stages": [stage]}]))
    page = page_of(run)
    assert "mine, embedding: moved in time" in page.words
    assert page.data()[-1]["lines"][0] == {"x": [0.0, 0.25, 0.5], "y": [1.0, 0.75, 0.5]}


def test_a_run_in_an_object_store_has_the_same_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch, "bucket"):
        for path in run.iterdir():
            storage.write_atomic(f"s3://bucket/runs/nightly/{path.name}", path.read_bytes())
        far = page_of_url("s3://bucket/runs/nightly")
    assert far.data() == page_of(run).data() and "s3://bucket/runs/nightly" in far.words


def page_of_url(url: str) -> Page:
    return Page(run_page([read_history(url)]))


def test_metrics_are_read_line_by_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories.storage, "read_bytes", lambda url: pytest.fail(f"{url} was read whole"))
    assert len(read_series(str(run))["loss"].step_N) == 20


def test_numbers_are_short() -> None:
    shown = [short(n) for n in (0.0, 0.0312, 12.5, 123.45, 1234, 12_345, 999_999, 5e7, 1.25e-5, 3e-4, -0.5, math.nan)]
    assert shown == ["0", "0.0312", "12.5", "123.5", "1,234", "12.3k", "1M", "50M", "1.3e-5", "3e-4", "-0.5", "nan"]
    assert [duration(s) for s in (3.21, 45, 720, 19_200, 3600, 273_600)] == [
        "3.2 s",
        "45 s",
        "12 min",
        "5 h 20 min",
        "1 h",
        "3 d 4 h",
    ]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 400, 5) == [0, 100, 200, 300, 400]
    assert ticks(-0.06, 1.03, 4) == pytest.approx([0, 0.5, 1])
    assert ticks(5, 5, 4) == [5]


def test_few_points_far_out_do_not_set_the_scale() -> None:
    y_N = np.full(200, 1.0) + 0.1 * np.sin(np.arange(200))
    y_N[3] = 90.0
    drawn = draw(Chart("loss", (Line("loss", "c0", Bins(np.arange(200.0), y_N, y_N, y_N)),)), (0, 200))
    assert drawn["beyond"] == "90" and max(at for at, _ in drawn["y_ticks"]) <= 100
    assert all(float(text) < 2 for _, text in drawn["y_ticks"])
