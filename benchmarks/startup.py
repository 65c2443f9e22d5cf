# SPDX-License-Identifier: GPL-2.0-or-later
"""What starting costs, beside an interpreter that does nothing and one that imports Unicorn.

CPU time of whole processes, in turns, medians over the rounds; the aim is at most 1.5 times
`python -c 'import unicorn'` for the help and for the import.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

ROUNDS = 15
PEER = "python -c 'import unicorn'"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    PEER: ["-c", "import unicorn"],
    "import execmem": ["-c", "import execmem"],
    "execmem --help": ["-m", "execmem", "--help"],
    "execmem sweep --help": ["-m", "execmem", "sweep", "--help"],
    "from execmem import Machine": ["-c", "from execmem import Machine"],
    "execmem demo reach": ["-m", "execmem", "demo", "reach"],
}


def cpu(arguments: list[str]) -> float:
    """Return the CPU seconds of one process."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print one line per command."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(cpu(arguments))
    middle = {name: statistics.median(found) for name, found in times.items()}
    print(f"{'command':28} {'CPU ms':>7} {'x unicorn':>9}")
    for name, found in middle.items():
        print(f"{name:28} {found * 1e3:7.0f} {found / middle[PEER]:9.2f}")


if __name__ == "__main__":
    main()
