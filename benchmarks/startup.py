# SPDX-License-Identifier: GPL-2.0-or-later
"""What starting costs, beside an interpreter that does nothing and ones that import libraries.

CPU time of whole processes, in turns, medians over the rounds, with bytecode cached. The aims: at
most 1.5 times `python -c 'import unicorn'` for the help and for the import, and at most 3 times
`python -c 'import numpy, unicorn'` for loading and running a module.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

ROUNDS = 15
PEER = "python -c 'import unicorn'"
FLOOR = "python -c 'import numpy, unicorn'"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    PEER: ["-c", "import unicorn"],
    FLOOR: ["-c", "import numpy, unicorn"],
    "import execmem": ["-c", "import execmem"],
    "execmem --help": ["-m", "execmem", "--help"],
    "execmem sweep --help": ["-m", "execmem", "sweep", "--help"],
    "from execmem import Machine": ["-c", "from execmem import Machine"],
    "execmem load mathuser": ["-m", "execmem", "load", "mathuser"],
    "execmem run mathuser ...": ["-m", "execmem", "run", "mathuser", "mathuser_lcm", "21", "6"],
    "execmem demo reach": ["-m", "execmem", "demo", "reach"],
}


def cpu(arguments: list[str], cache: str) -> float:
    """Return the CPU seconds of one process that keeps its bytecode in a folder."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print one line per command."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as cache:
        for arguments in COMMANDS.values():
            cpu(arguments, cache)
        for _ in range(ROUNDS):
            for name, arguments in COMMANDS.items():
                times[name].append(cpu(arguments, cache))
    middle = {name: statistics.median(found) for name, found in times.items()}
    print(f"{'command':34} {'CPU ms':>7} {'x unicorn':>9} {'x numpy, unicorn':>16}")
    for name, found in middle.items():
        peer, floor = found / middle[PEER], found / middle[FLOOR]
        print(f"{name:34} {found * 1e3:7.0f} {peer:9.2f} {floor:16.2f}")


if __name__ == "__main__":
    main()
