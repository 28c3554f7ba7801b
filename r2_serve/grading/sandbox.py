"""Runs untrusted Python, such as a model's answer to a programming puzzle.

One run is one chain of processes, each of which adds a barrier:

1. `setpriv` changes from root to the user "nobody", because the kernel does not count the processes of real
   root (RLIMIT_NPROC).
2. `prlimit` bounds CPU seconds, address space, processes, file size, open files and core dumps.
3. `bwrap` (bubblewrap) makes new user, pid, network, IPC, UTS and cgroup namespaces, forbids further ones,
   drops every capability, mounts the C library and the interpreter read-only and a small tmpfs at /tmp, and
   loads the system call filter of `seccomp`. There is no /proc, no home, no host file, and nothing in /dev
   except /dev/null.
4. `python3 -I -S` without limit on the digits of an integer reads the program from a file descriptor.

The chain starts with an empty environment: if bwrap cleared it later, /proc/1/environ would still show it.
The parent bounds the output and the wall clock, and kills the whole process group at the end of every run.
Then the kernel kills what is left in the pid namespace.

The sandbox does not protect against a bug in the kernel, and a program can slow others within its limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from r2_serve.config import Config
from r2_serve.errors import R2Error
from r2_serve.grading import interpreter, seccomp
from r2_serve.types import Record

logger = logging.getLogger(__name__)

NOBODY = 65534
INSTALL_HINT = (
    "install bubblewrap (apt-get install bubblewrap, dnf install bubblewrap) and allow unprivileged user"
    " namespaces"
)
_TMP = "/tmp"  # of the sandbox, not of the host  # noqa: S108  # nosec B108
_START_TIMEOUT_S = 60.0
_MAX_HOST_PROCESSES = 4096
"""RLIMIT_NPROC outside the namespace, which all sandboxes of one user share. `num_processes` is lower and
takes effect first."""


class SandboxUnavailable(R2Error):
    """Programs cannot be isolated on this machine, so none is run."""

    code = "sandbox_unavailable"


class SandboxLimits(Config):
    """Bounds of one run."""

    memory_bytes: int = Field(default=1 << 30, ge=1 << 26)
    """Address space of each process."""
    num_processes: int = Field(default=8, ge=3)
    """Most processes and threads at once. Two of them are the interpreter and bwrap's init."""
    file_bytes: int = Field(default=16 << 20, ge=1 << 16)
    """Longest file, and the size of /tmp."""
    num_open_files: int = Field(default=64, ge=16)
    output_bytes: int = Field(default=1 << 20, ge=1)
    """Most bytes that are kept of stdout, and of stderr. Writing more than `file_bytes` fails."""


class SandboxConfig(Config):
    """How programs are run."""

    limits: SandboxLimits = SandboxLimits()
    max_concurrent: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Most programs that one `Sandbox` runs at once. Others wait."""
    allow_unsandboxed: bool = False
    """Run without bubblewrap, as the calling user, with an empty environment and resource limits only. A
    program can then read, write and connect to everything that the user can, and leave processes behind. Use
    it only on a machine that holds nothing of value."""


Status = Literal["ok", "failed", "timeout", "output_limit", "not_started"]
"""`failed`: a non-zero exit or a signal. `not_started`: the sandbox failed, and the program did not run."""


class SandboxResult(Record):
    """The outcome of one program. Only `status`, `duration_s` and the bound on lengths can be trusted."""

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    duration_s: float


@dataclass(frozen=True)
class _Channel:
    """File descriptors of one run: memory files, which never block, and the two ends of a pipe."""

    program: int
    filter: int
    stdin: int
    stdout: int
    stderr: int
    ready: int
    """Our end of the pipe."""
    report_ready: int
    """The child's end of the pipe: it writes one byte when it begins."""


