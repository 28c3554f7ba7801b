"""`r2-train collect --from-traces`: served queries become training tasks.

A query whose answer clients rated as right becomes a question with that answer as its gold answer. If the
run's grader is a function of the user's own (MODULE:NAME), which needs no gold answer, every query does. The
rows are those of the benchmark `qa`, in a file of the run's directory, so every later stage reads them as any
other data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.lab.outcomes.served import RIGHT_FROM, Scores, served_queries
from r2_serve.types import Trace


def write_served_tasks(path: Path, traces: Path, grader: str | None = None) -> Path:
    """Write the tasks of served queries to `path`, and return it. A file that exists is kept.

    Raises: ConfigError if nothing can be trained on; BookError if the traces cannot be read.
    """
    if path.exists():
        return path
    found, scores = served_queries(traces)
    judges_alone = grader is not None and ":" in grader
    rows = {row["question"]: row for row in _rows(found, scores, judges_alone=judges_alone)}
    if not rows:
        raise ConfigError(
            f"{traces} holds no query to train on: clients rate answers by POST /v1/r2/feedback, or --grader "
            "names a function of your own; with server.trace_texts: false there are no texts"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join(json.dumps(row) for row in rows.values()))
    return path


def _rows(traces: list[Trace], scores: Scores, *, judges_alone: bool) -> Iterator[dict[str, str | None]]:
    for trace in traces:
        score = scores.get((trace.task, None))
        is_right = score is not None and score.score >= RIGHT_FROM
        if trace.query and (is_right or judges_alone):
            yield {"question": trace.query, "answer": trace.answer if is_right else None}
