"""The generated task domains: exact, deterministic, disjoint, and expressible in the compact codec."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from r2_serve.lab.domains import Task, everyday, everyday_steps, scan, solve_plan, words
from r2_serve.prompts import get_codec
from r2_serve.prompts.conversation import asked
from r2_serve.types import substitute

CODEC = get_codec("compact")
SAMPLE = [
    *scan.tasks("train")[::40],
    *scan.tasks("length")[::40],
    *words.tasks("train", 300),
    *words.tasks("test", 300),
    *everyday.tasks("train", 300),
    *everyday.tasks("test", 100),
]
PLANS = [(task, plan) for task in SAMPLE for plan in task.plans]


def _solve(text: str) -> str:
    if any(kind in text.split() for kind in everyday_steps.KINDS):
        return everyday_steps.solve(text)
    return words.solve(text) if any(character.isdigit() for character in text) else scan.interpret(text)


def test_scan_has_20910_distinct_commands() -> None:
    assert len(set(scan.commands())) == len(scan.commands()) == 20_910


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("jump", "I_JUMP"),
        ("turn left twice", "I_TURN_LEFT I_TURN_LEFT"),
        ("walk opposite right", "I_TURN_RIGHT I_TURN_RIGHT I_WALK"),
        ("look around left", " ".join(["I_TURN_LEFT I_LOOK"] * 4)),
        ("turn around right", " ".join(["I_TURN_RIGHT"] * 4)),
        ("run left and walk", "I_TURN_LEFT I_RUN I_WALK"),
        ("walk after jump thrice", "I_JUMP I_JUMP I_JUMP I_WALK"),
    ],
)
def test_scan_commands_give_the_actions_worked_out_by_hand(command: str, actions: str) -> None:
    assert command in scan.commands()
    assert scan.interpret(command) == actions


def test_scan_refuses_what_is_not_a_command() -> None:
    with pytest.raises(ValueError, match="not a SCAN action"):
        scan.interpret("fly")


def test_scan_plan_does_each_phrase_once_and_repeats_it_in_the_template() -> None:
    plan = scan.reference_plan("run around left thrice after turn around right thrice")
    assert [subtask.text for subtask in plan.subtasks] == ["turn around right", "run around left"]
    assert plan.answer == "#1 #1 #1 #2 #2 #2"
    assert (
        CODEC.format_plan(scan.reference_plan("run twice and run"), "run twice and run") == "run | #1 #1 #1"
    )


@pytest.mark.parametrize(
    ("command", "plans"),
    [
        ("run", ["run | #1", "run"]),
        ("run twice", ["run | #1 #1", "run twice"]),
        (
            "walk after run twice",
            ["run ; walk | #1 #1 #2", "run twice ; walk | #1 #2", "walk after run twice"],
        ),
        ("run twice and run twice", ["run | #1 #1 #1 #1", "run twice | #1 #1", "run twice and run twice"]),
        ("run and walk", ["run ; walk | #1 #2", "run and walk"]),
    ],
)
def test_scan_plans_go_from_phrases_to_clauses_to_the_whole(command: str, plans: list[str]) -> None:
    assert [CODEC.format_plan(plan, command) for plan in scan.plans(command)] == plans


def test_scan_splits_have_the_official_sizes_and_train_is_in_neither_test() -> None:
    train, length, simple = (
        {task.query for task in scan.tasks(split)} for split in ("train", "length", "simple")
    )
    assert (len(length), len(simple)) == (3_920, 4_182)
    assert not train & (length | simple)
    assert len(train | length | simple) == 20_910
    assert max(len(task.gold.split()) for task in scan.tasks("train")) == 22


def test_words_task_states_the_problem_in_english_with_its_answer() -> None:
    problem = words.Problem((words.Branch("*", (3, 9)), words.Branch("-", (645, 12))), "sum")
    task = words.task(problem, random.Random(0))
    assert task.gold == "660"
    assert CODEC.format_plan(task.reference_plan, task.query) == "n1 * n2 ; n3 - n4 ; #1 + #2"
    assert task.query.endswith("?")
    assert all(number in task.query for number in ("3", "9", "645", "12"))


def test_words_difference_takes_the_smaller_total_from_the_larger() -> None:
    branches = (words.Branch("", (10,)), words.Branch("", (20,)), words.Branch("", (7,)))
    problem = words.Problem(branches, "difference", split=1, is_swapped=True)
    assert [subtask.text for subtask in words.plan(problem).subtasks] == ["20 + 7", "#1 - 10"]
    assert words.answer(problem) == 17


def test_words_with_four_branches_sum_them_as_a_tree() -> None:
    plan = words.plan(words.Problem(tuple(words.Branch("+", (n, n)) for n in (2, 3, 4, 5)), "sum"))
    assert [subtask.text for subtask in plan.subtasks[4:]] == ["#1 + #2", "#3 + #4", "#5 + #6"]
    assert plan.depth == 3


def test_words_sums_are_joined_as_a_tree_or_as_a_chain() -> None:
    problem = words.Problem(tuple(words.Branch("", (n,)) for n in (2, 3, 4, 5)), "sum")
    tree, chain = ([subtask.text for subtask in plan.subtasks] for plan in words.plans(problem))
    assert tree == ["2 + 3", "4 + 5", "#1 + #2"]
    assert chain == ["2 + 3", "#1 + 4", "#2 + 5"]


def test_words_problems_are_mostly_wide_and_several_steps_long() -> None:
    plans = [task.reference_plan for task in words.tasks("train", 1000)]
    assert 4 < sum(len(plan.subtasks) for plan in plans) / len(plans) < 6
    assert 2.5 < sum(plan.depth for plan in plans) / len(plans) < 3.6
    assert max(len(plan.subtasks) for plan in plans) <= 16


def test_words_values_are_positive() -> None:
    for problem in words.problems("train", 500):
        assert words.answer(problem) > 0
        assert all(value > 0 for branch in problem.branches for value in branch.values)


def test_words_train_and_test_are_disjoint() -> None:
    train, test = words.tasks("train", 2000), words.tasks("test", 500)
    words.assert_disjoint(train, test)
    with pytest.raises(AssertionError, match="both splits"):
        words.assert_disjoint(train, [*test, train[0]])


def test_words_resamples_keep_structure_digit_lengths_and_side_of_the_split() -> None:
    rng = random.Random(1)
    for problem in words.problems("train", 50):
        for fresh in islice(words.resamples(problem, rng), 4):
            assert not fresh.is_held_out
            assert [branch.ops for branch in fresh.branches] == [branch.ops for branch in problem.branches]
            assert [len(str(n)) for b in fresh.branches for n in b.operands] == [
                len(str(n)) for b in problem.branches for n in b.operands
            ]
            assert words.answer(fresh) > 0


def test_words_distinct_operands_change_no_word_and_no_structure() -> None:
    for problem in words.problems("train", 50):
        distinct = words.with_distinct_operands(problem)
        here, there = (
            CODEC.render_decompose(asked(words.task(p, random.Random(0)).query), 16)[0].content
            for p in (problem, distinct)
        )
        assert here == there
        numbers = [n for branch in distinct.branches for n in branch.operands]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("645 + 12", "657"),
        ("645 - 12", "633"),
        ("27 * 6", "162"),
        ("84 / 7", "12"),
        ("max 34 , 12 , 78", "78"),
        ("min 34 , 12 , 78", "12"),
        ("sort 34 , 12 , 78", "12, 34, 78"),
        ('reverse "garden"', "nedrag"),
        ('shift 3 "lazy"', "odcb"),
        ('replace "a" "o" "banana"', "bonono"),
        ("day sunday 8", "monday"),
        ("convert 3 feet", "36"),
    ],
)
def test_everyday_steps_give_the_answers_worked_out_by_hand(step: str, answer: str) -> None:
    assert everyday_steps.solve(step) == answer


STRANGE_STEPS = [
    "sing loudly",
    "85 / 7",
    "convert 3 moons",
    "day noday 3",
    "garden + 3",
    "reverse",
    "day monday",
]


@pytest.mark.parametrize("step", STRANGE_STEPS)
def test_everyday_refuses_what_is_no_step(step: str) -> None:
    with pytest.raises(ValueError):
        everyday_steps.solve(step)


def test_everyday_problem_states_its_steps_in_english_and_reads_back_as_its_plan() -> None:
    """The plan of the module's example, with a join that takes the threads in the order of the question."""
    threads = (
        everyday.Thread((everyday.Step("*", (3, 24)), everyday.Step("-", (12,)))),
        everyday.Thread((everyday.Step("max", ((34, 71, 18),)),)),
        everyday.Thread((everyday.Step("reverse", ("garden",)), everyday.Step("shift", (3,)))),
    )
    task = everyday.task(everyday.Problem(threads, "-", (1, 0)), random.Random(0))
    assert [subtask.text for subtask in task.reference_plan.subtasks] == [
        "3 * 24",
        "#1 - 12",
        "max 34 , 71 , 18",
        'reverse "garden"',
        'shift 3 "#4"',
        "#3 - #2",
    ]
    assert (task.reference_plan.answer, task.gold) == ("#5, #6", "qhgudj, 11")
    assert CODEC.format_plan(task.reference_plan, task.query) == (
        'n1 * n2 ; #1 - n3 ; max l1 ; reverse w1 ; shift n4 "#4" ; #3 - #2 | #5 , #6'
    )
    assert all(part in task.query for part in ("24", "34, 71 and 18", '"garden"'))


