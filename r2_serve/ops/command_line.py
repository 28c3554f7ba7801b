"""Shared by all commands: common options, the end of a command on an error, and output on any terminal."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from r2_serve.errors import R2Error

DEFAULT_URL = "http://127.0.0.1:8000/v1"
DEFAULT_CONFIG = Path("serve_config.yaml")
RESUMES = "interrupted; the same command goes on from here"
"""Message of commands that continue what an earlier run left."""
INTERRUPTED = 130
"""Exit status after ctrl-C, as shells report it (128 + SIGINT)."""

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="Serve config; default: the embedded tiny models (no GPU, no key)."),
]
UrlOption = Annotated[
    str, typer.Option("--url", envvar="R2_BASE_URL", help="Endpoint; without a path, /v1 is added.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="R2_API_KEY", help="Key of the endpoint, if it asks for one."),
]
StartTimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--start-timeout",
        envvar="R2_START_TIMEOUT_S",
        min=1,
        help="Longest start in seconds; default: 600 with GPUs or models on torch, otherwise 120.",
    ),
]
WorkloadArgument = Annotated[Path | None, typer.Argument(help="Workload file (YAML).")]
ExampleOption = Annotated[
    str | None,
    typer.Option("--example", "-e", help="A shipped example in place of a file; `list` names them."),
]
SeedOption = Annotated[int | None, typer.Option(help="Seed that replaces the workload's own.")]
SetAsideOption = Annotated[
    bool,
    typer.Option("--set-aside", help="Rename another run in the directory to DIR.1, then start anew."),
]


def fail(message: str, *, program: str = "r2-serve", status: int = 1) -> NoReturn:
    """End the command with `message` on standard error."""
    typer.secho(f"{program}: {message}", fg="red", err=True)
    raise typer.Exit(status)


_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of writing to an open file, which do not name it."""


@contextmanager
def plain_errors(program: str = "r2-serve", *, interrupted: str = "interrupted") -> Iterator[None]:
    """Print an R2Error or a file error as one message, without a traceback; ctrl-C gives status 130."""
    try:
        yield
    except R2Error as e:
        fail(e.message, program=program)
    except OSError as e:
        if e.filename is None and e.errno not in _DISK_ERRORS:
            raise
        where = e.filename or "a file could not be written (free some space, or name another disk)"
        fail(f"{where}: {e.strerror}", program=program)
    except KeyboardInterrupt:
        fail(interrupted, program=program, status=INTERRUPTED)


def replace_unprintable_characters() -> None:
    """Let output print `?` for characters that its encoding lacks, such as on ASCII terminals."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
