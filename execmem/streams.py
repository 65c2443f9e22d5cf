# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines to stdout and stderr, and what to do when those do not take them.

Tables and bars are `execmem.terminal`'s; this costs nothing to import.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import click

_before: Callable[[], None] | None = None


def on_write(hook: Callable[[], None] | None) -> None:
    """Let something be done before anything is written: a bar is taken away."""
    global _before  # noqa: PLW0603 -- there is one terminal
    _before = hook


def before_writing() -> None:
    """Make room for what is written next."""
    if _before is not None:
        _before()


INTERRUPTED = 130  # the exit code: 128 and SIGINT's number, as a shell has it


def say(text: object = "", *, err: bool = False) -> None:
    """Write one line to stdout, or to stderr; what could do more than be read is escaped."""
    from allocator.errors import printable

    before_writing()
    click.echo(printable(str(text)), err=err)


# What writing ends with; files that are written have a name.
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class ReaderGone(Exception):
    """Whoever read stdout went away (a pager that was quit)."""


def complain(*lines: str) -> None:
    """Write lines to stderr, as far as it takes them."""
    try:
        for line in lines:
            say(line, err=True)
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop(sys.stderr)


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
        raise OSError(errno.EBADF, "is closed", "standard output")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # what an encoding does not have is escaped
            reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Forget what stdout did not take, so that nothing fails again when the process ends."""
    _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    with suppress(OSError, ValueError, AttributeError):
        nowhere = _nowhere()
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def _nowhere() -> int:
    """Return a descriptor that takes what nobody reads."""
    try:
        return os.open(os.devnull, os.O_WRONLY)
    except PermissionError:  # behind the fence
        return os.memfd_create("nowhere")


def trouble(error: OSError) -> str:
    """Return what an operating system's error says, with the file that it is about."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    return f"standard output: {reason}" if error.errno in _OF_WRITES else reason