class Sandbox:
    """Runs programs, a few at a time. It keeps no process between runs."""

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = config or SandboxConfig()
        self._slots = asyncio.Semaphore(self._config.max_concurrent)
        self._mounts: list[str] | None = None

    async def start(self) -> None:
        """Run one trivial program through the whole chain. Raises: SandboxUnavailable."""
        self._check_tools()
        if self._is_isolated and self._mounts is None:
            self._mounts = await asyncio.to_thread(interpreter.mounts, is_other_user=os.geteuid() == 0)
        probe = await self._supervise("print(2**4096 % 1000003)", stdin=b"", timeout_s=30.0)
        if probe.stdout != f"{2**4096 % 1000003}\n":
            raise SandboxUnavailable(
                f"the sandbox does not work here ({probe.status}): {probe.stderr.strip()[:500]};"
                f" {INSTALL_HINT}"
            )

    async def run(self, program: str, *, stdin: bytes = b"", timeout_s: float = 10.0) -> SandboxResult:
        """Run `program` as `__main__`. Its own failures are results, never exceptions.

        Raises: SandboxUnavailable.
        """
        if self._mounts is None:
            await self.start()
        async with self._slots:
            return await self._supervise(program, stdin=stdin, timeout_s=timeout_s)

    @property
    def _is_isolated(self) -> bool:
        return not self._config.allow_unsandboxed

    def _check_tools(self) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxUnavailable(f"the sandbox needs Linux, this is {sys.platform}")
        if not self._is_isolated:
            self._mounts = []
            logger.warning("model-written programs run WITHOUT a sandbox (allow_unsandboxed)")
        needed = {"prlimit": True, "bwrap": self._is_isolated, "setpriv": os.geteuid() == 0}
        missing = [tool for tool, is_needed in needed.items() if is_needed and shutil.which(tool) is None]
        if missing:
            raise SandboxUnavailable(f"not found: {', '.join(missing)}; {INSTALL_HINT}")

    async def _supervise(self, program: str, *, stdin: bytes, timeout_s: float) -> SandboxResult:
        start_s = time.monotonic()
        with _open_channel(program, stdin) as channel:
            process = await asyncio.create_subprocess_exec(
                *self._command(channel, timeout_s),
                stdin=channel.stdin, stdout=channel.stdout, stderr=channel.stderr,
                pass_fds=(channel.program, channel.filter, channel.report_ready),
                env={}, cwd="/" if self._is_isolated else tempfile.gettempdir(), start_new_session=True,
            )  # fmt: skip
            try:
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await _begun_or_ended(channel, process)
                async with asyncio.timeout(timeout_s):
                    exit_code = await process.wait()
            except TimeoutError:
                exit_code = None
            finally:
                # The child leads a process group, whose id stays its own until the leader is waited for.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            return self._result(channel, exit_code, duration_s=time.monotonic() - start_s)

    def _result(self, channel: _Channel, exit_code: int | None, *, duration_s: float) -> SandboxResult:
        max_bytes = self._config.limits.output_bytes
        output, errors = (os.pread(file, max_bytes + 1, 0) for file in (channel.stdout, channel.stderr))
        is_over = max(len(output), len(errors)) > max_bytes
        status = "output_limit" if is_over and exit_code is not None else _status(exit_code)
        return SandboxResult(
            status=status if _has_begun(channel) else "not_started",
            exit_code=exit_code,
            stdout=output[:max_bytes].decode(errors="replace"),
            stderr=errors[:max_bytes].decode(errors="replace"),
            duration_s=duration_s,
        )

    def _command(self, channel: _Channel, timeout_s: float) -> list[str]:
        begin = _BEGIN.format(
            num_processes=self._config.limits.num_processes,
            program=channel.program,
            ready=channel.report_ready,
        )
        python = ["-I", "-S", "-X", "int_max_str_digits=0", "-X", "utf8", "-c", begin]
        if not self._is_isolated:
            return [*self._bounds(timeout_s), sys.executable, *python]
        chain = [*_give_up_root(), *self._bounds(timeout_s), *self._bubblewrap(channel)]
        return [*chain, interpreter.EXECUTABLE, *python]

    def _bounds(self, timeout_s: float) -> list[str]:
        limits = self._config.limits
        cpu_s = math.ceil(timeout_s) + 1
        bounds = [f"--cpu={cpu_s}:{cpu_s + 1}", f"--as={limits.memory_bytes}"]
        bounds += [f"--fsize={limits.file_bytes}", f"--nofile={limits.num_open_files}", "--core=0"]
        if os.geteuid() == 0 and self._is_isolated:
            bounds.append(f"--nproc={_MAX_HOST_PROCESSES}")
        return ["prlimit", *bounds, "--"]

    def _bubblewrap(self, channel: _Channel) -> list[str]:
        assert self._mounts is not None
        return [
            "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent",
            "--new-session", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY),
            "--hostname", "sandbox", "--seccomp", str(channel.filter),
            *_system_mounts(), *self._mounts, "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null",
            "--size", str(self._config.limits.file_bytes), "--tmpfs", _TMP, "--remount-ro", "/",
            "--chdir", _TMP, "--setenv", "LD_LIBRARY_PATH", f"{interpreter.MOUNT_POINT}/lib", "--",
        ]  # fmt: skip


