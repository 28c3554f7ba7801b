"""The system call filter of the sandbox: a deny list, compiled here to classic BPF for `bwrap --seccomp`.

It is the second barrier: namespaces, dropped capabilities and resource limits already confine a program. The
filter removes the calls that reach old kernel code, other processes, or memory that no resource limit counts.
A denied call fails with EPERM, so ordinary Python continues. It is not an allow list, because libc and
CPython change their calls between versions, and users switch off a sandbox that an upgrade breaks.

Source: instruction encoding, linux/bpf_common.h and linux/seccomp.h; call numbers, arch/x86/entry/syscalls/
syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.1 (numbers are kernel ABI and never change).
"""

from __future__ import annotations

import platform
import struct

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_IF_GREATER_OR_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_DENY = 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM

_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4  # in struct seccomp_data
_X32_BIT = 0x40000000
"""The bit that marks a second numbering, which x86-64 kernels accept and no 64-bit program uses."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

DENIED: dict[str, tuple[int, int]] = {
    # network
    "socket": (41, 198), "socketpair": (53, 199),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "perf_event_open": (298, 241),
    # namespaces, mounts, files by handle
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "quotactl": (179, 60), "fanotify_init": (300, 262),
    # kernel interfaces with a history
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "personality": (135, 92), "syslog": (103, 116), "acct": (163, 89), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    # memory that RLIMIT_AS and the tmpfs size do not count
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
"""The number of each denied call on x86-64 and on aarch64. From 424 on, all architectures share one table."""


def compile_filter(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`. Raises: ValueError if there are no numbers for
    `machine`."""
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        raise ValueError(f"no system call table for {machine!r}: the sandbox runs on {sorted(_AUDIT_ARCH)}")
    column = list(_AUDIT_ARCH).index(machine)
    denied = sorted({numbers[column] for numbers in DENIED.values()})
    checks = [_instruction(_JUMP_IF_EQUAL, call, if_true=len(denied) - i) for i, call in enumerate(denied)]
    ends = [_instruction(_RETURN, _ALLOW), _instruction(_RETURN, _DENY)]
    return b"".join([*_prologue(machine), *checks, *ends])


def _prologue(machine: str) -> list[bytes]:
    """Kill on a foreign architecture (32-bit calls have other numbers), then load the call's number."""
    prologue = [
        _instruction(_LOAD_WORD, _ARCH_OFFSET),
        _instruction(_JUMP_IF_EQUAL, _AUDIT_ARCH[machine], if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD_WORD, _NUMBER_OFFSET),
    ]
    if machine == "x86_64":
        prologue += [
            _instruction(_JUMP_IF_GREATER_OR_EQUAL, _X32_BIT, if_false=1),
            _instruction(_RETURN, _KILL_PROCESS),
        ]
    return prologue


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
