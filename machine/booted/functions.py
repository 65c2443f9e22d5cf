# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of a booted kernel and of its modules: by name, by address, by what they take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase, translate
from functools import cached_property

import attrs

from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.booted.signatures import prototype_of
from kernels.prototypes import Prototype
from kernels.tracing import PatchRefused
from loader.btf import BadBtf, Btf
from loader.loaded import State
from machine.booted.module import BootedModule

VMLINUX = "vmlinux"  # what the kernel itself is called where modules have names
LONGEST = 16  # bytes of an instruction, with some to spare
_MAGIC = frozenset("*?[")
_TEXT = (("_stext", "_etext"), ("_text", "_etext"))
# Symbols in text that begin no function: paddings, marks of sections, labels of the compiler's.
_NO_FUNCTIONS = ("__pfx_", "__cfi_", "__start_", "__stop_", "$", ".L", "L0")
_MARKS = ("_start", "_begin", "_end", "_text", "_stext", "_etext")


@attrs.frozen(eq=False)
class Function:
    """A function that is in memory.

    Parameters
    ----------
    name
        Its symbol.
    address, size
        Where it is, up to the next symbol.
    module
        Whose it is; None: the kernel's own.
    """

    name: str
    address: int
    size: int
    module: BootedModule | None = None

    @property
    def owner(self) -> str:
        """The module's name, or `vmlinux`."""
        return VMLINUX if self.module is None else self.module.name

    @property
    def there(self) -> bool:
        """Whether it is in memory now: a module may have gone, or be back."""
        return self.module is None or self.module.state is State.LIVE

    def where(self, address: int) -> str:
        """Return `name+0xoff [module]` of an address in it."""
        text = f"{self.name}+{address - self.address:#x}"
        return text if self.module is None else f"{text} [{self.module.name}]"


@attrs.frozen(eq=False)
class Spot:
    """A place in text.

    Parameters
    ----------
    address
        Where.
    function
        What it lies in.
    """

    address: int
    function: Function

    @property
    def where(self) -> str:
        """Its name, for messages."""
        return self.function.where(self.address)


