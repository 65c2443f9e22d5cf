# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process gives up before it runs code of a guest, for good: the fence.

Guest code that finds a hole in the emulator runs as this process. Then it should find nothing:
no network, no file to write, few to read, no program to start, nobody to send signals to. Three
things of the host's kernel take that away, each through a library or the C library:

* Landlock (`landlockpy`): which files may be read, TCP, signals and abstract Unix sockets
* seccomp (`pyseccomp`, over libseccomp): which system calls there are (`allowed`)
* capabilities, hard limits and no_new_privs, so that nothing comes back

Each closes part of it, several parts are closed twice. What the host's kernel, or a container
around it, does not let go of is said by name, with what would change it.

Where a library is missing nothing else is. Of what PyPI has, `landlockpy` alone knows all of
Landlock on every architecture (others know two architectures, or no network); `pyseccomp` leaves
names, numbers and x86-64's second table of calls to libseccomp, which service managers and
containers trust, where others bring tables of their own for two architectures.
"""

from __future__ import annotations

import ctypes
import os
import resource
import site
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from errno import ENOSYS, EPERM
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

from allocator.errors import ExecmemError
from emulator.watchdog import WATCHDOG
from execmem.worker.allowed import PLAIN, UNKNOWN, conditions

# What programs and libraries of the host read wherever they run.
_HOST = (
    "/lib /lib64 /usr/lib /usr/lib64 /usr/local/lib /etc/ld.so.cache /etc/localtime"
    " /usr/share/zoneinfo /proc/self /proc/meminfo /proc/cpuinfo /proc/stat"
    " /sys/devices/system/cpu /dev/null /dev/zero /dev/urandom".split()
)
_OURS = "allocator archs loader emulator kernels machine samples execmem".split()
# Nothing of these is needed by what works for a guest, and none can be raised again.
_NOTHING = ("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_RTPRIO", "RLIMIT_NICE")

READING = "reading files"
WRITING = "writing files"
NETWORK = "network"
SOCKETS = "Unix sockets"
SIGNALS = "signals to other processes"
PROGRAMS = "starting processes and programs"
CALLS = "system calls that it does not need"
PRIVILEGES = "privileges"
EVERYTHING = (READING, WRITING, NETWORK, SOCKETS, SIGNALS, PROGRAMS, CALLS, PRIVILEGES)

# From which ABI on Landlock closes each of them by itself.
_LANDLOCK = {READING: 1, WRITING: 3, SIGNALS: 6}
_SECCOMP = (WRITING, NETWORK, SOCKETS, SIGNALS, PROGRAMS, CALLS)
_LOOKS = 20  # at threads, a millisecond apart
_TSYNC = 8  # the ABI from which on Landlock reaches threads that run already
_NO_NEW_PRIVS = 38  # of linux/prctl.h
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h, see capset(2)


class NotFenced(ExecmemError):
    """A fence was wanted whole, and the host cannot give it.

    Parameters
    ----------
    kept
        What could not be given up, and why.
    """

    def __init__(self, kept: Iterable[str]) -> None:
        self.kept = tuple(kept)
        super().__init__(f"no whole sandbox here: {'; '.join(self.kept)}")

    def __reduce__(self) -> tuple[type[NotFenced], tuple[tuple[str, ...]]]:
        return NotFenced, (self.kept,)


@attrs.frozen
class Fence:
    """What a process gave up.

    Parameters
    ----------
    removed
        What it cannot do any more.
    kept
        What it still can, each with the reason.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether it gave up everything."""
        return not self.kept


def fence(readable: Iterable[str | Path] = ()) -> Fence:
    """Give up, for this process and for good, what a guest's code should not have.

    Parameters
    ----------
    readable
        Files and folders that it still has to read, beside Python, this program and what
        programs read of a host. What is not there is left out.

    Returns
    -------
    Fence
        What was given up and what was not. Nothing is raised: what a host lacks is told.
    """
    prepare()  # while programs that look for libraries can still be started
    why: dict[str, str] = {}
    with WATCHDOG.resting():
        threads = _threads()
        _limit()
        _drop_capabilities()
        abi = _landlock([*_HOST, *python_folders(), *map(str, readable)], threads, why)
        filtered = _seccomp(why)
    closed = {what for what, since in _LANDLOCK.items() if abi >= since}
    if filtered:
        closed |= set(_SECCOMP)
    if _is_unprivileged():
        closed.add(PRIVILEGES)
    if 0 < abi < _TSYNC and threads > 1:  # the others read what they like
        closed.discard(READING)
        why[READING] = f"{threads} threads ran already, and Landlock of ABI {abi} reaches one"
    reasons = {
        READING: why.get(READING) or why.get("landlock", ""),
        PRIVILEGES: "the kernel did not take them",
    }
    kept = tuple(
        f"{what} ({reasons.get(what) or why.get('seccomp', '')})"
        for what in EVERYTHING
        if what not in closed
    )
    _made.append(Fence(tuple(what for what in EVERYTHING if what in closed), kept))
    return _made[-1]


_made: list[Fence] = []


def fenced() -> Fence | None:
    """Return what this process has given up; None: nothing."""
    return _made[-1] if _made else None


@cache
def prepare() -> Mapping[str, Any]:
    """Import what a fence is made with, so that copies of this process need not: name -> module."""
    found = {}
    for name in ("landlockpy", "pyseccomp"):
        with suppress(ImportError, RuntimeError, OSError):  # of libseccomp, where it is not there
            found[name] = import_module(name)
    return found


def _threads() -> int:
    """Return how many threads this process has; one that has just ended is given time to go."""
    found = 1
    with suppress(OSError):
        for _ in range(_LOOKS):
            found = sum(1 for _ in Path("/proc/self/task").iterdir())
            if found == threading.active_count():
                break
            time.sleep(0.001)
    return found


def python_folders() -> list[str]:
    """Return where Python and what is imported in it lie, this program included."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    found |= {*site.getsitepackages(), site.getusersitepackages()}
    for name in _OURS:
        import_module(name)  # afterwards it is found nowhere, where its folder's is no other's
    with suppress(PackageNotFoundError):  # found once, it is found again
        version("execmem")
    found |= set(map(str, Path(__file__).parents[2].glob("execmem*-info")))
    # Of what lies elsewhere, the folders of packages: a folder of sys.path may be a home.
    for module in list(sys.modules.values()):
        found |= {str(path) for path in getattr(module, "__path__", ()) if isinstance(path, str)}
    return sorted(path for path in found if Path(path).is_absolute())


