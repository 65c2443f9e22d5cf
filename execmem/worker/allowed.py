# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fenced process may still ask of the host's kernel: all else is refused.

A list of what may be done, not of what may not: calls that a later kernel adds are refused, too.
Numbers are those of the generic user interface (`asm-generic/ioctls.h`, `linux/fcntl.h`,
`linux/prctl.h`); where a host has others, the call is refused, and nobody is let out by it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence

import attrs

# Environment of a process that is to have one thread: those that wait to multiply matrices are
# there before a fence, and have nothing to do here.
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# What works on descriptors that are open, on the process' own memory, threads, signals and clock.
PLAIN = frozenset(
    # files that are open
    "read pread64 readv preadv preadv2 write pwrite64 writev lseek close close_range dup dup2 dup3"
    " fstat fstatfs ftruncate fallocate fadvise64 getdents64 poll ppoll select pselect6"
    # what a path says of a file
    " stat lstat newfstatat statx statfs access faccessat faccessat2 readlink readlinkat getcwd"
    # memory
    " mmap munmap mprotect mremap madvise msync brk memfd_create membarrier riscv_flush_icache"
    # threads
    " futex set_robust_list set_tid_address rseq gettid sched_yield sched_getaffinity getcpu"
    " exit exit_group restart_syscall"
    # signals to itself
    " rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait"
    " sigaltstack pause alarm setitimer getitimer"
    # clocks
    " clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times"
    # who and where it is
    " getpid getppid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid"
    " getsid getrusage getrlimit setrlimit capget uname sysinfo getrandom riscv_hwprobe".split()
)

# Refused as unknown, so that the C library does the same by a call that can be looked into.
UNKNOWN = ("clone3", "openat2")


@attrs.frozen
class Condition:
    """A call that is allowed where one argument is as it should be.

    Parameters
    ----------
    call
        Its name.
    argument
        Number of the argument.
    mask, value
        What `argument & mask` is.
    """

    call: str
    argument: int
    value: int
    mask: int = (1 << 64) - 1


_WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_THREAD = 0x00010000  # CLONE_THREAD
_VALUES: Mapping[tuple[str, int], Sequence[int]] = {
    # TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX, FIONCLEX, FIONBIO: none puts words into a terminal.
    ("ioctl", 1): (0x5401, 0x5413, 0x541B, 0x5451, 0x5450, 0x5421),
    # None says which process a descriptor sends signals to.
    ("fcntl", 1): (
        fcntl.F_DUPFD,
        fcntl.F_DUPFD_CLOEXEC,
        fcntl.F_GETFD,
        fcntl.F_SETFD,
        fcntl.F_GETFL,
        fcntl.F_SETFL,
        fcntl.F_ADD_SEALS,
        fcntl.F_GET_SEALS,
    ),
    ("prctl", 0): (15, 0x53564D41),  # PR_SET_NAME, PR_SET_VMA
    ("prlimit64", 0): (0,),  # its own
}
_INT = (1 << 32) - 1  # what the kernel looks at of an int


def conditions(pid: int) -> tuple[Condition, ...]:
    """Return what is allowed with certain arguments, to a process of a number."""
    return (
        Condition("open", 1, os.O_RDONLY, _WRITES),
        Condition("openat", 2, os.O_RDONLY, _WRITES),
        Condition("clone", 0, _THREAD, _THREAD),
        Condition("kill", 0, pid, _INT),
        Condition("tgkill", 0, pid, _INT),
        *(
            Condition(call, argument, value, _INT)
            for (call, argument), values in _VALUES.items()
            for value in values
        ),
    )