class Functions:
    """The functions of a machine.

    Parameters
    ----------
    kernel
        Whose.
    modules
        Returns the modules that are loaded now, by name.
    """

    def __init__(
        self, kernel: BootedKernel, modules: Callable[[], Mapping[str, BootedModule]]
    ) -> None:
        self._kernel = kernel
        self._modules = modules
        self._types: dict[BootedModule, Btf | None] = {}

    @cached_property
    def text(self) -> range:
        """The addresses of the kernel's text."""
        symbols = self._kernel.symbols
        for first, last in _TEXT:
            if first in symbols and last in symbols:
                return range(symbols[first], symbols[last])
        return range(0)

    # By name -----------------------------------------------------------------------------------

    def module(self, name: str) -> BootedModule:
        """Return a module that is loaded; BadCall for none of the name."""
        modules = self._modules()
        found = modules.get(name.replace("-", "_"))
        if found is None:
            raise BadCall(name, "no such module is loaded", ", ".join(sorted(modules)))
        return found

    def spot(self, what: str, place: int | str) -> Spot:
        """Return the place in a function that an address or `[MODULE:]FUNCTION[+OFFSET]` names.

        Without a module it is one of the kernel's, or else of the only module that has one.

        Raises
        ------
        BadCall, PatchRefused
            There is none, or it is no text; `what` was to be done there.
        """
        if isinstance(place, int):
            function = self.around(place)
            if function is None:
                reason = "it lies in no function of the kernel or a module"
                raise PatchRefused(what, place, self.name(place), reason)
            return Spot(place, function)
        title, colon, rest = place.rpartition(":")
        name, plus, offset = rest.partition("+")
        if not name or (colon and not title):
            raise BadCall(place, "names no place", "expected [MODULE:]FUNCTION[+OFFSET]")
        try:
            further = int(offset, 0) if plus else 0
        except ValueError:
            raise BadCall(place, f"{offset!r} is no offset") from None
        begin = self._address(place, title, name)
        function = self.around(begin + further)
        if function is None:
            raise PatchRefused(what, begin + further, place, "it lies in no function")
        if function.address == begin:  # it may have several names
            function = attrs.evolve(function, name=name)
        return Spot(begin + further, function)

    def entry(self, what: str, place: int | str) -> Spot:
        """Return the place of a function's first instruction; PatchRefused where it is none."""
        spot = self.spot(what, place)
        if spot.address != spot.function.address:
            raise PatchRefused(what, spot.address, spot.where, "no function begins there")
        return spot

    def _address(self, place: str, title: str, name: str) -> int:
        symbols = self._kernel.symbols
        if title and title != VMLINUX:
            return self._of(self.module(title), place, name)
        if name in symbols:
            return symbols[name]
        if not title:
            having = [m for m in self._modules().values() if name in m.entries]
            if len(having) == 1:
                return self._of(having[0], place, name)
            if having:
                hint = f"write {having[0].name}:{name}"
                names = ", ".join(sorted(m.name for m in having))
                raise BadCall(place, f"several modules have it: {names}", hint)
        raise BadCall(place, f"Linux {self._kernel.release} has no such symbol, nor a module")

    def _of(self, module: BootedModule, place: str, name: str) -> int:
        if name not in module.symbols:
            close = difflib.get_close_matches(name, module.symbols, 3)
            hint = f"did you mean {', '.join(close)}?" if close else ""
            raise BadCall(place, f"module {module.name} has no such symbol", hint)
        return module.address_of(name)

    def matching(self, pattern: str) -> list[Function]:
        """Return the functions that `MODULE`, `MODULE:GLOB` or `GLOB` (of the kernel) names.

        PatchRefused where no function matches, BadCall where there is no such module.
        """
        title, colon, glob = pattern.rpartition(":")
        if not colon and pattern.replace("-", "_") in self._modules():
            title, colon, glob = pattern, ":", "*"
        if not glob or (colon and not title):
            raise BadCall(pattern, "names no functions", "expected MODULE, MODULE:GLOB or GLOB")
        if not title or title == VMLINUX:
            every, whose = self._own(glob), f"Linux {self._kernel.release}"
        else:
            module = self.module(title)
            every, whose = self._functions_of(module), f"module {module.name}"
            if _MAGIC & set(glob):
                every = [each for each in every if not each.name.startswith(_NO_FUNCTIONS)]
        found = {each.address: each for each in every if fnmatchcase(each.name, glob)}
        if not found:
            names = sorted(each.name for each in every)
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            hint = f"those that can be traced: {some}" if names else ""
            if not colon:
                hint = f"functions of a module are MODULE:{glob}"
            raise PatchRefused(
                "trace", 0, pattern, f"no function matches {glob!r} in {whose}", hint
            )
        return list(found.values())

    def own(self, pattern: str) -> Iterator[tuple[str, int]]:
        """Yield name and address of the kernel's own functions that a regular expression matches."""
        for name, address in self._kernel.symbols.matching(pattern):
            if address in self.text:
                yield name, address

    def _own(self, glob: str) -> list[Function]:
        symbols, text = self._kernel.symbols, self.text
        if not _MAGIC & set(glob):
            chosen = [(glob, symbols[glob])] if glob in symbols else []
        else:
            fits = re.compile(translate(glob)).match
            chosen = [
                (name, address)
                for name, address in symbols.every()
                if fits(name)
                and not name.startswith(_NO_FUNCTIONS)
                and not (name.startswith("__") and name.endswith(_MARKS))
            ]
        found = []
        for name, address in chosen:
            around = symbols.around(address) if address in text else None
            if around is not None and around[2]:
                found.append(Function(name, address, around[2]))
        return found

    def _functions_of(self, module: BootedModule) -> list[Function]:
        every = [Function(name, at, size, module) for at, size, name in module.spans]
        return [each for each in every if each.size and self._stays(module, each.address)]

    def _stays(self, module: BootedModule, address: int) -> bool:
        """Return whether text of a module is still there: init text is not."""
        return any(
            kind.is_text and at.address <= address < at.address + at.size
            for kind, at in module.regions.items()
        )

    # By address --------------------------------------------------------------------------------

    def around(self, address: int) -> Function | None:
        """Return the function that an address lies in; None where it lies in none."""
        for module in self._modules().values():
            for each in self._functions_of(module):
                if each.address <= address < each.address + each.size:
                    return each
        if address not in self.text:
            return None
        found = self._kernel.symbols.around(address)
        if found is None or found[1] >= found[2]:
            return None
        return Function(found[0], address - found[1], found[2])

    def is_text(self, address: int) -> bool:
        """Return whether an address lies in text of the kernel or a module."""
        return address in self.text or any(
            self._stays(module, address) for module in self._modules().values()
        )

    def name(self, address: int) -> str:
        """Return what lies at an address, for messages."""
        return self._kernel.name_at(address) or f"{address:#x}"

    # What they take ----------------------------------------------------------------------------

    def prototype(self, function: Function) -> Prototype | None:
        """Return a function's prototype by the kernel's or the module's types; None: not known."""
        types = self.types_of(function.module)
        return None if types is None else prototype_of(types, function.name)

    def types_of(self, module: BootedModule | None) -> Btf | None:
        """Return the types of a module, or of the kernel; None where they are not known."""
        types = self._kernel.standing.types
        if module is None:
            return types
        if module not in self._types:
            try:
                found = module.types_over(types, self._kernel.release)
            except BadBtf:
                found = None
            self._types[module] = found
        return self._types[module]

    @property
    def btf(self) -> dict[str, Btf]:
        """The types that are known: of the kernel, and of modules by their names."""
        owners: dict[str, BootedModule | None] = {VMLINUX: None, **self._modules()}
        found = {name: self.types_of(module) for name, module in owners.items()}
        return {name: types for name, types in found.items() if types is not None}
