"""The core, and a trained encoder, need torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny import config

from scaleaudio import bundle

HEAVY = {"ray", "deepspeed", "webdataset", "pyarrow", "sklearn", "pandas", "timm", "torchvision", "matplotlib"}
CORE = [
    "types",
    "frontend",
    "views",
    "negatives",
    "encoders",
    "objectives",
    "schedule",
    "task",
    "train",
    "bundle",
    "bench.plan",
    "bench.device",
]


def loaded_after(code: str) -> set[str]:
    """The packages that a fresh process has loaded after `code`."""
    whole = f"import json, sys\n{code}\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_importing_the_core_loads_nothing_heavy() -> None:
    assert loaded_after("\n".join(f"import scaleaudio.{name}" for name in CORE)) & HEAVY == set()


def test_loading_and_running_a_bundle_loads_nothing_heavy(tmp_path: Path) -> None:
    folder = bundle.save(bundle.untrained(config()), tmp_path)
    code = f"import scaleaudio, torch\nscaleaudio.load({str(folder)!r})(torch.zeros(1, 8000))"
    assert loaded_after(code) & HEAVY == set()


def test_importing_the_package_alone_loads_not_even_torch() -> None:
    assert loaded_after("import scaleaudio") & {"torch", "pydantic"} == set()


def test_the_command_line_alone_loads_nothing_that_help_does_not_need() -> None:
    assert loaded_after("import scaleaudio.cli") & (HEAVY | {"torch", "numpy", "pydantic", "yaml"}) == set()


def test_what_is_looked_for_would_be_found() -> None:
    assert loaded_after("import pyarrow") & HEAVY == {"pyarrow"}
