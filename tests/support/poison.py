# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep's job that some modules kill: to be imported by the worker processes."""

from __future__ import annotations

import os
import signal
import time

from execmem.sweep import examine


def poisoned(path, options):
    """Die, vanish or hang for modules of some names, and work on all others."""
    if path.name.startswith("exits"):
        os._exit(7)
    if path.name.startswith("crashes"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name.startswith("hangs"):
        time.sleep(1000)
    return examine(path, options)
