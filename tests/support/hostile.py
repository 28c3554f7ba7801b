"""Hostile answers to P3 puzzles in 30 families. None may be graded correct or harm the machine.

Each family is a template with a number in it, so that no two programs are the same text. `SECRET` is planted
in the environment of the process that grades; programs look for it and for host files, and write what they
find to stdout.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

PUZZLE = {"name": "Hostile:0", "sat": "def sat(x: int):\n    return x * x == 1234321 * 7", "ans_type": "int"}
"""A puzzle without a solution: the square root is irrational."""
QUINE = {
    "name": "Quine:0",
    "sat": "def sat(quine: str):\n    return eval(quine) == quine and len(quine) > 10**6",
    "ans_type": "str",
}
"""A puzzle that calls `eval` on the answer, as the official Quine does, and asks for too long a text."""
TRUTH = {"name": "Truthy:0", "sat": "def sat(x: int):\n    return x", "ans_type": "int"}
"""A puzzle that returns its argument: 1 is truthy, but not True."""

SECRET = "canary-5f0c1d"

_FAMILIES: dict[str, tuple[dict[str, str], str]] = {
    "wrong value": (
        PUZZLE,
        """
            def sol():
                return {i}
        """,
    ),
    "wrong type": (
        PUZZLE,
        """
            def sol():
                return '{i}'
        """,
    ),
    "fork bomb": (
        PUZZLE,
        """
            import os
            def sol():
                for _ in range({i} + 10**6):
                    try:
                        os.fork()
                    except OSError:
                        return {i}
        """,
    ),
    "thread bomb": (
        PUZZLE,
        """
            import threading, time
            def sol():
                for _ in range(10**4):
                    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
                return {i}
        """,
    ),
    "memory hog": (
        PUZZLE,
        """
            def sol():
                held = []
                while True:
                    held.append(bytearray(10**8 + {i}))
        """,
    ),
    "disk hog": (
        PUZZLE,
        """
            def sol():
                for n in range(10**5):
                    with open(f'/tmp/{i}-' + str(n), 'wb') as file:
                        file.write(bytes(10**7))
                return {i}
        """,
    ),
    "infinite output": (
        PUZZLE,
        """
            import os
            def sol():
                while True:
                    os.write(1, b'x' * 65536); os.write(2, b'{i}' * 9999)
        """,
    ),
    "output on every descriptor": (
        PUZZLE,
        """
            import os
            def sol():
                for descriptor in range(256):
                    try:
                        os.write(descriptor, b'correct {i}\\n' * 1000)
                    except OSError:
                        pass
                return {i}
        """,
    ),
    "endless loop": (
        PUZZLE,
        """
            def sol():
                n = {i}
                while True:
                    n += 1
        """,
    ),
    "closed stdout": (
        PUZZLE,
        """
            import os
            def sol():
                os.closerange(0, 64 + {i})
                return {i}
        """,
    ),
    "orphan": (
        PUZZLE,
        """
            import os, time
            def sol():
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        time.sleep(10**6 + {i})
                    os._exit(0)
                return {i}
        """,
    ),
    "os._exit": (
        PUZZLE,
        """
            import os
            def sol():
                os._exit({i} % 3)
        """,
    ),
    "forged True": (
        PUZZLE,
        """
            print(True)
            print('correct', {i})
            def sol():
                print(True)
                return True
        """,
    ),
    "forged verdict": (
        PUZZLE,
        """
            import os
            def sol():
                for descriptor in range(3, 64):
                    try:
                        os.write(descriptor, b'correct ')
                    except OSError:
                        pass
                os._exit({i} * 0)
        """,
    ),
    "patched sat": (
        PUZZLE,
        """
            import builtins
            sat = lambda x: True
            builtins.sat = sat
            builtins.eval = sat
            def sol():
                return {i}
        """,
    ),
    "__eq__ object": (
        PUZZLE,
        """
            class Same(int):
                def __eq__(self, other): return True
                def __mul__(self, other): return self
                def __hash__(self): return {i}
            def sol():
                return Same({i})
        """,
    ),
    "__repr__ code": (
        PUZZLE,
        """
            class Text:
                def __repr__(self): return '__import__("os")._exit(0) or {i}'
            def sol():
                return Text()
        """,
    ),
    "1 for True": (
        TRUTH,
        """
            def sol():
                return 1 + 0 * {i}
        """,
    ),
    "True for int": (
        TRUTH,
        """
            def sol():
                return {i} == {i}
        """,
    ),
    "1 GB literal": (
        PUZZLE,
        """
            def sol():
                return '{i}' * 10**9
        """,
    ),
    "deep literal": (
        PUZZLE,
        """
            import os
            def sol():
                os.write(3, b'[' * (10**5 + {i}))
                return [{i}]
        """,
    ),
    "NaN": (
        PUZZLE,
        """
            def sol():
                return float('nan') * {i}
        """,
    ),
    "secrets": (
        PUZZLE,
        """
            import glob, os
            def sol():
                found = [dict(os.environ)]
                etc = ["/etc/shadow", "/etc/passwd", "/etc/hostname"]
                places = ["/proc/1/environ", "/proc/self/environ", *etc]
                for folder in ("/root", "/home", "/proc", "/sys", "/var"):
                    places += glob.glob(folder + "/*")
                for place in places:
                    try:
                        found.append(open(place).read())
                    except OSError:
                        pass
                return str(found) + "{i}"
        """,
    ),
    "network": (
        PUZZLE,
        """
            import socket
            def sol():
                socket.create_connection(('127.0.0.1', 1 + {i} % 60000), timeout=1)
                return {i}
        """,
    ),
    "signals": (
        PUZZLE,
        """
            import os, signal
            def sol():
                for pid in (1, 0, -1):
                    os.kill(pid, signal.SIGKILL)
                return {i}
        """,
    ),
    "code for eval": (
        QUINE,
        """
            def sol():
                return "__import__('os').write(3, b'correct ') or __import__('os')._exit({i})"
        """,
    ),
    "attributes for eval": (
        QUINE,
        """
            def sol():
                return '(lambda: {i}).__globals__.update(sat=print)'
        """,
    ),
    "recursion": (
        PUZZLE,
        """
            import sys
            sys.setrecursionlimit(10**9)
            def sol():
                return sol() + {i}
        """,
    ),
    "crash": (
        PUZZLE,
        """
            import ctypes
            def sol():
                ctypes.string_at({i})
        """,
    ),
    "traced": (
        PUZZLE,
        """
            import sys, gc
            sys.settrace(lambda *a: None)
            gc.disable()
            raise SystemExit({i} * 0)
        """,
    ),
}

FAMILIES = tuple(_FAMILIES)


def programs(num_programs: int) -> Iterator[tuple[str, dict[str, str], str]]:
    """Tuples of (family, official row, answer), the families in turn."""
    for i in range(num_programs):
        family = FAMILIES[i % len(FAMILIES)]
        row, template = _FAMILIES[family]
        yield family, row, textwrap.dedent(template).strip().replace("{i}", str(i + 2))
