# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong while a module is loaded: one family, with fields, all causes at once."""

from __future__ import annotations

import errno as numbers
from typing import ClassVar

import attrs

from allocator.errors import AllocationError, ExecmemError, printable
from archs.reloc import Reach

SHOWN = 20  # failures printed in full; the fields hold every one


class LoadError(ExecmemError):
    """A module was refused; memory, allocator and symbol tables are as before."""

    module: str
    _errno: ClassVar[int | None] = None

    @property
    def errno(self) -> int | None:
        """What the kernel returns, as a positive number; None: it is not the kernel that refuses."""
        return self._errno

    @property
    def line(self) -> str:
        """What the kernel writes to its log; empty for nothing."""
        return ""


@attrs.define(auto_exc=True, str=False)
class BadModule(LoadError):
    """The file is not a module that this kernel could load."""

    module: str
    where: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.module}: {self.where}: {self.reason}")


@attrs.define(auto_exc=True, str=False)
class BadFile(ExecmemError):
    """A file is not what it was given as.

    Parameters
    ----------
    name, where, reason
        The file, the place in it, and what is wrong there.
    """

    name: str
    where: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.where}: {self.reason}")


class BadKernel(BadFile):
    """The file is no kernel image that can be read; fields as of `BadFile`."""


class BadCore(BadFile):
    """The file is no core of a kernel that can be read; fields as of `BadFile`."""


@attrs.define(auto_exc=True, str=False)
class MissingDependency(LoadError):
    """Modules that this one needs are not there."""

    module: str
    missing: tuple[str, ...]
    symbols: tuple[str, ...]
    hint: str

    _errno: ClassVar[int | None] = numbers.ENOENT

    def __str__(self) -> str:
        text = f"{self.module}: missing dependency: {', '.join(self.missing)}"
        if self.symbols:
            text += f" (for {_names(self.symbols)})"
        return printable(f"{text}; hint: {self.hint}")


@attrs.define(auto_exc=True, str=False)
class NoModule(MissingDependency):
    """A module that was asked for by name is not there.

    Parameters
    ----------
    tree
        Where it was looked for; empty where there was nowhere to look.
    """

    tree: str = ""

    def __str__(self) -> str:
        where = f" in {self.tree}" if self.tree else ""
        return printable(f"no module {self.module}{where}{self.hint}")


@attrs.define(auto_exc=True, str=False)
class UnresolvedSymbols(LoadError):
    """Undefined symbols that nothing provides, every one of them."""

    module: str
    names: tuple[str, ...]
    hint: str

    _errno: ClassVar[int | None] = numbers.ENOENT

    @property
    def line(self) -> str:
        """What the kernel writes to its log."""
        title = self.module.split(".ko")[0].replace("-", "_")
        return "\n".join(f"{title}: Unknown symbol {name} (err -2)" for name in self.names)

    def __str__(self) -> str:
        count = len(self.names)
        noun = "symbol" if count == 1 else "symbols"
        names = _names(self.names)
        return printable(f"{self.module}: {count} unresolved {noun}: {names}; hint: {self.hint}")


def _names(names: tuple[str, ...], most: int = 50) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


@attrs.frozen(kw_only=True)
class RelocationFailure:
    """One relocation that cannot be applied, with everything needed to see why."""

    section: str
    offset: int
    reloc: str
    symbol: str
    containing: str
    reason: str
    place: int
    target: int
    value: int | None = None
    reach: Reach | None = None
    hint: str = ""

    def text(self, module: str) -> str:
        """Return the two lines that a person reads."""
        inside = f" (in {self.containing})" if self.containing else ""
        line = f"{module}: {self.section}+{self.offset:#x}{inside}: {self.reloc} against '{self.symbol}' "
        if self.value is not None and self.reach is not None:
            line += f"{self.reason}: {self.value:+#x} is not in {self.reach}"
        else:
            line += self.reason
        second = f"  place {self.place:#x}, target {self.target:#x}"
        line = printable(line)
        return f"{line}\n{second}; hint: {self.hint}" if self.hint else f"{line}\n{second}"


@attrs.define(auto_exc=True, str=False)
class RelocationError(LoadError):
    """Every relocation of a module that failed: the first thousand in full, and how many."""

    multiline: ClassVar[bool] = True

    module: str
    failures: tuple[RelocationFailure, ...]
    total: int

    _errno: ClassVar[int | None] = numbers.ENOEXEC

    def __str__(self) -> str:
        lines = [failure.text(self.module) for failure in self.failures[:SHOWN]]
        if self.total > SHOWN:
            more = f"{self.module}: and {self.total - SHOWN} more relocations"
            lines.append(printable(more))
        return "\n".join(lines)


