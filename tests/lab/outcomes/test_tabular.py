"""A user's own table becomes a book, or its fault is named with what to do; nothing is lost in silence."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.errors import BookError
from r2_serve.lab.outcomes.book import Outcome, read_book
from r2_serve.lab.outcomes.tabular import Source, table_csv, table_jsonl

HEAD = "task,prompt,model,reply,gold,cost_usd"
ROWS = ("t1,What is 2 + 2?,small,four,four,0.001", "t1,What is 2 + 2?,large,four,four,0.01")


def written(tmp_path: Path, *lines: str, name: str = "mine.csv") -> Path:
    path = tmp_path / name
    path.write_bytes("\n".join(lines).encode())
    return path


def read(path: Path) -> list[Outcome]:
    return list(table_csv(Source(path)))


def command(tmp_path: Path, path: Path, *options: str) -> tuple[int, str]:
    out = tmp_path / "mine.book"
    done = CliRunner().invoke(
        app, ["outcomes", "import", "csv", str(path), "-g", "text", *options, "-o", str(out)]
    )
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\N{ZERO WIDTH NO-BREAK SPACE}" + text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", " , "),
    ],
    ids=["Windows line ends", "a byte order mark", "semicolons", "tabs", "spaces beside commas"],
)
def test_tables_as_programs_of_other_countries_write_them_are_read(tmp_path: Path, change: object) -> None:
    assert callable(change)
    found = read(written(tmp_path, change("\n".join((HEAD, *ROWS)))))
    assert [record.model for record in found] == ["small", "large"]
    assert [record.cost_usd for record in found] == [Decimal("0.001"), Decimal("0.01")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            't2,p,small,x,x,"0,001"',
            "mine.csv:3: cost_usd: '0,001' is not a number: write it like 1250 or 0.0012",
        ),
        ("t2,p,small,x,x,nan", "mine.csv:3: cost_usd: 'nan' is not a number"),
        ("t2,p,small,x,x,inf", "mine.csv:3: cost_usd: 'inf' is not a number"),
        ("t2,p,small,x,x,-1", "mine.csv:3: cost_usd: got '-1', expected a number greater than or equal to 0"),
        ("t2,p,,x,x,1", "mine.csv:3: the cell of 'model' is empty: each row needs the model that replied"),
        (
            "t1,p,mid,x,five,1",
            "mine.csv:3: task 't1' has the right answer 'five', and 'four' in a row before",
        ),
        ("t2,p,small,x,x,1,9", "mine.csv:3: the row has more cells than the head has columns"),
    ],
)
def test_wrong_cell_is_named_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(BookError) as caught:
        read(written(tmp_path, HEAD, ROWS[0], row))
    assert message in caught.value.message


def test_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="name yours with --column model=Modell"):
        read(written(tmp_path, HEAD.replace("model", "Modell"), *ROWS))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="two columns have the name 'reply'"):
        read(written(tmp_path, HEAD.replace("gold", "reply"), *ROWS))


@pytest.mark.parametrize("read_table", [table_csv, table_jsonl])
def test_file_in_another_encoding_is_named(tmp_path: Path, read_table: object) -> None:
    assert callable(read_table)
    path = tmp_path / "mine.csv"
    path.write_bytes("\n".join((HEAD, *ROWS)).encode("utf-16"))
    with pytest.raises(BookError, match=r"mine.csv: cannot be read: it is UTF-16 text; save it as UTF-8"):
        list(read_table(Source(path)))


def test_rows_without_a_task_are_one_task_where_their_prompt_is_one(tmp_path: Path) -> None:
    lines = (HEAD, *ROWS, "t2,What is 3 + 3?,small,six,six,1")
    found = read(written(tmp_path, *(line.partition(",")[2] for line in lines)))
    first, second, other = (record.task for record in found)
    assert first == second != other


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    status, output = command(tmp_path, written(tmp_path, HEAD.replace("cost_usd", "cost"), *ROWS))
    assert status == 0
    assert "not read: cost; did you mean --column cost_usd=cost?" in output
    assert "no cost: large, small; give --prices, or a column cost_usd" in output


def test_replies_without_a_verdict_and_repeated_rows_are_said(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD, *ROWS, "t2,p,small,x,,1", "t2,p,small,y,,2")
    status, output = command(tmp_path, path)
    assert status == 0
    assert "1 row replaced by later ones of the same task, step and model" in output
    assert "no verdict: 1 of 3 replies" in output
    assert [record.reply for record in read_book(tmp_path / "mine.book")] == ["four", "four", "y"]


def test_right_answers_that_are_no_number_are_said(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD, 't1,p,small,4,"3,5",1', "t2,q,small,4,4,1")
    status, output = command(tmp_path, path, "-g", "number")
    assert status == 0
    assert "no number: 1 right answer, such as '3,5'" in output


@pytest.mark.parametrize("lines", [(), (HEAD,)])
def test_table_without_a_reply_makes_no_book(tmp_path: Path, lines: tuple[str, ...]) -> None:
    status, output = command(tmp_path, written(tmp_path, *lines))
    assert status == 1
    assert "there is no reply to import" in output
    assert not (tmp_path / "mine.book").exists()