async def run_python(
    code: str,
    *,
    timeout_s: float = 10.0,
    limits: SandboxLimits | None = None,
    allow_unsandboxed: bool = False,
) -> SandboxResult:
    """Run one program in a sandbox of its own. Raises: SandboxUnavailable."""
    config = SandboxConfig(limits=limits or SandboxLimits(), allow_unsandboxed=allow_unsandboxed)
    return await Sandbox(config).run(code, timeout_s=timeout_s)


_BEGIN = """\
import os, resource
resource.setrlimit(resource.RLIMIT_NPROC, ({num_processes}, {num_processes}))
os.write({ready}, b"1"), os.close({ready})
with open({program}, "rb") as file:
    source = file.read()
exec(compile(source, "program.py", "exec"), {{"__name__": "__main__"}})
"""
"""The first lines of every run. They set the limit on processes inside the user namespace, where the kernel
(5.14 and later) counts only this sandbox. A limit set before bwrap would count all processes of the user."""


@contextlib.contextmanager
def _open_channel(program: str, stdin: bytes) -> Iterator[_Channel]:
    with contextlib.ExitStack() as stack:
        contents = (program.encode(errors="replace"), seccomp.compile_filter(), stdin, b"", b"")
        program_file, filter_file, *standard = (_memory_file(content, stack) for content in contents)
        ready, report_ready = os.pipe()
        stack.callback(os.close, ready)
        stack.callback(os.close, report_ready)
        os.set_blocking(ready, False)
        yield _Channel(program_file, filter_file, standard[0], standard[1], standard[2], ready, report_ready)


def _memory_file(content: bytes, stack: contextlib.ExitStack) -> int:
    descriptor = os.memfd_create("sandbox")
    stack.callback(os.close, descriptor)
    if os.write(descriptor, content) != len(content):
        raise OSError("short write to a memory file")
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _begun_or_ended(channel: _Channel, process: asyncio.subprocess.Process) -> None:
    """Return when the program runs or has ended. The start of the chain does not count as the program's time,
    because it is slow on a busy machine."""
    begun = asyncio.Event()
    asyncio.get_running_loop().add_reader(channel.ready, begun.set)
    waits = [asyncio.ensure_future(wait) for wait in (begun.wait(), process.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asyncio.get_running_loop().remove_reader(channel.ready)
        for wait in waits:
            wait.cancel()


def _has_begun(channel: _Channel) -> bool:
    try:
        return os.read(channel.ready, 1) == b"1"
    except BlockingIOError:
        return False


def _give_up_root() -> list[str]:
    if os.geteuid() != 0:
        return []
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *user, "--inh-caps=-all", "--bounding-set=-all"]


def _system_mounts() -> list[str]:
    """Mounts of the C library and the loader: /usr/lib*, and /lib* or the links that replace them."""
    arguments: list[str] = []
    for name in ("lib", "lib64"):
        arguments += ["--ro-bind-try", f"/usr/{name}", f"/usr/{name}"]
        if os.path.islink(f"/{name}"):  # noqa: PTH114
            arguments += ["--symlink", f"usr/{name}", f"/{name}"]
        else:
            arguments += ["--ro-bind-try", f"/{name}", f"/{name}"]
    return arguments


def _status(exit_code: int | None) -> Status:
    if exit_code in (None, 128 + signal.SIGXCPU, -signal.SIGXCPU):
        return "timeout"
    return "ok" if exit_code == 0 else "failed"
