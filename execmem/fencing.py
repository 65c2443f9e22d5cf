# SPDX-License-Identifier: GPL-2.0-or-later
"""`--sandbox` of a command: its process gives up what it does not need for the files it was named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from emulator import process
from execmem import notices
from execmem.own_kernel import own_kernel_of
from execmem.worker.clerk import Clerk, Outside
from execmem.worker.fence import NotFenced, fence
from execmem.worker.reading import files_of_design, files_of_kernel, modules_beside, trees_of
from loader.files import SUFFIXES
from loader.kernel.own import AUTO

NOT = "the sandbox does not take away"


def fence_command(
    options: dict[str, Any],
    *,
    whole: bool,
    writes: Iterable[str] = (),
    outside: Callable[[dict[str, Any]], Outside] | None = None,
) -> None:
    """Give up, for this process and for good, what a command with some options does not need.

    Parameters
    ----------
    options
        As they came from the command line; a kernel that is to be looked for is found.
    whole
        Whether to refuse where the host keeps something.
    writes
        Files that it may write: they are open then, and a process outside puts them in their places.
    outside
        Returns what else that process does, and may add to the options how it is asked.

    Raises
    ------
    ExecmemError
        A file cannot be written.
    NotFenced
        The host keeps something, and must not.
    """
    if process.box is None:
        raise click.UsageError("--sandbox: this process is a script's; start execmem as a program")
    if options.get("kernel") == AUTO:
        module = next(iter(_words(options.get("module", options.get("modules", "")))), "")
        options["kernel"] = own_kernel_of(module, options)
    written = list(writes)
    if any(name.endswith(".png") for name in written):
        _prepare_charts()
    readable = [*_readable(options)]
    if written or outside is not None:
        more = Outside() if outside is None else outside(options)
        readable += more.reads
        clerk = Clerk(written, more)
        if outside is not None:
            options["clerk"] = clerk
    found = fence(readable)
    if whole and not found.whole:
        raise NotFenced(found.kept)
    for kept in found.kept:
        notices.assume(f"{NOT}: {kept}")


def _prepare_charts() -> None:
    """Let matplotlib, if it is there, look for fonts and a place for its notes while it can."""
    with suppress(ImportError):
        import_module("matplotlib.font_manager")


def _readable(options: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files and folders that are named, and what belongs to them."""
    for word in _words(list(options.values())):
        for text in {word, word.removeprefix("file:"), word.rpartition(":")[0]}:
            path = Path(text) if text and "\0" not in text else None
            if path is None or not path.exists():
                continue
            yield path
            if path.name.endswith(SUFFIXES):
                yield from trees_of([path])
                yield from modules_beside(path)
    kernel = options.get("kernel", options.get("path"))
    if kernel is not None:  # a command that has no --modelled may boot it, or read it
        for modelled in {False, True} if "modelled" not in options else {options["modelled"]}:
            yield from files_of_kernel(kernel, modelled=modelled)
    for design in _words([options.get("design") or "default", options.get("designs")]):
        yield from files_of_design(design)


def _words(value: object) -> Iterator[str]:
    """Yield the words of a command line that came to some values."""
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _words(each)
