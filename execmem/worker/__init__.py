# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that can be lost, so that a guest ends none that a user started.

Whatever a module does to the process that works on it (memory, endless loops, a crash of the
emulator) is between it and that process: a death is told as a `Fault` (`death`). There are three
ways into one, with the same limits and the same last words (`emulator.process`):

* a command goes on in a child of its own, while the process that the user started waits, passes
  signals on and ends as the child did, unless that died (`command`);
* a script's function runs in a copy of the script (`copies`);
* a sweep's jobs go one after the other over a socket to a program, not to a `multiprocessing`
  child, because a worker of a cluster is one, and those may not have children (`jobs`).
"""

from __future__ import annotations
