"""Files of others become books; what is wrong in a file is named with its line."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.errors import BookError
from r2_serve.lab.outcomes.book import Outcome, read_book, write_book
from r2_serve.lab.outcomes.importing import Source, read_prices, recorded

runner = CliRunner()


def imported(tmp_path: Path, *arguments: object) -> dict[tuple[str, str], Outcome]:
    """The records of a book that the command makes, by task and model."""
    out = tmp_path / "book.jsonl"
    result = runner.invoke(app, ["outcomes", "import", *map(str, arguments), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return {(record.task, record.model): record for record in read_book(out)}


def test_result_file_of_zeroeval_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gpt-4o.json"
    row = {
        "id": "mmlu-1",
        "model_input": "Which?\n- A) red\n- B) green",
        "output": ['{"reasoning": "r", "answer": "B"}'],
        "correct_answer": "B",
        "choices": ["red", "green"],
    }
    path.write_text(json.dumps([row]))
    found = imported(tmp_path, "zeroeval", path, "--model", "gpt-4o", "--grader", "choice")
    record = found["mmlu-1", "gpt-4o"]
    assert (record.answer, record.right, record.choices) == ("B", True, ("red", "green"))


def test_published_form_of_zeroeval_is_read_without_options(tmp_path: Path) -> None:
    """The keys are those that ZeroEval's `save_outputs` writes, with the data set's own after them."""
    row = {
        "session_id": "gsm/gsm8k-main-test-#0",
        "chat_history": ["## Question: How many?"],
        "model_input": "<s>[INST] ## Question: How many? [/INST]",
        "output": ['{"reasoning": "6 * 7", "answer": "42"}'],
        "generator": "gpt-4o-2024-08-06",
        "configs": {"engine": "openai", "temperature": 0.0, "top_p": 1.0, "max_tokens": 4096},
        "dataset": "gsm",
        "id": "gsm8k-main-test-#0",
        "question": "How many?",
        "answer": "42",
    }
    path = tmp_path / "gpt-4o-2024-08-06.json"
    path.write_text(json.dumps([row], indent=2))
    (record,) = imported(tmp_path, "zeroeval", path, "--grader", "number").values()
    assert (record.model, record.prompt, record.right) == (row["generator"], "## Question: How many?", True)


def test_texts_of_routerbench_that_are_printed_lists_are_read(tmp_path: Path) -> None:
    """Its pickles hold lists, which `to_csv` prints."""
    path = tmp_path / "routerbench.csv"
    path.write_text(
        ",sample_id,prompt,eval_name,m,m|model_response,m|total_cost,oracle_model_to_route_to\n"
        "0,mmlu-1,\"['Which?']\",mmlu,1.0,\"['It is\\nB']\",9.3e-05,m\n"
    )
    (record,) = imported(tmp_path, "routerbench", path).values()
    assert (record.prompt, record.reply, record.right) == ("Which?", "It is\nB", True)


def test_published_files_of_zeroeval_make_the_book_of_the_recorded_format(tmp_path: Path) -> None:
    """Rows as ZeroEval publishes them: GSM8K's gold is `# 18`, and the ids of MATH level 5 begin with 0."""
    prompt, replies = "How many?\n\nAnswer in json.", {"gpt-4o": "18", "qwen2-7b": "17"}
    files, lines = [], [{"task": {"id": f"gsm/{i}", "prompt": prompt, "gold": "18"}} for i in range(2)]
    for model, answer in replies.items():
        reply = json.dumps({"reasoning": "r", "answer": answer})
        rows = [
            {
                "session_id": i,
                "chat_history": [prompt],
                "model_input": f"<|im_start|>user\n{prompt}<|im_end|>",
                "output": [reply],
                "generator": f"somebody/{model}-2024",
                "configs": {"engine": "openai", "temperature": 0.0, "max_tokens": 4096},
                "dataset": "gsm",
                "id": i,
                "question": "How many?",
                "answer": "# 18",
                "task_type": "qa",
            }
            for i in range(2)
        ]
        (tmp_path / f"{model}.json").write_text(json.dumps(rows))
        files.append(f"{model}={tmp_path / model}.json")
        lines += [
            {"id": f"gsm/{i}", "model": model, "prompt_chars": len(prompt), "reply": reply} for i in range(2)
        ]
    published = imported(tmp_path, "zeroeval", *files, "--grader", "number")
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert published == imported(tmp_path, "recorded", path, "--grader", "number")
    assert {key: record.right for key, record in published.items()} == {
        ("gsm/0", "gpt-4o"): True,
        ("gsm/1", "gpt-4o"): True,
        ("gsm/0", "qwen2-7b"): False,
        ("gsm/1", "qwen2-7b"): False,
    }