def test_everyday_problems_need_every_skill_and_no_skill_is_a_third_of_the_steps() -> None:
    plans = [task.reference_plan for task in everyday.tasks("train", 1000)]
    kinds = [everyday_steps.kind_of(subtask.text) for plan in plans for subtask in plan.subtasks]
    shares = {
        skill: sum(kinds.count(kind) for kind in own) / len(kinds)
        for skill, own in everyday_steps.SKILLS.items()
    }
    assert all(0.1 < share < 1 / 3 for share in shares.values()), shares
    assert {len(plan.subtasks) for plan in plans} == set(range(2, 11))
    assert 0.3 < sum(bool(s.depends_on) for plan in plans for s in plan.subtasks) / len(kinds) < 0.5


def test_everyday_operands_stay_as_large_as_workers_are_trained_for() -> None:
    for task in everyday.tasks("train", 300):
        answers: dict[int, str] = {}
        for subtask in task.reference_plan.subtasks:
            text = substitute(subtask.text, answers)
            answers[subtask.id] = everyday_steps.solve(text)
            numbers = [int(word) for word in [*text.split(), answers[subtask.id]] if word.isdigit()]
            is_large = everyday_steps.kind_of(text) in ("+", "-", "*", "/", "convert")
            assert max(numbers, default=0) <= (9999 if is_large else 99), text


