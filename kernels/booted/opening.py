# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that stands: from the cache where it is there, else booted now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache as memo
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from archs import Arch
from archs import arch as arch_by_name
from emulator.boards import board_of
from emulator.boards.board import Board
from emulator.ram import Frozen
from kernels.booted import cache
from kernels.booted.starting import Parameters, Started, start
from kernels.booted.symbols import Symbols
from loader.btf import Btf
from loader.errors import BadKernel
from loader.kernel.find import find_kernel
from loader.kernel.image import KernelImage

SECONDS = 600.0  # of the host, that a boot may take: it takes some ten
_PACKAGES = ("archs", "emulator", "emulator/boards", "emulator/hardware", "kernels/booted")
_NAMES, _ADDRESSES, _TYPES = "names", "addresses", "types"


@attrs.frozen
class Kept:
    """A kernel that nobody names a file of: it is in the cache, or not to be had.

    Parameters
    ----------
    image
        SHA-256 of its file.
    name
        What the file was called.
    """

    image: str
    name: str


class Standing:
    """A kernel in a computer, and what its file says.

    Parameters
    ----------
    started
        Where it stands.
    facts
        Kernel, architecture, parameters: what an entry of the cache tells.
    symbols
        Its own.
    types
        The bytes of its BTF; empty where it has none.
    read
        Returns its image, which takes a second.
    parameters
        What else its boot followed from.

    `base` is its memory as it was then.
    """

    def __init__(
        self,
        started: Started,
        facts: Mapping[str, Any],
        symbols: Symbols,
        types: bytes,
        read: Callable[[], KernelImage],
        parameters: Parameters,
    ) -> None:
        self.started = started
        self.facts = facts
        self.parameters = parameters
        ram = started.board.ram
        self.base: Frozen = ram.freeze() if ram.frozen is None else ram.frozen
        started.board.forget_addresses()  # of pages that may be written without a copy
        self.symbols = symbols
        self._types = types
        self._read = read

    @property
    def board(self) -> Board:
        """The computer."""
        return self.started.board

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return self.started.board.arch

    @cached_property
    def image(self) -> KernelImage:
        """The kernel's file, taken apart."""
        return self._read()

    @cached_property
    def digest(self) -> str:
        """A digest of its memory as it was then; takes a quarter of a second."""
        return self.base.digest()

    @cached_property
    def types(self) -> Btf | None:
        """The kernel's types; None where it has none."""
        return Btf.parse(self._types, name="the kernel's BTF") if self._types else None


def open_kernel(
    kernel: str | Path | KernelImage | Kept,
    parameters: Parameters | None = None,
    *,
    arch: Arch | None = None,
    keep: bool = True,
    seconds: float | None = SECONDS,
    on_boot: Callable[[str], object] | None = None,
    on_console: Callable[[bytes], object] | None = None,
) -> Standing:
    """Return a kernel that stands in its first process.

    Parameters
    ----------
    kernel
        An image, a package, a tree, or `running`; or an image that was read already, or one that
        the cache may have.
    parameters
        What else its boot follows from.
    arch
        What it must be for; None: any.
    keep
        Whether the cache is used.
    seconds
        Time of the host that a boot may take; None: any.
    on_boot
        Called with the kernel's release before it boots, as that takes a while.
    on_console
        Called with what it prints while it boots.

    Raises
    ------
    BadKernel, BadModule
        There is none that can be read, or it is for another architecture.
    BootFailed
        It did not come up.
    LevelMissing
        Kernels of its architecture cannot be booted.
    """
    parameters = parameters or Parameters()
    if isinstance(kernel, Kept):
        digest, read = kernel.image, partial(_nowhere, kernel)
    else:
        raw = kernel.data if isinstance(kernel, KernelImage) else find_kernel(kernel).image[1]
        digest, read = hashlib.sha256(raw).hexdigest(), partial(_read, kernel)
    if keep:
        # The CPU that a kernel is given where nobody says so is the one of no name.
        for words in (parameters, attrs.evolve(parameters, cpu="")):
            found = _fetch(cache.key_of(digest, words, _product()), words, read)
            if found is not None and parameters.cpu in ("", found.board.cpu):
                _check(found.arch, arch, found.facts["name"])
                return found
    booted = read()
    _check(booted.arch, arch, booted.name)
    if parameters.cpu == booted.arch.boots.models[0]:
        parameters = attrs.evolve(parameters, cpu="")
    if on_boot is not None:
        on_boot(booted.release or booted.name)
    started = start(booted, parameters, seconds=seconds, on_console=on_console)
    board = started.board
    facts = {
        "name": booted.name,
        "release": booted.release,
        "version": list(booted.version or ()),
        "build_id": booted.build_id,
        "arch": booted.arch.name,
        "cpu": board.cpu,
        "memory": board.ram.size,
        "command_line": parameters.command_line,
        "kaslr": parameters.kaslr,
        "slide": started.slide,
        "image": digest,
    }
    # What is in the lower half are per-cpu variables, by their offsets.
    addresses = booted.symbols.addresses.copy()
    addresses[addresses >> np.uint64(63) != 0] += np.uint64(started.slide)
    symbols = Symbols.of(booted.symbols.names, addresses)
    types = booted.btf_blob() or b""
    if keep:
        files_of = {
            _NAMES: symbols.text,
            _ADDRESSES: symbols.addresses.tobytes(),
            _TYPES: types,
        }
        key = cache.key_of(digest, parameters, _product())
        cache.store(key, board, started.place, facts, files_of)
    board.wires.on_console = None
    return Standing(started, facts, symbols, types, lambda: booted, parameters)


def _read(kernel: str | Path | KernelImage) -> KernelImage:
    return kernel if isinstance(kernel, KernelImage) else find_kernel(kernel).read()


def _nowhere(kernel: Kept) -> KernelImage:
    reason = f"is not kept booted here (SHA-256 {kernel.image[:16]}...): give its file with kernel="
    raise BadKernel(kernel.name, "file", reason)


def _check(found: Arch, wanted: Arch | None, name: str) -> None:
    if wanted is not None and found is not wanted:
        raise BadKernel(name, "architecture", f"is for {found.name}, not for {wanted.name}")


def _fetch(key: str, parameters: Parameters, read: Callable[[], KernelImage]) -> Standing | None:
    entry = cache.look(key)
    if entry is None:
        return None
    try:
        arch = arch_by_name(entry.facts["arch"])
        memory, _ = int(entry.facts["memory"]), int(entry.facts["slide"])
    except (KeyError, ValueError, TypeError):
        return None
    board = board_of(arch, memory, parameters.cpu)
    place = cache.fetch(entry, board)
    if place is None:
        return None
    try:
        symbols = Symbols(
            (entry.folder / _NAMES).read_bytes(),
            np.frombuffer((entry.folder / _ADDRESSES).read_bytes(), np.uint64),
        )
        types = (entry.folder / _TYPES).read_bytes()
    except (OSError, ValueError):
        return None
    started = Started(board=board, place=place, slide=int(entry.facts["slide"]))
    return Standing(started, entry.facts, symbols, types, read, parameters)


@memo
def _product() -> str:
    """Return what tells this code from another: its version, and its files' dates."""
    try:
        stated = version("execmem")
    except PackageNotFoundError:
        stated = ""
    root = Path(__file__).parents[2]
    files = [
        (path.name, found.st_size, found.st_mtime_ns)
        for package in _PACKAGES
        for path in sorted((root / package).glob("*.py"))
        for found in (path.stat(),)
    ]
    return hashlib.sha256(json.dumps([stated, files]).encode()).hexdigest()
