# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine needs of any kernel that answers its modules, modelled or booted.

The machine runs guest code, holds memory and links modules; a kernel gives symbols their
addresses, keeps what guest and user see of modules, and writes the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from allocator.types import Interval
from archs import Arch
from kernels.log import Log
from kernels.registry import Registry
from loader.loaded import LoadedModule


@runtime_checkable
class ModuleStates(Protocol):
    """What a kernel is told of a module's life, and knows of its struct module."""

    def coming(self, loaded: LoadedModule) -> None:
        """Note that a module is in memory and its init is about to be called."""
        ...

    def live(self, loaded: LoadedModule) -> None:
        """Note that a module's init has returned."""
        ...

    def going(self, loaded: LoadedModule) -> None:
        """Note that a module's exit is about to be called."""
        ...

    def gone(self, loaded: LoadedModule) -> None:
        """Note that a module is about to leave memory."""
        ...

    def entry(self, loaded: LoadedModule, member: str) -> int:
        """Return what `init` or `exit` points at; 0 for nothing."""
        ...

    def held(self, loaded: LoadedModule) -> int:
        """Return how many references the guest holds, beside those of other modules."""
        ...


@runtime_checkable
class Kernel(Protocol):
    """A kernel under modules."""

    @property
    def arch(self) -> Arch:
        """What it is built for."""
        ...

    @property
    def image(self) -> Interval:
        """Where it lies."""
        ...

    @property
    def modules(self) -> ModuleStates:
        """What is told of modules as they come and go."""
        ...

    @property
    def registry(self) -> Registry:
        """What modules have registered."""
        ...

    # Symbols -------------------------------------------------------------------------------

    @property
    def symbols(self) -> Mapping[str, int]:
        """The symbols that have an address by now."""
        ...

    def knows(self, name: str) -> bool:
        """Return whether the kernel has, or was given, `name`."""
        ...

    def address(self, name: str, *, called: bool = True) -> int:
        """Return the address of a symbol; see `loader.symbols.KernelSymbols`."""
        ...

    def name_at(self, address: int) -> str | None:
        """Return the kernel symbol at or around `address`, for messages."""
        ...

    def supply(
        self, name: str, behaviour: int | Callable[..., int | None], prototype: str | None = None
    ) -> None:
        """Let a caller stand in for a function; ValueError where that is not possible."""
        ...

    # Calls and memory ------------------------------------------------------------------------

    @property
    def return_address(self) -> int:
        """Where a function returns to that the machine calls."""
        ...

    def reset_cpu(self) -> None:
        """Give this CPU the registers of a kernel thread that nobody has used yet."""
        ...

    def alloc(self, size: int) -> int:
        """Return the address of `size` zeroed bytes (kmalloc), or 0."""
        ...

    def free(self, address: int) -> bool:
        """Free what `alloc` returned; False where it is no object."""
        ...

    def mark(self) -> Any:
        """Return the state that loading a module changes, for `roll_back`."""
        ...

    def roll_back(self, mark: Any) -> None:
        """Go back to what `mark` returned, after a load that failed."""
        ...

    # The log ---------------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """The kernel log."""
        ...

    def print(self, message: bytes, level: int | None = None) -> None:
        """Append to the kernel log."""
        ...

    def flush_log(self) -> None:
        """Complete a line that no newline ended."""
        ...
