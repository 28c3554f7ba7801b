"""Tasks as files for two other evaluation tools, which can then score an endpoint on the very same rows.

| format | files | run by |
|---|---|---|
| `lm-eval` | `r2_BENCHMARK.yaml`, `rows.jsonl`, `scoring.py` | lm-evaluation-harness |
| `inspect` | `r2_BENCHMARK.py`, `rows.jsonl`, `scoring.py` | inspect-ai |

`scoring.py` is `grade_text` with the modules that it reads with, so a verdict is the same by construction and
neither tool needs this package. Mathematics and P3 are not exported, because their graders are processes and
sandboxes; their answers go through `r2-serve eval grade`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.grading.grade_text import standalone_source
from r2_serve.grading.rows import Benchmark, CsqaRow, MusiqueRow, ScanRow, Task, parse_row

Format = Literal["lm-eval", "inspect"]
FORMATS: tuple[Format, ...] = get_args(Format)
EXPORTABLE: tuple[Benchmark, ...] = ("scan", "csqa", "musique", "words", "everyday")


def export(tasks: Sequence[Task], file_format: Format, directory: Path) -> list[Path]:
    """Write the files; files of the same name are replaced.

    Raises: ConfigError for a benchmark whose grader is not a function of text.
    """
    benchmark = tasks[0].benchmark
    if benchmark not in EXPORTABLE:
        raise ConfigError(
            f"{benchmark} cannot be exported, only {', '.join(EXPORTABLE)}: its grader needs more than text"
        )
    directory.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(json.dumps(exported_row(task)) for task in tasks)
    name, text = (
        (f"r2_{benchmark}.yaml", _LM_EVAL) if file_format == "lm-eval" else (f"r2_{benchmark}.py", _INSPECT)
    )
    where = json.dumps(str((directory / "rows.jsonl").resolve()))
    scoring = standalone_source() + (_PROCESS_RESULTS if file_format == "lm-eval" else "")
    contents = {
        name: text.replace("BENCHMARK", benchmark).replace("ROWS", where),
        "rows.jsonl": rows,
        "scoring.py": scoring,
    }
    for file, content in contents.items():
        write_whole(directory / file, content)
    return [directory / file for file in contents]


def exported_row(task: Task) -> dict[str, object]:
    """The fields that the tools show and `grade_text.is_right` reads; `choices` for csqa alone."""
    row: dict[str, object] = {"benchmark": task.benchmark, "id": task.id, "query": task.query}
    match parse_row(task.benchmark, task.row):
        case ScanRow(actions=actions):
            return {**row, "gold": actions}
        case CsqaRow() as parsed:
            return {**row, "gold": parsed.answerKey, "choices": parsed.choices}
        case MusiqueRow() as parsed:
            return {**row, "gold": list(parsed.golds), "answerable": parsed.answerable}
    return {**row, "gold": task.row["gold"]}


def command(file_format: Format, benchmark: str, directory: Path, model: str) -> str:
    """The command that scores the files, for an environment that has the tool."""
    if file_format == "lm-eval":
        url = "http://127.0.0.1:8000/v1/chat/completions"
        options = f"base_url={url},num_concurrent=16,max_retries=1,tokenized_requests=False"
        return (
            f"lm_eval --model local-chat-completions --model_args model={model},{options} "
            f"--include_path {directory} --tasks r2_{benchmark} --apply_chat_template --log_samples "
            f"--output_path {directory}/results"
        )
    return (
        f"cd {directory} && R2_BASE_URL=http://127.0.0.1:8000/v1 R2_API_KEY=unused "
        f"inspect eval r2_{benchmark}.py "
        f"--model openai-api/r2/{model} --max-connections 16 --log-dir logs"
    )


_LM_EVAL = """\
# SCORED BY THE SAME RULES as `r2-serve eval run`: scoring.py is its grader.
task: r2_BENCHMARK
dataset_path: json
dataset_kwargs:
  data_files:
    test: ROWS
test_split: test
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: 1024
process_results: !function scoring.process_results
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""

_PROCESS_RESULTS = '''

def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """What lm-evaluation-harness calls."""
    return {"acc": float(is_right(doc, results[0]))}
'''

_INSPECT = '''\
"""BENCHMARK rows of r2-serve as a task of inspect-ai, scored by the same rules: scoring.py is its grader."""

import sys
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import Sample, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

sys.path.insert(0, str(Path(__file__).parent))
from scoring import is_right  # noqa: E402


def to_sample(row):
    return Sample(input=row["query"], target=row["gold"], id=row["id"], metadata=row)


@scorer(metrics=[accuracy(), stderr()])
def as_r2():
    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        return Score(value=CORRECT if is_right(state.metadata, answer) else INCORRECT, answer=answer)

    return score


@task
def r2_BENCHMARK():
    rows = json_dataset(str(Path(__file__).parent / "rows.jsonl"), to_sample)
    config = GenerateConfig(temperature=0.0, max_tokens=1024)
    return Task(dataset=rows, solver=generate(), scorer=as_r2(), config=config)
'''
