"""The strict reader of Serve configs, as far as it needs no Ray, and the shipped files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r2_serve import serve_config
from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT
from r2_serve.serve_config.applications import ServeFile
from r2_serve.serve_config.document import Document, Problem, parse_yaml, path_text, read_yaml
from tests import DATA, ROOT
from tests.support.small_adapters import adapter as adapter_on_disk

REFERENCE, EMBEDDED, CLUSTER = (
    ROOT / "serve_config.yaml",
    ROOT / "r2_serve/embedded/serve_config.yaml",
    ROOT / "cluster.yaml",
)
MANIFEST = ROOT / "r2_serve/embedded/manifest.json"
SMALL = (DATA / "small_serve_config.yaml").read_text()
ENVIRON = {"SOME_KEY": "x", "OPENAI_API_KEY": "x", "DEEPSEEK_API_KEY": "x", "DASHSCOPE_API_KEY": "x"}
ALTERNATIVES = ["llama", "adapters", "training"]


def edited(old: str, new: str) -> str:
    """The small config with one change."""
    assert SMALL.count(old) == 1, f"{old!r} must stand in the small config once"
    return SMALL.replace(old, new)


def uncommented(text: str, *names: str) -> str:
    """`text` with the blocks between `# >>> NAME` and `# <<< NAME` switched on."""
    for name in names:
        blocks = re.compile(
            rf"^# >>> {re.escape(name)}\n(.*?)^# <<< {re.escape(name)}\n", re.MULTILINE | re.DOTALL
        )
        assert blocks.search(text), name
        text = blocks.sub(lambda block: re.sub(r"^# ", "", block.group(1), flags=re.MULTILINE), text)
    return text


def parsed(text: str) -> Document:
    document = parse_yaml(text)
    assert isinstance(document, Document), document
    return document


def read(text: str, environ: dict[str, str] = ENVIRON) -> tuple[ServeFile, list[Problem]]:
    return serve_config.own_problems(parsed(text), environ)


def only_problem(text: str, environ: dict[str, str] = ENVIRON) -> Problem:
    (problem,) = read(text, environ)[1]
    return problem


def errors(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def line_of(text: str, part: str) -> int:
    (line,) = (number for number, line in enumerate(text.splitlines(), start=1) if part in line)
    return line


def test_small_config_has_no_problem() -> None:
    file, problems = read(SMALL)
    assert problems == []
    assert file.router is not None and [model.name for model in file.router.models] == ["small", "large"]
    assert file.routing is not None and file.routing.limits.deadline_s == 60
    assert file.model_configs["m-small"].engine.kind == "scripted"


MODELS, ROUTER = "applications[1].args.models", "applications[1].deployments[0]"


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        (
            "max_running:",
            "max_runing:",
            "applications[1].args.server.max_runing",
            "did you mean 'max_running'?",
        ),
        ("    server:", "    sever:", "applications[1].args.sever", "did you mean 'server'?"),
        ("fallbacks:", "fallback:", f"{MODELS}[0].fallback", "did you mean 'fallbacks'?"),
        ("api_key_env:", "api_key:", f"{MODELS}[1].engine.api_key", "did you mean 'api_key_env'?"),
        ("delay_s:", "dely_s:", "applications[0].args.engine.dely_s", "did you mean 'delay_s'?"),
        ("deadline_s:", "deadlines:", f"{ROUTER}.user_config.limits.deadlines", "did you mean 'deadline_s'?"),
        (
            "          pool:",
            "          pools:",
            f"{ROUTER}.user_config.virtual_models.r2.pools",
            "did you mean 'pool'?",
        ),
        (
            "allocator: {model:",
            "allocator: {modle:",
            f"{ROUTER}.user_config.virtual_models.r2.allocator.modle",
            "did you mean 'model'?",
        ),
        ("kind: openai", "kind: opnai", f"{MODELS}[1].engine", "unknown kind; did you mean 'openai'?"),
        (
            "kind: scripted",
            "kind: script",
            "applications[0].args.engine",
            "unknown kind; did you mean 'scripted'?",
        ),
        (
            "usd_per_mtok_in: 0.1",
            "usd_per_mtok_in: -1",
            f"{MODELS}[0].usd_per_mtok_in",
            "greater than or equal to 0",
        ),
        ("max_running: 8", "max_running: many", "applications[1].args.server.max_running", "a whole number"),
        ("deadline_s: 60", "deadline_s: 0", f"{ROUTER}.user_config.limits.deadline_s", "greater than 0"),
        ("SOME_KEY", "some-key", f"{MODELS}[1].engine.api_key_env", "pattern"),
        ("fallbacks: [large]", "fallbacks: [huge]", "applications[1].args", "must be other models"),
    ],
)
def test_problem_in_a_section_of_r2_names_key_line_and_suggestion(
    old: str, new: str, where: str, message: str
) -> None:
    text = edited(old, new)
    (problem,) = [problem for problem in read(text)[1] if problem.message != "missing"]
    assert (problem.severity, problem.where) == ("error", where)
    assert message in problem.message
    expected = new.strip() if not where.endswith("args") else "args:"
    assert expected in text.splitlines()[problem.line - 1]


def test_missing_keys_are_named_where_they_should_stand() -> None:
    problem = only_problem(edited("      usd_per_mtok_out: 2\n", ""))
    assert (problem.where, problem.message) == (f"{MODELS}[1].usd_per_mtok_out", "missing")
    assert problem.line == line_of(SMALL, "- name: large")


def test_unknown_key_hides_no_other_problem() -> None:
    text = (
        edited("fallbacks:", "fallback:")
        .replace("app: m-small", "app: m-smal")
        .replace("deadline_s: 60", "deadline_s: 200\n        extra: 1")
    )
    wheres = {problem.where for problem in errors(read(text)[1])}
    assert wheres == {
        f"{MODELS}[0].fallback",
        f"{MODELS}[0].engine.app",
        f"{ROUTER}.user_config.limits.extra",
    }
    assert sum("scale-down" in problem.message for problem in read(text)[1]) == 4


def test_wrong_item_is_not_echoed_by_its_list() -> None:
    assert only_problem(edited("kind: openai", "kind: opnai")).where == f"{MODELS}[1].engine"
    start, end = SMALL.index("    models:"), SMALL.index("  deployments:\n  - name: Router")
    assert "at least 1 item" in only_problem(f"{SMALL[:start]}    models: []\n{SMALL[end:]}").message


@pytest.mark.parametrize(
    ("old", "new", "severity", "where", "message"),
    [
        ("app: m-small", "app: m-smal", "error", f"{MODELS}[0].engine.app", "did you mean 'm-small'?"),
        (
            "r2_serve.app:build\n",
            "r2_serve.app:biuld\n",
            "error",
            "applications[1].import_path",
            "did you mean 'r2_serve.app:build'?",
        ),
        ("- name: Router", "- name: Ruoter", "error", f"{ROUTER}.name", "did you mean 'Router'?"),
        (
            "- name: Model",
            "- name: Modle",
            "error",
            "applications[0].deployments[0].name",
            "did you mean 'Model'?",
        ),
        ("    user_config:", "    other: 1\n    ignored:", "error", ROUTER, "no `user_config`"),
        (
            "          - small",
            "          - smal",
            "error",
            f"{ROUTER}.user_config.virtual_models.r2.pool[0]",
            "did you mean 'small'?",
        ),
        (
            "decomposer: {model: large}",
            "decomposer: {model: larg}",
            "error",
            ".decomposer.model",
            "did you mean 'large'?",
        ),
        (
            "decomposer: {model: large}",
            "decomposer: {model: small, adapter: a}",
            "error",
            ".decomposer.adapter",
            "loads no adapter 'a'",
        ),
        (
            "          pool:",
            "          policy: 'all:larg'\n          pool:",
            "error",
            "r2.policy",
            "did you mean 'large'?",
        ),
        (
            "        r2:",
            "        large:",
            "error",
            f"{ROUTER}.user_config",
            "both a virtual model and a pool model",
        ),
        (
            "- name: r2",
            "- name: m-small",
            "error",
            "applications[1].name",
            "two applications are named 'm-small'",
        ),
        (
            "route_prefix: null",
            "route_prefix: /x",
            "warning",
            "applications[0].route_prefix",
            "say `route_prefix: null`",
        ),
        (
            "route_prefix: /\n",
            "route_prefix: r2\n",
            "error",
            "applications[1].route_prefix",
            "must start with '/'",
        ),
        (
            "max_queued_requests: 64",
            "max_queued_requests: 15",
            "warning",
            ".max_queued_requests",
            "below limits.max_parallel (16)",
        ),
        (
            "deadline_s: 60",
            "deadline_s: 121",
            "warning",
            "graceful_shutdown_timeout_s",
            "killed at scale-down",
        ),
        (
            "port: 8000",
            "request_timeout_s: 30",
            "warning",
            "http_options.request_timeout_s",
            "below limits.deadline_s (60)",
        ),
        (
            "{host: 127.0.0.1, port: 8000}",
            "{host: 0.0.0.0}",
            "error",
            "http_options.host",
            "server.api_keys_env",
        ),
        (
            "http_options: {host: 127.0.0.1, port: 8000}",
            "proxy_location: HeadOnly",
            "error",
            "http_options.host",
            "0.0.0.0",
        ),
        (
            "kind: scripted, delay_s: 0.1",
            "kind: vllm, model: a/b",
            "warning",
            "applications[0].deployments[0]",
            "vLLM without a GPU",
        ),
        (
            "scripted, delay_s: 0.1",
            "transformers, path: 'embedded:x'",
            "warning",
            "[0].args.engine.path",
            "no embedded model 'x'",
        ),
        (
            "kind: served, app: m-small",
            "kind: openai, model: x",
            "warning",
            "applications[0]",
            "no model served by 'm-small'",
        ),
        ("model: gpt-4o", "model: sk-abcdefghijklmnop", "error", "", "looks like a secret"),
        ("http_options", "# sk-proj-abcdefghijklmnop\nhttp_options", "error", "", "looks like a secret"),
    ],
)
def test_sections_that_do_not_fit_each_other_are_reported(
    old: str, new: str, severity: str, where: str, message: str
) -> None:
    found = [problem for problem in read(edited(old, new))[1] if message in problem.message]
    assert found, read(edited(old, new))[1]
    assert all(problem.severity == severity for problem in found)
    assert found[0].where.endswith(where)


def test_vllm_with_a_gpu_is_no_problem() -> None:
    text = edited("kind: scripted, delay_s: 0.1", "kind: vllm, model: a/b")
    assert read(text.replace("num_cpus: 1", "num_gpus: 1"))[1] == []


def test_taken_route_names_its_application() -> None:
    problem = only_problem(
        edited("  route_prefix: null\n", "")
        .replace("applications:\n", "applications:\n- {name: x, import_path: 'y:z'}\n", 1)
        .replace("route_prefix: /\n", "route_prefix: /r2\n")
    )
    assert problem.severity == "error" and "'/' is taken by 'x'" in problem.message


def test_unset_key_variable_is_a_warning_and_a_set_one_is_never_printed() -> None:
    problem = only_problem(SMALL, environ={})
    assert (problem.severity, problem.where) == ("warning", f"{MODELS}[1].engine.api_key_env")
    literal = read(edited("SOME_KEY", "sk-abcdefghijklmnop"))[1]
    assert errors(literal) and "abcdefghijklmnop" not in " ".join(map(str, literal))


def test_variable_of_many_models_is_asked_for_once() -> None:
    problems = read(REFERENCE.read_text(), environ={})[1]
    assert [problem.message.split()[0] for problem in problems] == [
        "DASHSCOPE_API_KEY",
        "DEEPSEEK_API_KEY",
        "OPENAI_API_KEY",
    ]


def test_public_address_with_client_keys_is_allowed() -> None:
    text = edited("{host: 127.0.0.1, port: 8000}", "{host: 0.0.0.0}").replace(
        "max_running: 8", "api_keys_env: SOME_KEY"
    )
    assert read(text)[1] == []


def with_keys(
    tmp_path: Path, text: str | None, more: str = "", router: str = "name: Router"
) -> list[Problem]:
    """What is wrong where the server has a keys file of this text, or none."""
    path = tmp_path / "keys.yaml"
    if text is not None:
        path.write_text(text)
    config = edited("max_running: 8", f"keys_file: {path}{more}").replace("host: 127.0.0.1", "host: 0.0.0.0")
    return read(config.replace("name: Router", router))[1]


def test_keys_file_on_this_machine_is_checked(tmp_path: Path) -> None:
    entry, sha256 = "- {name: alice, sha256: '%s', models: [%s]}", "0" * 64
    (missing,) = with_keys(tmp_path, None)
    assert missing.severity == "warning" and "each node" in missing.message
    assert with_keys(tmp_path, entry % (sha256, "r2, small")) == []
    (misspelt,) = with_keys(tmp_path, entry % (sha256, "smal"))
    assert misspelt.severity == "error" and "did you mean 'small'?" in misspelt.message
    (in_clear,) = with_keys(tmp_path, entry % ("sk-r2-in-clear-in-clear", "r2"))
    assert (
        in_clear.severity == "error"
        and "0.sha256" in in_clear.message
        and "in-clear" not in in_clear.message.partition("0.sha256")[2]
    )


@pytest.mark.parametrize(
    ("replicas", "has_book", "parts"),
    [
        (None, True, []),
        ("num_replicas: 1", True, []),
        (None, False, ["spend_file", "restart"]),
        ("num_replicas: 3", False, ["spend_file", "3 times its budget", "num_replicas: 1"]),
        ("num_replicas: auto", False, ["spend_file", "100 times its budget"]),
        ("autoscaling_config: {min_replicas: 1, max_replicas: 4}", False, ["4 times its budget"]),
        (
            "autoscaling_config: {min_replicas: 1, max_replicas: 4}",
            True,
            ["up to 4", "on one machine", "divide the budgets"],
        ),
    ],
)
def test_budget_that_replicas_or_restarts_would_exceed_is_a_warning(
    replicas: str | None, has_book: bool, parts: list[str], tmp_path: Path
) -> None:
    entry = f"- {{name: alice, sha256: '{'0' * 64}', budget_usd: 1}}"
    more = f"\n      spend_file: {tmp_path}/spend.sqlite" if has_book else ""
    router = f"name: Router\n    {replicas}" if replicas else "name: Router"
    problems = with_keys(tmp_path, entry, more, router)
    assert [problem.severity for problem in problems] == ["warning"] * bool(parts)
    assert all(part in problem.message for problem in problems for part in parts)


def test_replicas_without_budgets_are_no_warning(tmp_path: Path) -> None:
    assert (
        with_keys(
            tmp_path, f"- {{name: alice, sha256: '{'0' * 64}'}}", router="name: Router\n    num_replicas: 3"
        )
        == []
    )


def with_adapters(**directories: Path) -> str:
    listed = ", ".join(f"{name}: {directory}" for name, directory in directories.items())
    return edited("num_cpus: 1", f"num_cpus: 1\n    user_config: {{adapters: {{{listed}}}}}")


def test_adapter_loaded_at_the_start_or_by_user_config_is_known(tmp_path: Path) -> None:
    text = edited("kind: scripted, delay_s: 0.1", f"kind: vllm, model: a/b, adapters: {{one: {tmp_path}}}")
    text = text.replace("num_cpus: 1", f"num_gpus: 1\n    user_config: {{adapters: {{two: {tmp_path}}}}}")
    for adapter in ("one", "two"):
        assert (
            read(
                text.replace(
                    "decomposer: {model: large}", f"decomposer: {{model: small, adapter: {adapter}}}"
                )
            )[1]
            == []
        )
    found = only_problem(
        text.replace("decomposer: {model: large}", "decomposer: {model: small, adapter: tow}")
    )
    assert "did you mean 'two'?" in found.message


def test_missing_adapter_directory_is_a_warning(tmp_path: Path) -> None:
    found = only_problem(with_adapters(gone=tmp_path / "gone"))
    assert (found.severity, found.where) == (
        "warning",
        "applications[0].deployments[0].user_config.adapters.gone",
    )
    assert str(tmp_path / "gone") in found.message and "every node" in found.message


@pytest.mark.parametrize(
    ("changes", "called", "message"),
    [
        ({"codec_version": 99}, "d1", "trained with version 99 of codec 'instruct'"),
        ({"codec": "compact"}, "d1", "'small' speaks 'instruct'"),
        ({"base": "large"}, "d1", "for base 'large', not 'small'"),
        ({}, "other", "holds adapter 'd1', not 'other'"),
    ],
)
def test_adapter_whose_manifest_does_not_fit_is_an_error(
    changes: dict[str, str], called: str, message: str, tmp_path: Path
) -> None:
    directory = adapter_on_disk(tmp_path, "d1", **{"base": "small", **changes})
    assert read(with_adapters(d1=adapter_on_disk(tmp_path / "fits", "d1", base="small")))[1] == []
    found = only_problem(with_adapters(**{called: directory}))
    assert found.severity == "error" and message in found.message


def test_adapter_whose_weights_were_changed_is_an_error(tmp_path: Path) -> None:
    directory = adapter_on_disk(tmp_path, "d1", base="small")
    (directory / "adapter_model.safetensors").write_bytes(b"other")
    assert "is not what was written" in only_problem(with_adapters(d1=directory)).message


# -- the YAML itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("twice", ["http_options", "name", "max_ongoing_requests", "deadline_s"])
def test_repeated_key_is_an_error_with_both_lines(twice: str) -> None:
    first = next(
        line
        for line in SMALL.splitlines()
        if line.strip().startswith(f"{twice}:") or line.strip().startswith(f"- {twice}:")
    )
    indent = " " * (len(first) - len(first.lstrip("- ")))
    text = SMALL.replace(first, f"{first}\n{indent}{twice}: null", 1)
    found = [problem for problem in read(text)[1] if "stands twice" in problem.message]
    number = SMALL.splitlines().index(first) + 1
    assert [(problem.severity, problem.line) for problem in found] == [("error", number + 1)]
    assert f"first on line {number}" in found[0].message and found[0].where.endswith(twice)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [", 2, "not valid YAML"),
        ("a:\n\tb: 1", 2, "indent with spaces, not with tabs"),
        (
            "a: 1\nb: !!python/object/apply:os.system ['true']",
            2,
            "not valid YAML: could not determine a constructor",
        ),
        ("a: &x [*x]", 1, "contains itself"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML: but found another document"),
        ("- a", 1, "must be a mapping"),
        ("", 1, "must be a mapping"),
    ],
)
def test_text_that_is_no_config_is_one_error_with_a_line(text: str, line: int, message: str) -> None:
    problem = parse_yaml(text)
    assert isinstance(problem, Problem)
    assert (problem.severity, problem.line) == ("error", line) and message in problem.message


@pytest.mark.parametrize("key", ["1", "on", "2026-01-01", "~"])
def test_key_that_is_not_text_is_an_error(key: str) -> None:
    found = [
        problem
        for problem in read(edited("        r2:", f"        {key}:"))[1]
        if problem.where.endswith(f".{key}")
    ]
    assert [(problem.severity, problem.message) for problem in found] == [
        ("error", f"the key is not text to YAML: write {key!r}")
    ]


def test_merged_keys_are_read_as_serve_reads_them() -> None:
    text = "a: &x {one: 1, two: 2}\nb: {<<: *x, two: 3}"
    document = parse_yaml(text)
    assert isinstance(document, Document) and document.raw == yaml.safe_load(text) and document.problems == ()


def test_line_of_a_missing_path_is_that_of_its_deepest_part() -> None:
    document = parse_yaml("a:\n- b:\n    c: 1\n")
    assert isinstance(document, Document)
    assert [
        document.line(path) for path in ((), ("a", 0, "b", "c"), ("a", 0, "b", "x"), ("a", 7), ("z",))
    ] == [1, 3, 2, 1, 1]
    assert path_text(("a", 0, "b", "c")) == "a[0].b.c"


def test_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / "binary.yaml")


def test_without_ray_serve_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray", "ray.serve", "ray.serve.schema"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'ray\[default,serve\]'"):
        serve_config.check(EMBEDDED)


def test_importing_the_module_loads_neither_ray_nor_torch() -> None:
    heavy = ("ray", "torch", "transformers", "vllm", "openai")
    code = f"import sys, r2_serve.serve_config; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(("usd_per_hour", "usd"), [(None, "0.0694"), (2, "0.139")])
def test_local_model_with_a_rate_costs_gpu_time(usd_per_hour: int | None, usd: str) -> None:
    text = edited("      usd_per_mtok_in: 0.1\n      usd_per_mtok_out: 0.2\n", "      tokens_per_s: 4000\n")
    if usd_per_hour is not None:
        text = text.replace("    models:\n", f"    gpu_usd_per_hour: {usd_per_hour}\n    models:\n")
    file, problems = read(text)
    assert problems == [] and file.router is not None
    card = file.router.model("small")
    assert (str(card.usd_per_mtok_out), card.usd_per_mtok_in) == (usd, card.usd_per_mtok_out / 10)


def test_model_without_an_engine_is_served_by_the_application_of_its_name() -> None:
    line = "      engine: {kind: served, app: m-small}\n"
    file, problems = read(edited(line, ""))
    assert problems == [] and file.router is not None
    assert file.router.model("small").engine == read(SMALL)[0].router.model("small").engine  # type: ignore[union-attr]
    (problem,) = errors(read(edited(line, "").replace("- name: m-small", "- name: m-other"))[1])
    assert "no application 'm-small' serves it" in problem.message and "provider" in problem.message


def test_fixed_number_of_replicas_beside_max_replicas_is_an_error() -> None:
    text = edited("  args:\n    engine:", "  args:\n    max_replicas: 2\n    engine:")
    assert errors(read(text)[1]) == []
    problem = only_problem(text.replace("  - name: Model\n", "  - name: Model\n    num_replicas: 3\n"))
    assert problem.where.endswith("num_replicas") and "max_replicas 2" in problem.message


def test_vllm_asks_for_the_gpus_that_it_spreads_a_model_over() -> None:
    text = edited(
        "kind: scripted, delay_s: 0.1", "kind: vllm, model: a/b, engine_kwargs: {tensor_parallel_size: 2}"
    )
    assert errors(read(re.sub(r"    ray_actor_options:.*\n", "", text))[1]) == []
    assert len(errors(read(text.replace("num_cpus: 1", "num_gpus: 1"))[1])) == 1


# -- the shipped files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alternatives", [[], *([name] for name in ALTERNATIVES), ALTERNATIVES], ids="+".join)
def test_reference_config_has_no_error_with_any_alternative(alternatives: list[str]) -> None:
    file, problems = read(uncommented(REFERENCE.read_text(), *alternatives))
    assert [
        str(problem) for problem in problems if "no directory /mnt/r2/adapters/" not in problem.message
    ] == []
    assert file.router is not None and file.routing is not None
    models = {model.name for model in file.router.models}
    pool = file.routing.virtual_models["r2"].pool
    for name in ("llama-3.2-3b", "llama-3.1-8b"):
        places = {name in models, name in pool, f"m-{name}" in file.model_configs}
        assert places == {"llama" in alternatives}
    assert (file.routing.virtual_models["r2"].decomposer.adapter is not None) == ("adapters" in alternatives)


def test_every_marked_block_of_the_reference_is_a_tested_alternative() -> None:
    assert set(re.findall(r"^# >>> (\S+)$", REFERENCE.read_text(), re.MULTILINE)) == set(ALTERNATIVES)


def test_reference_pool_has_nine_models() -> None:
    file, _ = read(REFERENCE.read_text())
    assert file.router is not None and file.routing is not None
    kinds = {model.name: model.engine.kind for model in file.router.models}
    pool = file.routing.virtual_models["r2"].pool
    assert [name for name in pool if kinds[name] == "served"] == [
        "qwen2.5-0.5b",
        "qwen2.5-1.5b",
        "qwen2.5-3b",
    ]
    hosted = {"qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-72b", "deepseek-v3", "gpt-4o"}
    assert {name for name in pool if kinds[name] == "openai"} == hosted
    groups = [model.group for model in file.router.models if model.name in pool]
    assert {group: groups.count(group) for group in groups} == {"slm": 3, "mlm": 3, "llm": 3}


def test_local_prices_of_the_reference_are_gpu_time() -> None:
    """USD per hour / 3600 / tokens per second * 1e6, prompts at a tenth."""
    file, _ = read(uncommented(REFERENCE.read_text(), "llama"))
    assert file.router is not None
    rates = {
        "qwen2.5-0.5b": 8000,
        "qwen2.5-1.5b": 4000,
        "qwen2.5-3b": 2200,
        "router-base": 900,
        "llama-3.1-8b": 850,
    }
    for name, tokens_per_second in rates.items():
        usd = 1.00 / 3600 / tokens_per_second * 1e6
        model = file.router.model(name)
        assert (float(model.usd_per_mtok_out), float(model.usd_per_mtok_in)) == pytest.approx(
            (usd, usd / 10), rel=0.02
        )


def test_local_models_ask_for_gpus_that_no_training_node_has() -> None:
    apps = yaml.safe_load(uncommented(REFERENCE.read_text(), "training"))["applications"]
    asked = [app["deployments"][0]["ray_actor_options"] for app in apps if app["name"] != "r2"]
    assert asked == [{"num_gpus": 1, "resources": {"serve_gpu": 1}}] * 4
    nodes = yaml.safe_load(uncommented(CLUSTER.read_text(), "training"))["available_node_types"]
    has = {
        name: {kind for kind in node["resources"] if kind.endswith("_gpu")} for name, node in nodes.items()
    }
    assert has == {"head": set(), "cpu": set(), "gpu": {"serve_gpu"}, "train": {"train_gpu"}}
    assert nodes["train"]["resources"]["GPU"] == nodes["train"]["resources"]["train_gpu"]


def test_model_can_be_removed_from_the_reference() -> None:
    raw = yaml.safe_load(REFERENCE.read_text())
    raw["applications"] = [app for app in raw["applications"] if app["name"] != "m-qwen2.5-3b"]
    router = raw["applications"][-1]
    router["args"]["models"] = [model for model in router["args"]["models"] if model["name"] != "qwen2.5-3b"]
    virtual = router["deployments"][0]["user_config"]["virtual_models"]["r2"]
    assert "did you mean" in only_problem(yaml.safe_dump(raw)).message
    virtual["pool"].remove("qwen2.5-3b")
    assert read(yaml.safe_dump(raw))[1] == []


def test_embedded_config_has_no_error() -> None:
    file, problems = read(EMBEDDED.read_text(), environ={})
    assert errors(problems) == []
    assert file.routing is not None
    assert {name: len(virtual.pool) for name, virtual in file.routing.virtual_models.items()} == {
        "r2": 4,
        "r2-everyday": 9,
        "r2-scan": 4,
    }


def test_embedded_prices_rise_along_each_pool_and_fit_two_cores() -> None:
    file, _ = read(EMBEDDED.read_text(), environ={})
    assert file.router is not None and file.routing is not None
    for virtual in file.routing.virtual_models.values():
        prices = [file.router.model(name).usd_per_mtok_out for name in virtual.pool]
        assert prices == sorted(prices)
    cpus = [
        entry.options["ray_actor_options"]["num_cpus"]
        for app in file.applications
        for entry in app.deployments
    ]
    assert len(cpus) == 15 and sum(cpus) <= 2


def test_embedded_prices_are_the_parameters_in_the_manifest() -> None:
    if not MANIFEST.exists():
        pytest.skip("the embedded checkpoints are not there yet")
    models = json.loads(MANIFEST.read_text())["models"]
    params = {name: model["params"] for name, model in models.items() if model["role"] != "baseline"}
    file, _ = read(EMBEDDED.read_text(), environ={})
    assert file.router is not None
    prices = {
        model.name: (float(model.usd_per_mtok_in), float(model.usd_per_mtok_out))
        for model in file.router.models
    }
    assert {name: prices[name] for name in params} == {
        name: (count / 1e6, count / 1e6) for name, count in params.items()
    }


@pytest.mark.parametrize("path", [CLUSTER, ROOT / "Dockerfile"], ids=["cluster.yaml", "Dockerfile"])
def test_clusters_install_the_pinned_versions(path: Path) -> None:
    pins = set(
        re.findall(
            r"\"(ray\[default,serve\]|torch|transformers|vllm)==([0-9.]+)",
            (ROOT / "pyproject.toml").read_text(),
        )
    )
    installs = set(re.findall(r"'([\w\[\],]+)==([0-9.]+)'", path.read_text()))
    assert {name for name, _ in installs} == {"ray[default,serve]", "torch", "transformers", "vllm"}
    assert installs == pins


def test_cluster_is_closed_to_the_internet_and_its_nodes_share_one_environment() -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    (head,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in cluster["worker_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head and "RAY_AUTH_MODE=token" in head
    assert head.split("~/r2-env/bin/ray start")[0] == worker.split("~/r2-env/bin/ray start")[0]
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "~/.ray/auth_token" in cluster["file_mounts"]


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, ["--num-cpus=0", "--num-gpus=0"]),
        (
            {"R2_HEAD": "--num-cpus=8", "R2_RESOURCES": '{"router": 100}'},
            ["--num-cpus=8", '--resources={"router": 100}'],
        ),
    ],
    ids=["cloud", "on-premises"],
)
def test_head_works_where_the_environment_says_so(variables: dict[str, str], given: list[str]) -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    (head,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    words = f"printf '%s\\n' {head[head.index('ray start') :]}"
    done = subprocess.run(["bash", "-c", words], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[5:-2] == given


def test_cluster_exports_the_shared_environment_on_head_and_workers() -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in cluster[commands] if "ray start" in command]
        exported = dict(pair.split("=") for pair in start.split("export ")[1].split(";")[0].split())
        assert exported == CLUSTER_ENVIRONMENT