@attrs.define(auto_exc=True, str=False)
class LivepatchError(LoadError):
    """Relocations of a livepatch that cannot be written; nothing was changed.

    Parameters
    ----------
    module
        What was to be loaded: the livepatch itself, or a module that it is for.
    patch, where, reason
        The livepatch, the place or symbol, and the rule.
    """

    module: str
    patch: str
    where: str
    reason: str

    _errno: ClassVar[int | None] = numbers.ENOEXEC

    def __str__(self) -> str:
        who = "" if self.patch == self.module else f"livepatch {self.patch}: "
        return printable(f"{self.module}: {who}{self.where}: {self.reason}")


@attrs.define(auto_exc=True, str=False)
class OutOfMemory(LoadError):
    """A region of the module found no room."""

    module: str
    cause: AllocationError

    _errno: ClassVar[int | None] = numbers.ENOMEM

    def __str__(self) -> str:
        return printable(f"{self.module}: {self.cause}")


@attrs.define(auto_exc=True, str=False)
class BadParameter(LoadError):
    """A `name=value` that the module does not take."""

    module: str
    parameter: str
    reason: str

    _errno: ClassVar[int | None] = numbers.EINVAL

    def __str__(self) -> str:
        return printable(f"{self.module}: parameter '{self.parameter}': {self.reason}")


@attrs.define(auto_exc=True, str=False)
class SymbolClash(LoadError):
    """The module exports names that are exported already (verify_exported_symbols)."""

    module: str
    names: tuple[str, ...]
    owners: tuple[str, ...]

    _errno: ClassVar[int | None] = numbers.ENOEXEC

    @property
    def line(self) -> str:
        """What the kernel writes to its log."""
        name, owner = self.names[0], self.owners[0]
        return f"{self.module}: exports duplicate symbol {name} (owned by {owner})"

    def __str__(self) -> str:
        pairs = ", ".join(f"{n} (by {o})" for n, o in zip(self.names, self.owners, strict=True))
        return printable(f"{self.module}: exports symbols that are exported already: {pairs}")


@attrs.define(auto_exc=True, str=False)
class InitFailed(LoadError):
    """The module's init returned an error; the module was taken out again."""

    module: str
    errno: int
    name: str
    cause: object = None  # what stopped before and led to this, in words

    def __str__(self) -> str:
        first = "" if self.cause is None else f"{self.cause}; then: "
        left = f"init returned -{self.errno} ({self.name}); the module was unloaded"
        return printable(f"{first}{self.module}: {left}")


@attrs.define(auto_exc=True, str=False)
class KernelRefused(LoadError):
    """A real kernel did not do what it was asked to do with a module.

    Parameters
    ----------
    module, operation
        Which, and the system call, or `init`.
    errno, name
        What that returned.
    log
        What the kernel said meanwhile.
    reason
        What is known of why, where the kernel says nothing.
    """

    module: str
    operation: str
    errno: int
    name: str
    log: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        said = f": {self.log[-1]}" if self.log else ""
        why = f", {self.reason}" if self.reason else ""
        return printable(f"{self.module}: {self.operation}: -{self.errno} ({self.name}){why}{said}")


@attrs.define(auto_exc=True, str=False)
class ModuleInUse(LoadError):
    """Unloading refused: somebody holds the module (EWOULDBLOCK), or it cannot go (EBUSY).

    Parameters
    ----------
    users
        Modules, and others, that use it.
    references
        What the guest holds beside them (try_module_get).
    permanent
        Whether it has an init and no exit.
    """

    module: str
    users: tuple[str, ...] = ()
    references: int = 0
    permanent: bool = False

    @property
    def errno(self) -> int:
        """What the kernel returns."""
        return numbers.EBUSY if self.permanent and not self.users else numbers.EAGAIN

    def __str__(self) -> str:
        if self.users:
            return printable(f"{self.module}: in use by {', '.join(self.users)}")
        if self.permanent:  # the kernel looks at that first
            text = "permanent: it has an init and no exit"
        else:
            plural = "" if self.references == 1 else "s"
            text = f"in use: the guest holds {self.references} reference{plural} (try_module_get)"
        return printable(f"{self.module}: {text}; hint: only force takes it out")


@attrs.define(auto_exc=True, str=False)
class ModuleStateError(LoadError):
    """An operation that the module's state does not allow."""

    module: str
    operation: str
    state: str

    _errno: ClassVar[int | None] = numbers.EEXIST

    def __str__(self) -> str:
        return printable(f"{self.module}: cannot {self.operation}: the module is {self.state}")
