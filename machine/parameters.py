# SPDX-License-Identifier: GPL-2.0-or-later
"""Module parameters: what a module declares, set as its kernel would set it."""

from __future__ import annotations

from collections.abc import Mapping

from allocator import AccessError, KernelMemory
from kernels.errors import errno_name
from kernels.modelled.api.params import FREE, SET, ModuleParameter, parameters
from kernels.modelled.kernel import Kernel
from kernels.prototypes import parse
from loader.errors import BadParameter
from loader.loaded import LoadedModule, LoadedSection
from machine.calling import Caller


class Parameters:
    """Parameters of the modules of one machine.

    Parameters
    ----------
    memory
        Where the modules are.
    kernel
        Has the operations of the types.
    caller
        Calls them.
    """

    def __init__(self, memory: KernelMemory, kernel: Kernel, caller: Caller) -> None:
        self._memory = memory
        self._kernel = kernel
        self._caller = caller

    def of(self, loaded: LoadedModule) -> tuple[ModuleParameter, ...]:
        """Return what a module's `__param` table declares; nothing where no types tell."""
        table = _table(loaded)
        with self._kernel.whose.by(loaded.layouts):
            if table is None or not self._kernel.layouts.has("kernel_param"):
                return ()
            return parameters(self._kernel, self._memory, table.address, table.size)

    def set(self, loaded: LoadedModule, params: Mapping[str, object]) -> None:
        """Give each parameter to its own `set` operation, as parse_args() does."""
        if not params:
            return
        if _table(loaded) is not None:
            with self._kernel.whose.by(loaded.layouts):
                self._kernel.layouts.size_of("kernel_param")
        declared = {p.name: p for p in self.of(loaded)}
        for name, value in params.items():
            parameter = declared.get(name.replace("-", "_"))
            if parameter is None:
                takes = ", ".join(sorted(declared)) or "none"
                raise BadParameter(loaded.name, name, f"unknown; the module takes {takes}")
            text = _text(value)
            buffer = self._caller.alloc(text.encode() + b"\0")
            try:
                setter = self._kernel.word(parameter.ops + SET(self._kernel))
                raw = self._caller.call(setter, buffer, parameter.address)
            except AccessError:
                reason = "this kernel does not have its operations, " + (
                    self._kernel.name_at(parameter.ops) or f"{parameter.ops:#x}"
                )
                raise BadParameter(loaded.name, name, reason) from None
            finally:
                self._caller.free(buffer)
            result = parse("int set(void)").result.from_register(raw)
            if result < 0:
                kind = _type(loaded, parameter.name)
                reason = f"'{text}' was refused: -{-result} ({errno_name(-result)})"
                raise BadParameter(loaded.name, name, reason + (kind and f", expected {kind}"))

    def destroy(self, loaded: LoadedModule) -> None:
        """Let each parameter free what its `set` allocated (destroy_params)."""
        for parameter in self.of(loaded):
            if self._kernel.unknown_at(parameter.ops) is None:
                release = self._kernel.word(parameter.ops + FREE(self._kernel))
                if release:
                    self._caller.call(release, parameter.arg)


def _table(loaded: LoadedModule) -> LoadedSection | None:
    """Return the section that declares parameters; None where a module has none."""
    found = (s for s in loaded.sections.values() if s.name == "__param" and s.size)
    return next(found, None)


def _type(loaded: LoadedModule, name: str) -> str:
    """Return what MODULE_PARM_TYPE says of a parameter; empty where it says nothing."""
    section, start = loaded.view.section(".modinfo"), f"parmtype={name}:".encode()
    entries = bytes(loaded.view.contents(section)).split(b"\0") if section is not None else []
    found = next((e for e in entries if e.startswith(start)), start)
    return found[len(start) :].decode("utf-8", "replace")


def _text(value: object) -> str:
    """Return a parameter's value as `insmod` would spell it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list | tuple):
        return ",".join(_text(item) for item in value)
    return str(value)
