# SPDX-License-Identifier: GPL-2.0-or-later
"""`--sandbox` of a command: its process gives up what it does not need for the files it was named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from emulator import process
from execmem import notices
from execmem.own_kernel import own_kernel_of
from execmem.worker.fence import NotFenced, fence
from execmem.worker.reading import files_of_design, files_of_kernel, modules_beside, trees_of
from loader.files import SUFFIXES
from loader.kernel.own import AUTO

NOT = "the sandbox does not take away"


def fence_command(options: dict[str, Any], *, whole: bool) -> None:
    """Give up, for this process and for good, what a command with some options does not need.

    Parameters
    ----------
    options
        As they came from the command line; a kernel that is to be looked for is found.
    whole
        Whether to refuse where the host keeps something.

    Raises
    ------
    NotFenced
        The host keeps something, and must not.
    """
    if process.box is None:
        raise click.UsageError("--sandbox: this process is a script's; start execmem as a program")
    if options.get("kernel") == AUTO:
        module = next(iter(_words(options.get("module", options.get("modules", "")))), "")
        options["kernel"] = own_kernel_of(module, options)
    found = fence(_readable(options))
    if whole and not found.whole:
        raise NotFenced(found.kept)
    for kept in found.kept:
        notices.assume(f"{NOT}: {kept}")


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
    if options.get("kernel") is not None:
        yield from files_of_kernel(options["kernel"], modelled=options.get("modelled", True))
    yield from files_of_design(options.get("design") or "default")


def _words(value: object) -> Iterator[str]:
    """Yield the words of a command line that came to some values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _words(each)