def test_everyday_train_and_test_are_disjoint() -> None:
    words.assert_disjoint(everyday.tasks("train", 2000), everyday.tasks("test", 500))


def test_everyday_steps_that_are_held_out_are_a_tenth_of_those_that_are_no_small_table() -> None:
    rng = random.Random(0)
    steps = [everyday_steps.draw(kind, rng) for kind in ("+", "sort", "reverse") for _ in range(1000)]
    assert 0.07 < sum(map(everyday_steps.is_held_out, steps)) / len(steps) < 0.13
    assert not any(everyday_steps.is_held_out(everyday_steps.draw("convert", rng)) for _ in range(200))


def test_everyday_distinct_operands_change_no_word_and_no_structure() -> None:
    for problem in everyday.problems("train", 50):
        distinct = everyday.with_distinct_operands(problem)
        here, there = (
            CODEC.render_decompose(asked(everyday.query(p, random.Random(0))), 16)[0].content
            for p in (problem, distinct)
        )
        assert here == there


def test_every_plan_executed_exactly_gives_the_gold_answer() -> None:
    for task, plan in PLANS:
        assert solve_plan(plan, _solve) == task.gold, task.query


def test_every_plan_survives_the_compact_codec() -> None:
    for task, plan in PLANS:
        assert CODEC.parse_plan(CODEC.format_plan(plan, task.query), task.query) == plan, task.query


def test_tasks_depend_on_the_seed_alone() -> None:
    def queries(tasks: list[Task]) -> list[str]:
        return [task.query for task in tasks]

    assert queries(words.tasks("train", 50, seed=3)) == queries(words.tasks("train", 80, seed=3))[:50]
    assert queries(words.tasks("train", 50, seed=3)) != queries(words.tasks("train", 50, seed=4))
    assert scan.tasks("simple", seed=1) != scan.tasks("simple", seed=2)
    assert words.tasks("test", 1)[0].query.startswith(
        "Ned has 29 crates of 6 beads. Ida buys 2 baskets, each with 55 beads"
    )