def test_csv_of_routerbench_keeps_its_verdicts_and_costs(tmp_path: Path) -> None:
    path = tmp_path / "routerbench.csv"
    path.write_text(
        "sample_id,prompt,a,b,a|model_response,b|model_response,a|total_cost,b|total_cost\n"
        'x.1,"Say, what?",1.0,0.0,"yes, it is",no,0.001,0.0002\n'
    )
    found = imported(tmp_path, "routerbench", path)
    assert [found["x.1", model].right for model in "ab"] == [True, False]
    assert found["x.1", "a"].cost_usd == Decimal("0.001")


def test_grading_a_book_again_leaves_replies_to_steps_alone(tmp_path: Path) -> None:
    whole = Outcome(task="t", model="m", gold="4", reply="4.0", grader="text", right=False)
    step = Outcome(task="t", step="0ab1", model="m", reply="{}")
    write_book(tmp_path / "a.book", [whole, step])
    out = tmp_path / "b.book"
    for options in ((), ("--grader", "number")):
        result = runner.invoke(
            app, ["outcomes", "grade", str(tmp_path / "a.book"), *options, "--out", str(out)]
        )
        assert result.exit_code == 0, result.output
    assert [(record.grader, record.right) for record in read_book(out)] == [("number", True), (None, None)]


def test_columns_of_a_table_are_named_by_the_user(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("q,llm,said,truth,p\nq1,m1,Paris,paris,0.5\nq1,m2,Rome,paris,0.25\n")
    names = ("task=q", "model=llm", "reply=said", "gold=truth", "propensity=p")
    options = [part for name in names for part in ("--column", name)]
    found = imported(tmp_path, "csv", path, "-g", "text", *options)
    assert [found["q1", model].right for model in ("m1", "m2")] == [True, False]
    assert found["q1", "m2"].propensity == 0.25


def test_prices_make_the_cost_of_a_reply(tmp_path: Path) -> None:
    path, prices = tmp_path / "rows.jsonl", tmp_path / "prices.yaml"
    prices.write_text("m: [2, 10]\n")
    task = {"task": {"id": "t", "prompt": "p" * 400, "gold": "1"}}
    reply = {"id": "t", "model": "m", "prompt_chars": 400, "reply": "1" * 40}
    path.write_text(f"{json.dumps(task)}\n{json.dumps(reply)}\n")
    found = imported(tmp_path, "recorded", path, "-g", "number", "--prices", prices)
    assert found["t", "m"].cost_usd == Decimal(100 * 2 + 10 * 10) / 1_000_000


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "t", "model": "m", "reply": "1"}'], "rows.jsonl:1: task 't' has no line"),
        (['{"task": {"id": "t"}}', '{"id": "t", "reply": "1"}'], "rows.jsonl:2: there is no `model`"),
        (['{"task": {"id": "t"}}', '{"id": "t", "mod'], "rows.jsonl:2: this is not JSON"),
        (["[1]"], "rows.jsonl:1: expected a JSON object"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(BookError, match=message):
        list(recorded(Source(path)))


def test_model_without_a_price_is_named(tmp_path: Path) -> None:
    path, prices = tmp_path / "rows.jsonl", tmp_path / "prices.yaml"
    prices.write_text("other: [1, 1]\n")
    path.write_text('{"task": {"id": "t", "gold": "1"}}\n{"id": "t", "model": "m", "reply": "1"}\n')
    arguments = ["recorded", path, "-g", "number", "--prices", prices, "-o", tmp_path / "b"]
    result = runner.invoke(app, ["outcomes", "import", *map(str, arguments)])
    assert result.exit_code == 1
    assert "has no price for m" in result.output


def test_price_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("m: cheap\n")
    with pytest.raises(BookError, match="expected lines such as"):
        read_prices(path)


def test_merged_book_compares_answers_of_both(tmp_path: Path) -> None:
    books = []
    for model in ("a", "b"):
        path, book = tmp_path / f"{model}.jsonl", tmp_path / f"{model}.book"
        rows = [{"task": {"id": "t", "gold": "1"}}, {"id": "t", "model": model, "reply": "7"}]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        arguments = ["outcomes", "import", "recorded", str(path), "-g", "number", "-o", str(book)]
        assert runner.invoke(app, arguments).exit_code == 0
        books.append(str(book))
    out = tmp_path / "both.book"
    assert runner.invoke(app, ["outcomes", "merge", *books, "--out", str(out)]).exit_code == 0
    assert [record.group for record in read_book(out)] == [1, 1]
