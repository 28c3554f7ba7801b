"""A fitted policy on disk: a JSON file of names and numbers. Nothing in it can run code."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from r2_serve.errors import BookError
from r2_serve.files import write_whole
from r2_serve.gates.fitted import FittedPolicy
from r2_serve.types import GraderName, Record


class PolicyFile(Record):
    """A fitted policy, and what it was fitted on."""

    kind: str = "r2-gate-1"
    """The format; another one is refused."""
    made: str
    """Date, version and machine."""
    book: str
    tasks: int
    grader: GraderName | None = None
    """The rule by which the book's answers were compared. A gate without one is not served."""
    target: str | None = None
    confidence: float | None = None
    policy: FittedPolicy


def write_policy(path: Path, file: PolicyFile) -> None:
    """Replace the file at `path`. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.model_dump_json(indent=1))


def read_policy(path: Path) -> PolicyFile:
    """Read a fitted policy. Raises: BookError if the file is none; OSError."""
    try:
        found = PolicyFile.model_validate_json(path.read_bytes())
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise BookError(
            f"{path} is no fitted policy: {place}: {first['msg']}; make one with r2-train fit"
        ) from e
    if found.kind != PolicyFile.model_fields["kind"].default:
        raise BookError(f"{path} has the format {found.kind!r}; fit it anew with r2-train fit")
    return found
