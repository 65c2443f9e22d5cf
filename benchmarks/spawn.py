# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs programs from a small process and says what each cost.

Linux carries the peak memory of the process that spawned a program over into the program's
own (ru_maxrss survives exec), so a linker started from a benchmark that holds drivers in
memory would look as large as the benchmark. This launcher is a bare interpreter: what it
starts cannot look smaller than about 10 MB, and above that the figures are the program's.

Each line of stdin is a JSON list, a log file and the command line; each line of stdout is
the JSON list of exit status, CPU seconds (user + system) and peak bytes.
"""

from __future__ import annotations

import json
import os
import sys


def run(log: str, command: list[str]) -> tuple[int, float, int]:
    """Return exit status, CPU seconds and peak bytes of one program; its output goes to `log`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
    child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(*json.loads(line))) + "\n")
        sys.stdout.flush()