def _limit() -> None:
    """Give up what limits are for, in a way that none is raised again."""
    for name in _NOTHING:
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (0, 0))
    with suppress(ValueError, OSError):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))


def _drop_capabilities() -> None:
    """Give up all capabilities, for good: root without them is a user to whom much belongs."""
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
        libc.capset(header, (ctypes.c_uint32 * 6)())


def _is_unprivileged() -> bool:
    """Return whether this process has no capability, and gets none by a program."""
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return int(told["CapEff"], 16) == 0 and int(told["NoNewPrivs"]) == 1
    return False


def _landlock(readable: Iterable[str], threads: int, why: dict[str, str]) -> int:
    """Let this process read what it may, and write and reach nothing; return the ABI, or 0."""
    landlock = prepare().get("landlockpy")
    if landlock is None:
        why["landlock"] = "no Landlock: pip install landlockpy"
        return 0
    access, scope, flag = landlock.AccessFS, landlock.Scope, landlock.RestrictFlag
    try:
        with landlock.Ruleset(scoped=scope.ABSTRACT_UNIX_SOCKET | scope.SIGNAL) as rules:
            for path in readable:
                _allow(rules, path, access.READ_FILE, access.READ_DIR)
            rules.restrict(flag.TSYNC if threads > 1 else flag.NONE)
            return int(rules.abi_version)
    except OSError as error:
        why["landlock"] = f"no Landlock in this kernel or container: {error.strerror}"
        return 0


def _allow(rules: Any, path: str, file: Any, folder: Any) -> None:
    """Allow a file, or what is below a folder, to be read; of a file no more may be asked."""
    with suppress(OSError):  # not there, or not for us
        rules.allow_path(path, file | folder if Path(path).is_dir() else file)


def _seccomp(why: dict[str, str]) -> bool:
    """Refuse all system calls but those allowed, in every thread; return whether that is so."""
    pyseccomp = prepare().get("pyseccomp")
    if pyseccomp is None:
        why["seccomp"] = "no seccomp: pip install pyseccomp, and the host's libseccomp.so.2"
        return False
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(EPERM))
        rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)

        def rule(action: int, call: str, *arguments: Any) -> None:
            if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) != -1:  # it knows the name
                rules.add_rule(action, call, *arguments)

        for call in sorted(PLAIN):
            rule(pyseccomp.ALLOW, call)
        for each in conditions(os.getpid()):
            rule(
                pyseccomp.ALLOW,
                each.call,
                pyseccomp.Arg(each.argument, pyseccomp.MASKED_EQ, each.mask, each.value),
            )
        for call in UNKNOWN:
            rule(pyseccomp.ERRNO(ENOSYS), call)
        rules.load()
    except OSError as error:
        why["seccomp"] = f"no seccomp in this kernel or container: {error.strerror}"
        return False
    return True
