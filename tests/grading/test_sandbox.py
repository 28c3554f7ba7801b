"""Real programs run in the sandbox; P3 answers are graded in it. Needs bubblewrap: `pytest -m sandbox`."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import shutil
import socket
from pathlib import Path

import psutil
import pytest

from r2_serve.grading import seccomp
from r2_serve.grading.graders import Grader, GraderConfig
from r2_serve.grading.sandbox import Sandbox, SandboxConfig, SandboxLimits, SandboxUnavailable, run_python
from tests.support.hostile import FAMILIES, PUZZLE, SECRET, programs
from tests.support.waiting import until

pytestmark = [pytest.mark.sandbox, pytest.mark.smoke]

SOLVABLE = {"name": "Square:0", "sat": "def sat(x: int, n=49):\n    return x * x == n", "ans_type": "int"}


def sandboxed_pids() -> set[int]:
    """Ids of the processes in another pid namespace than ours, without those of other test processes."""
    own = own_namespace("pid")
    found = {int(path.name) for path in Path("/proc").glob("[0-9]*") if namespace_of(path) not in (own, None)}
    return found - pids_of_other_tests()


def pids_of_other_tests() -> set[int]:
    """Descendants of the other test processes of pytest-xdist; none if it is not in use."""
    parent = psutil.Process().parent()
    if parent is None or "PYTEST_XDIST_WORKER" not in os.environ:
        return set()
    others = [process for process in parent.children() if process.pid != os.getpid()]
    return {process.pid for other in others for process in other.children(recursive=True)}


def namespace_of(process: Path, kind: str = "pid") -> Path | None:
    try:
        return (process / "ns" / kind).readlink()
    except OSError:
        return None


def own_namespace(kind: str) -> Path | None:
    return namespace_of(Path("/proc/self"), kind)


async def new_sandboxed_pids(before: set[int]) -> set[int]:
    """Ids of the first sandboxed processes that appear. They are polled: the kernel has no event for it."""
    found: set[int] = set()

    def has_appeared() -> bool:
        found.update(sandboxed_pids() - before)
        return bool(found)

    await until(has_appeared)
    return found


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def survivors(pids: set[int], *, timeout_s: float) -> set[int]:
    """Those of `pids` that have not ended after `timeout_s` each."""
    return {pid for pid in pids if not has_ended(pid, timeout_s)}


def has_ended(pid: int, timeout_s: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


async def run(program: str, *, timeout_s: float = 10.0, **limits: int) -> tuple[str, str, str]:
    result = await run_python(program, timeout_s=timeout_s, limits=SandboxLimits(**limits))
    return result.status, result.stdout, result.stderr


async def test_program_prints_and_exits() -> None:
    result = await run_python("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)")
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("failed", 3, "out\n", "err\n")


async def test_stdin_reaches_the_program() -> None:
    result = await Sandbox().run("import sys\nprint(sys.stdin.read()[::-1])", stdin=b"abc")
    assert result.stdout == "cba\n"


async def test_integers_of_any_length_can_be_printed() -> None:
    status, output, _ = await run("print(len(str(7**20000)))")
    assert (status, output) == ("ok", "16902\n")


async def test_environment_is_empty_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_SECRET", SECRET)
    program = "import os\nprint(sorted(os.environ), os.path.exists('/proc'))"
    assert (await run(program))[1] == "['LC_CTYPE', 'LD_LIBRARY_PATH', 'PWD'] False\n"


async def test_no_process_of_the_chain_holds_the_parents_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_SECRET", SECRET)
    before = sandboxed_pids()
    running = asyncio.create_task(run_python("while True: pass", timeout_s=3))
    environments = [read_bytes(Path(f"/proc/{pid}/environ")) for pid in await new_sandboxed_pids(before)]
    await running
    assert environments
    assert not any(SECRET.encode() in environment for environment in environments)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return b""


async def test_only_the_interpreter_and_the_c_library_are_visible() -> None:
    _, output, _ = await run(
        "import os\nprint(*(sorted(os.listdir(path)) for path in ('/', '/dev', '/usr', '/tmp')))"
    )
    assert output == "['dev', 'lib', 'lib64', 'python', 'tmp', 'usr'] ['null'] ['lib', 'lib64'] []\n"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/shadow",
        "/etc/passwd",
        "/root",
        "/home",
        "/proc/1/environ",
        "/sys",
        str(Path(__file__).resolve()),
    ],
)
async def test_host_paths_do_not_exist(path: str) -> None:
    assert (await run(f"import os\nprint(os.path.lexists({path!r}))"))[1] == "False\n"


@pytest.mark.parametrize("path", ["/x", "/usr/lib/x", "/python/x", "/dev/x"])
async def test_nothing_but_tmp_can_be_written(path: str) -> None:
    status, _, errors = await run(f"open({path!r}, 'w')")
    assert status == "failed"
    assert "Read-only file system" in errors or "Permission denied" in errors


async def test_listening_server_of_the_host_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        status, _, errors = await run(
            f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        )
    assert status == "failed"
    assert "Operation not permitted" in errors


async def test_program_runs_as_nobody_and_gets_no_new_namespaces() -> None:
    program = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(os.getuid(), os.getgid(), os.getgroups(), libc.unshare(0x10000000), ctypes.get_errno(),"
        " libc.prctl(39, 0, 0, 0, 0))"
    )
    assert (await run(program))[1] == "65534 65534 [] -1 1 1\n"


async def test_processes_are_bounded() -> None:
    program = (
        "import os, time\nchildren = 0\ntry:\n    while True:\n"
        "        if os.fork() == 0:\n            time.sleep(60)\n"
        "        children += 1\nexcept BlockingIOError:\n    print(children)"
    )
    assert (await run(program, num_processes=8))[1] == "6\n"


async def test_memory_files_and_tmp_are_bounded() -> None:
    assert "MemoryError" in (await run("bytearray(1 << 30)", memory_bytes=1 << 28))[2]
    assert (
        "File too large" in (await run("open('/tmp/a', 'wb').write(bytes(2 << 20))", file_bytes=1 << 20))[2]
    )
    both = "for name in 'ab':\n    open('/tmp/' + name, 'wb').write(bytes(700 << 10))"
    assert "No space left" in (await run(both, file_bytes=1 << 20))[2]


async def test_output_is_cut_at_its_limit() -> None:
    status, output, _ = await run("print('x' * 5000)", output_bytes=1000)
    assert (status, output) == ("output_limit", "x" * 1000)


async def test_endless_program_is_killed_on_time_with_its_output_kept() -> None:
    result = await run_python("print('begun', flush=True)\nwhile True: pass", timeout_s=1)
    assert (result.status, result.stdout) == ("timeout", "begun\n")
    assert result.duration_s < 20


async def test_orphans_die_with_their_program() -> None:
    before = sandboxed_pids()
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0:\n        time.sleep(10**6)\n    os._exit(0)\nos.wait()"
    )
    assert (await run(program))[0] == "ok"
    assert survivors(sandboxed_pids() - before, timeout_s=10) == set()


async def test_every_namespace_is_the_programs_own() -> None:
    before = sandboxed_pids()
    running = asyncio.create_task(run_python("while True: pass", timeout_s=3))
    pid = max(await new_sandboxed_pids(before))
    shared = [
        kind
        for kind in ("pid", "net", "ipc", "uts", "mnt", "user")
        if namespace_of(Path(f"/proc/{pid}"), kind) == own_namespace(kind)
    ]
    await running
    assert shared == []


async def test_cancelling_a_run_kills_the_program() -> None:
    before = sandboxed_pids()
    running = asyncio.create_task(run_python("while True: pass", timeout_s=60))
    assert await new_sandboxed_pids(before)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert survivors(sandboxed_pids() - before, timeout_s=10) == set()


async def test_no_more_programs_run_at_once_than_configured() -> None:
    sandbox = Sandbox(SandboxConfig(max_concurrent=1))
    await sandbox.start()
    program = "import time\nprint(time.monotonic())\ntime.sleep(0.2)\nprint(time.monotonic())"
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(sandbox.run(program)) for _ in range(3)]
    spans = sorted([float(moment) for moment in task.result().stdout.split()] for task in runs)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


async def test_descriptors_of_the_host_process_are_not_inherited(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    descriptor = os.open(secret, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    program = (
        "import os\nfound = []\nfor fd in range(3, 64):\n"
        "    try:\n        found.append(os.pread(fd, 99, 0))\n    except OSError:\n        pass\nprint(found)"
    )
    try:
        assert SECRET not in (await run(program))[1]
    finally:
        os.close(descriptor)


async def test_without_bubblewrap_no_program_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in ("prlimit", "setpriv"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"bwrap.*apt-get install bubblewrap"):
        await run_python("print(1)")


async def test_allow_unsandboxed_keeps_limits_and_an_empty_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R2_SECRET", SECRET)
    program = (
        "import os, resource\nprint(os.environ.get('R2_SECRET'), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    result = await run_python(program, allow_unsandboxed=True)
    assert (result.status, result.stdout) == ("ok", "None (0, 0)\n")


def test_every_denied_call_has_a_number_on_both_architectures() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(seccomp.compile_filter(machine)) % 8 == 0
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.compile_filter("riscv64")


# -- puzzles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("def sol():\n    return 7", "correct"),
        (
            "Here it is:\n```python\ndef sol():\n    return -7\n```\n"
            "and a test:\n```python\nassert sat(sol())\n```",
            "correct",
        ),
        ("7", "correct"),
        ("14 // 2", "correct"),
        ("def sol():\n    return next(x for x in range(99) if sat(x))", "correct"),
        ("def sol():\n    return 8", "wrong"),
        ("def sol():\n    return 7.0", "wrong"),
        ("def sol():\n    return 1/0", "wrong"),
        ("def sol():\n    return [7]", "wrong"),
        ("def sol():\n    return object()", "unparsed"),
        ("I do not know.", "unparsed"),
        ("```python\ndef sol(:\n```", "wrong"),
        ("1. Like this:\n\n    ```python\n    def sol():\n        return 7\n    ```\n", "correct"),
        ("```python\r\ndef sol():\r\n    return 7\r\n```\r\n", "correct"),
        ("~~~python\ndef sol():\n    return 7\n~~~", "correct"),
        ("- ```py\n  def sol():\n      return 7\n  ```", "correct"),
        ("<think>8?</think>\n```\ndef sol():\n    return 7\n```", "correct"),
        ('{"answer": "def sol():\\n    return 7"}', "correct"),
        ("<answer>\ndef sol():\n    return 7\n</answer><|im_end|>", "correct"),
        ("The answer is `7`.", "correct"),
        ('"7"', "correct"),
        ("**7**", "correct"),
        ("\\boxed{7}", "correct"),
        ("x = 7", "unparsed"),
        ("", "unparsed"),
        ("def sol():\n    while True: pass", "timeout"),
    ],
)
async def test_puzzle_verdict_follows_from_the_answers_value(answer: str, status: str) -> None:
    async with Grader(GraderConfig(p3_timeout_s=2)) as grader:
        verdict = await grader.grade("p3", SOLVABLE, answer)
    assert (verdict.status, verdict.correct) == (status, status == "correct")


@pytest.mark.parametrize(
    ("sat", "ans_type", "value", "is_correct"),
    [
        ("def sat(x: List[int]):\n    return sum(x) == 3", "List[int]", "[1, 2]", True),
        ("def sat(x: List[int]):\n    return sum(x) == 3", "List[int]", "[True, 2]", False),
        ("def sat(x: List[int]):\n    return sum(x) == 3", "List[int]", "(1, 2)", False),
        ("def sat(x: List[List[str]]):\n    return x[0][0] == 'a'", "List[List[str]]", "[['a'], []]", True),
        ("def sat(x: float):\n    return x > 1", "float", "1e999", True),
        ("def sat(x: float):\n    return x > 10**300", "float", "float('inf')", True),
        ("def sat(x: float):\n    return x != x", "float", "float('nan')", True),
        (
            "def sat(x: List[float]):\n    return x[0] == -x[1]",
            "List[float]",
            "[float('-inf'), float('inf')]",
            True,
        ),
        ("def sat(x: int):\n    return x > 1", "int", "float('inf')", False),
        ("def sat(x: int):\n    return x and True", "int", "0", False),
        ("def sat(x: int):\n    print('correct')\n    return 1", "int", "0", False),
        (
            "def sat(s: str):\n    return eval(s) == s",
            "str",
            """ "(lambda x: x%x)('(lambda x: x%%x)(%r)')" """,
            True,
        ),
        ("def sat(s: str):\n    return eval(s) == 24", "str", "'(1 + 3) * 6'", True),
        ("def sat(s: str):\n    return eval(s) == 24", "str", "'().__class__ and 24'", False),
    ],
)
async def test_types_are_exact_and_only_true_counts(
    sat: str, ans_type: str, value: str, is_correct: bool
) -> None:
    async with Grader() as grader:
        verdict = await grader.grade(
            "p3", {"name": "t:0", "sat": sat, "ans_type": ans_type}, f"def sol():\n    return {value.strip()}"
        )
    assert verdict.correct is is_correct


@pytest.mark.slow
async def test_hundreds_of_hostile_programs_are_harmless_and_none_is_correct(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten programs of each family are at work at once, which differ in a number alone."""
    monkeypatch.setenv("R2_SECRET", SECRET)
    before, descriptors = sandboxed_pids(), num_descriptors()
    config = GraderConfig(p3_timeout_s=float(os.environ.get("R2_HOSTILE_TIMEOUT_S", "2")))
    async with Grader(config) as grader:
        await grader.start("p3")
        async with asyncio.TaskGroup() as group:
            graded = [
                (family, group.create_task(grader.grade("p3", row, answer)))
                for family, row, answer in programs(10 * len(FAMILIES))
            ]
        verdicts = [(family, task.result()) for family, task in graded]
        after = await grader.grade("p3", SOLVABLE, "def sol():\n    return 7")
    assert {family for family, _ in verdicts} == set(FAMILIES)
    assert [(family, verdict) for family, verdict in verdicts if verdict.correct is not False] == []
    assert not any(SECRET in verdict.detail for _, verdict in verdicts)
    assert after.correct is True
    assert survivors(sandboxed_pids() - before, timeout_s=10) == set()
    assert num_descriptors() <= descriptors + 5


async def test_hostile_program_finds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_SECRET", SECRET)
    answer = next(answer for family, _, answer in programs(100) if family == "secrets")
    result = await run_python(f"{answer}\nprint(sol())")
    assert result.status == "ok"
    assert SECRET not in result.stdout
    assert "root:" not in result.stdout


def test_hostile_puzzle_has_no_solution() -> None:
    root = int((1234321 * 7) ** 0.5)
    assert not any(x * x == 1234321 * 7 for x in range(root - 2, root + 3))
    assert "1234321 * 7" in PUZZLE["sat"]
