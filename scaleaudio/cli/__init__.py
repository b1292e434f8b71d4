"""The command line. Each verb imports what it needs when it runs, so that --help is instant.

Exit codes: 0 done, 1 failed while running, 2 wrong input (one line on stderr, no traceback unless --debug),
130 interrupted, 143 after SIGTERM. `pretrain` and `sweep` end with 0 when a first Ctrl-C stopped them in good order.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any, NoReturn

import typer

# In the order of `scaleaudio --help`; importing a module adds its verbs.
from scaleaudio.cli import bench, data, doctor, evaluate, models, recipes, show, train  # noqa: F401
from scaleaudio.cli.app import app
from scaleaudio.errors import DamageWarning, InputError, RunFailed

_python_shows = warnings.showwarning


def main() -> None:
    """Runs the program and turns errors into exit codes and one line."""
    warnings.showwarning = _show_warning
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    try:
        code = app(standalone_mode=False, obj=debug)  # an Exit that a verb raises comes back as its number
    except InputError as error:
        _fail(error, 2, debug)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            _fail(InputError(error.format_message()), 2, debug)
        named = str(error) if isinstance(error, RunFailed | OSError) else f"{type(error).__name__}: {error}"
        _fail(RuntimeError(named), 1, debug, cause=error)
    sys.exit(code or 0)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, DamageWarning):
        print(f"scaleaudio: warning: {message}", file=sys.stderr)
    else:
        _python_shows(message, category, *where, **more)


def _fail(error: Exception, code: int, debug: bool, cause: Exception | None = None) -> NoReturn:
    if debug:
        traceback.print_exception(cause or error)
    if str(error):  # a verb without arguments has shown its help instead
        print(f"scaleaudio: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
