# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep's job that some modules kill: to be imported by the worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from execmem.sweep import examine


def poisoned(task, options):
    """Die, vanish, lie or hang for modules of some names, and work on all others."""
    name = Path(task.file).name
    if name.startswith("exits"):
        os._exit(7)
    if name.startswith("crashes"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("lies"):
        return examine(task, options) | {"file": "/etc/passwd"}
    if name.startswith("hangs"):
        time.sleep(1000)
    return examine(task, options)
