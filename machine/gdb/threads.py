# SPDX-License-Identifier: GPL-2.0-or-later
"""What a debugger calls threads: the CPUs, and tasks that do not run.

A CPU's number is one more than the kernel has; tasks begin at `FIRST_TASK`, by their pid. Tasks can be looked at; only what runs goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from xml.sax.saxutils import quoteattr

from machine.gdb.subject import Subject, Task

FIRST_TASK = 0x1_0000


class Threads:
    """The threads of a machine.

    Parameters
    ----------
    subject
        The machine.

    `chosen` is whose registers are asked for: a CPU's number, or a task; `sp` the stack pointer.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.chosen: int | Task = 0
        self._running = 0
        self.sp = 0

    def stopped(self, cpu: int) -> None:
        """Take note that the guest has stopped on a CPU: what was asked of its threads is old."""
        self.chosen = self._running = cpu
        for name in ("_tasks", "_registers"):
            self.__dict__.pop(name, None)

    @cached_property
    def _tasks(self) -> Mapping[int, Task]:
        return {FIRST_TASK + task.pid: task for task in self._subject.tasks(self.sp)}

    @cached_property
    def _registers(self) -> dict[Task, Mapping[str, int]]:
        return {}

    def registers(self, task: Task) -> Mapping[str, int]:
        """Return the registers of a task that are known, by the debugger's names."""
        if task not in self._registers:
            self._registers[task] = self._subject.of_task(task)
        return self._registers[task]

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of all."""
        return [*range(1, self._subject.cpus + 1), *self._tasks]

    def find(self, text: bytes) -> int | Task | None:
        """Return what has a number; None: nothing."""
        try:
            wanted = int(text, 16)
        except ValueError:
            return None
        if wanted in (0, -1):
            return self._running
        if 1 <= wanted <= self._subject.cpus:
            return wanted - 1
        return self._tasks.get(wanted)

    def choose(self, text: bytes, *, registers: bool) -> None:
        """Let a thread be the one whose registers are asked for; LookupError where there is none."""
        found = self.find(text)
        if found is None:
            raise LookupError(text)
        if registers:
            self.chosen = found

    def title(self, text: bytes) -> str:
        """Return what a thread is, for a person; LookupError where there is none."""
        found = self.find(text)
        if found is None:
            raise LookupError(text)
        return _title(found)

    @property
    def xml(self) -> bytes:
        """All of them, as gdb lists threads."""
        parts = ["<threads>"]
        for number in self.numbers:
            found = self._tasks.get(number, number - 1)
            core = f' core="{found}"' if isinstance(found, int) else ""
            name = "" if isinstance(found, int) else f" name={quoteattr(found.name)}"
            title = _title(found) if isinstance(found, int) else _state(found)
            parts.append(f'<thread id="{number:x}"{core}{name}>{title}</thread>')
        parts.append("</threads>")
        return "".join(parts).encode("utf-8", "replace")


def _title(found: int | Task) -> str:
    if isinstance(found, Task):
        return f"{found.name}: {_state(found)}"
    return f"CPU {found}"


def _state(task: Task) -> str:
    return f"pid {task.pid}, sleeps"
