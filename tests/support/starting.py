# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that has imported what most commands import, and forks for each command line.

It is started as a script by any interpreter, with what was installed for that. It reads requests
from stdin, a JSON object a line: `words` of the command line, folder `cwd`, environment `env`,
files `out` and `err`. For each it writes two lines: the process that carries it out, which leads a
session of its own, and how that ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module

COMMON = ("execmem.modelled", "execmem.report", "kernels.modelled.api", "machine.machine")


def main() -> None:
    """Fork for each request until there is none; return in the child that goes on."""
    for name in COMMON:
        import_module(name)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if not child:
            requests.close()
            os.close(answers)
            become(request)
            return
        os.write(answers, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(request: dict) -> None:
    """Be as a process that was started with these words, in that folder."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    to_write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], to_write),
        (2, request["err"], to_write),
    ):
        opened = os.open(name, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = request["words"]
    sys.path.insert(0, request["cwd"])  # as `python -m` does


if __name__ == "__main__":
    main()
    from execmem.cli import main as execmem

    execmem()
