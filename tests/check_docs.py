"""Whether the documentation is whole: run by `make check`, without a network.

Every config key says what it means, docs/configuration.md is what the models say, every page is in the navigation, and
the site builds strictly: no dead link or anchor, nothing that a page would load from elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaleaudio.reference import reference, undescribed

ROOT = Path(__file__).parent.parent
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src="?(https?://[^">\s]+)|<link[^>]+href="?(https?://[^">\s]+)"""
)


def problems(out: Path) -> Iterator[str]:
    yield from (f"config key {key} has no description: give its Field one" for key in undescribed())
    if (ROOT / "docs" / "configuration.md").read_text() != reference():
        yield "docs/configuration.md is not what the config says now. Run `make docs`."
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    yield from (f"docs/{page} is not in the nav of mkdocs.yml" for page in pages if f" {page}\n" not in nav)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    if built.returncode:
        yield f"the site does not build: {built.stderr.strip() or built.stdout.strip()}"
    for page in out.rglob("*.html"):
        yield from (f"{page.name} loads {first or second}" for first, second in LOADED.findall(page.read_text()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit("\n".join(problems(Path(folder))) or None)
