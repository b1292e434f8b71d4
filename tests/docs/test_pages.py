"""What the documentation shows is run: Python blocks in order, a page a namespace, and the program's own commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from tiny import config

from scaleaudio import bundle
from scaleaudio.cli import main
from scaleaudio.cli.app import app

ROOT = Path(__file__).parents[2]
EXECUTED = ["use.md"]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
_BLOCK = re.compile(r"^(?P<skip><!-- not run: [^\n]+ -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    line: int
    language: str
    text: str
    skipped: bool


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(line, match["language"], match["text"], match["skip"] is not None)


def commands(block: Block) -> list[list[str]]:
    """The words of each line that calls the program."""
    lines = block.text.replace("\\\n", " ").splitlines() if block.language in ("bash", "sh") else []
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("scaleaudio ")]


@pytest.mark.parametrize("name", EXECUTED)
def test_the_blocks_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.save(bundle.untrained(config()), tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    page, namespace = ROOT / "docs" / name, {"__name__": "page"}
    run = [block for block in blocks(page) if not block.skipped]
    assert any(block.language == "python" for block in run)
    for block in run:
        if block.language == "python":
            # the line numbers of a traceback are then those of the page
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)  # noqa: S102
        for words in commands(block):
            monkeypatch.setattr(sys, "argv", ["scaleaudio", *words])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, f"{page}:{block.line}: scaleaudio {shlex.join(words)}: {capsys.readouterr()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_is_one_that_the_program_has(page: Path) -> None:
    wrong = [
        f"{page.name}:{block.line}: scaleaudio {shlex.join(words)}: {said}"
        for block in blocks(page)
        for words in commands(block)
        if (said := complaint(words)) is not None
    ]
    assert not wrong, "\n".join(wrong)


def complaint(words: list[str]) -> str | None:
    """What the program says to these words before it does anything: a missing verb, option or argument."""
    command, context = typer.main.get_command(app), None
    rest = [word for word in words if word not in ("--debug", "...") and not re.match(r"[<>|&]", word)]
    try:
        while hasattr(command, "resolve_command"):
            context = command.make_context("scaleaudio", rest[:1], parent=context)
            _, command, rest = command.resolve_command(context, rest)
        if "--help" not in rest:
            command.make_context("verb", rest, parent=context)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return None


@pytest.mark.parametrize(
    "words",
    [["no-such-verb"], ["shards", "bild", "a", "b"], ["evaluate", "m", "t", "--no-such"], ["synth"]],
    ids=lambda words: " ".join(words),
)
def test_a_command_that_the_program_lacks_is_found(words: list[str]) -> None:
    assert complaint(words)
