"""The device script runs with little installed, counts what a step does, and runs on a CPU too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import BYOL, config

from scaleaudio.bench import device
from scaleaudio.bench.floor import Counted, Rates, measure_rates, optimizer_bytes

CPU = torch.device("cpu")


def test_the_script_needs_no_more_than_torch_pydantic_and_yaml() -> None:
    refused = ["ray", "deepspeed", "webdataset", "pyarrow", "typer", "rich", "sklearn", "soundfile", "matplotlib"]
    code = f"import sys\nfor name in {refused}: sys.modules[name] = None\n"
    code += "from scaleaudio.bench import device\ndevice.main(['-h'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0 and "--batches" in ran.stdout, ran.stderr[-2000:]


def test_operations_and_bytes_are_counted_as_they_are() -> None:
    a, b = torch.zeros(8, 16), torch.zeros(16, 4)
    with Counted(Rates(bandwidth=1e3, operations=1e3)) as counted:
        (a @ b).add_(1)
    product, numbers = 2 * 8 * 16 * 4, 8 * 16 + 16 * 4 + 8 * 4
    assert counted.work.operations == product and counted.work.matrix_bytes == 4 * numbers
    assert counted.work.all_bytes == 4 * (numbers + 2 * 8 * 4) and counted.work.num_operations == 2
    assert counted.seconds == max(product, 4 * numbers) / 1e3


def test_a_backward_pass_does_twice_the_operations_of_a_forward_pass() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    inputs = torch.randn(64, 32, requires_grad=True)
    with Counted(Rates(1, 1)) as forward:
        made = layers(inputs)
    with Counted(Rates(1, 1)) as backward:
        made.sum().backward()
    assert backward.work.operations == 2 * forward.work.operations


def test_an_optimizer_passes_seven_times_over_its_weights_and_a_target_three() -> None:
    assert optimizer_bytes(100, 0) == 4 * 700 and optimizer_bytes(0, 100) == 4 * 300


def test_rates_are_those_of_a_machine() -> None:
    rates = measure_rates(CPU, torch.float32)
    assert 1e8 < rates.bandwidth < 1e14 and 1e8 < rates.operations < 1e16


@pytest.mark.parametrize("changes", [pytest.param({}, marks=pytest.mark.slow), BYOL])
def test_every_way_has_its_turn_and_nothing_beats_the_floor(changes: dict[str, object]) -> None:
    found = device.measure(config(changes), device=CPU, batches=(16,), rounds=2)
    results = {result["way"]: result for result in found["results"]}
    assert list(results) == [device.EAGER, device.FUSED, device.BF16, device.FED, device.NEGATIVES]
    assert all(0 < result["of_floor"] < 1 for result in results.values())
    assert found["work"]["16"]["float32 negatives"]["operations"] > found["work"]["16"]["float32"]["operations"] > 1e6
    assert found["profile"]["shares"][0]["ms"] > 0


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "tiny.yaml"
    settings.write_text(yaml.safe_dump({"name": "x", "data": {"url": "nowhere"}} | config().model_dump(mode="json")))
    out, picture = tmp_path / "found.json", tmp_path / "profile.png"
    words = [str(settings), "negatives={kind: none}", "--batches", "16", "--rounds", "1"]
    device.main([*words, "--json", str(out), "--picture", str(picture)])
    assert "x eager" in capsys.readouterr().out
    assert device.NEGATIVES not in [result["way"] for result in json.loads(out.read_text())["results"]]
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("words", [["nowhere.yaml"], ["encodr.kind=resnet"], ["seed=-1"], ["--batches", "1,x"]])
def test_wrong_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        device.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m scaleaudio.bench.device: error: ")


def test_whole_numbers_of_16_bits_are_the_same_sound() -> None:
    frontend = config().frontend.build()
    wave_BT = torch.randint(-32768, 32768, (2, 4000)).to(torch.int16)
    torch.testing.assert_close(frontend(wave_BT), frontend(wave_BT.float() / 32768), rtol=0, atol=0)
