# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines to stdout and stderr, and what to do when those do not take them.

Tables and bars are `execmem.terminal`'s; this costs nothing to import.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

import click


def say(text: object = "", *, err: bool = False) -> None:
    """Write one line to stdout, or to stderr; what could do more than be read is escaped."""
    from allocator.errors import printable

    click.echo(printable(str(text)), err=err)


def complain(*lines: str) -> None:
    """Write lines to stderr, as far as it takes them."""
    with suppress(OSError, ValueError):
        for line in lines:
            say(line, err=True)


def prepare() -> None:
    """Make the standard streams fit to be written to, whatever they are.

    Raises
    ------
    OSError
        Stdout is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 -- for as long as we run
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # what an encoding does not have is escaped
            reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Forget what stdout did not take, so that nothing fails again when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.stdout.flush()


def trouble(error: OSError) -> str:
    """Return what an operating system's error says, with the file that it is about."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # what it did not take is still there
        return f"standard output: {reason}"
    return reason
