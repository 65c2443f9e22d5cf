# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that patches a machine's text while it is live, put together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

from allocator import Execmem
from archs import Arch
from archs.text import TextPatching
from emulator.cpu import Cpu
from emulator.faults import BadCall
from kernels.modelled.services import Services
from kernels.modelled.text.ftrace import Replacement, Tracer
from kernels.modelled.text.jump_labels import StaticKey, StaticKeys
from kernels.modelled.text.kprobes import Prober
from kernels.modelled.text.patches import Patches, Running
from kernels.modelled.text.static_calls import StaticCall, StaticCallSites
from kernels.tracing import PatchRefused, TraceSite
from loader.loaded import LoadedModule


class LiveText:
    """Static keys, static calls, ftrace and kprobes of one machine.

    Parameters
    ----------
    arch, encoding
        The architecture, and its instructions.
    execmem, kernel
        What they work on.
    breakpoints
        Where a CPU that traps looks for who says how it goes on.
    modules
        Returns the modules that are loaded now.
    where
        Address -> name, for messages.
    running
        Yields the CPUs that are in a call, and the address at which those that wait do.
    """

    def __init__(
        self,
        arch: Arch,
        encoding: TextPatching,
        *,
        execmem: Execmem,
        kernel: Services,
        breakpoints: dict[int, Callable[[Cpu], int]],
        modules: Callable[[], Iterable[LoadedModule]],
        where: Callable[[int], str],
        running: Running,
    ) -> None:
        memory = execmem.memory
        self._memory = memory
        self._modules = modules
        self._trampolines = encoding.static_calls is not None

        def zero() -> int | None:
            calls = encoding.static_calls
            return None if calls is None else kernel.address(calls.zero)

        self.patches = Patches(execmem, where, running)
        self.static_keys = StaticKeys(encoding.jump_labels, memory, self.patches, modules)
        self.static_calls = StaticCallSites(
            encoding.static_calls, memory, self.patches, modules, zero
        )
        self.ftrace = Tracer(arch, encoding.ftrace, self.patches, kernel, running)
        self.kprobes = Prober(
            arch,
            encoding.kprobes,
            self.patches,
            kernel,
            breakpoints,
            modules,
            self._reserved,
        )

    def _reserved(self, module: LoadedModule, address: int, size: int) -> str:
        """Return which of the kernel's own rewrites text belongs to, or an empty string."""
        if self.static_keys.reserved(module, address, size):
            return "a static branch"
        if self.static_calls.reserved(module, address, size):
            return "a static call"
        return "a tracer's call site" if self.ftrace.inside(module, address) else ""

    # By name -----------------------------------------------------------------------------------

    def _module(self, name: str) -> LoadedModule:
        modules = {module.name: module for module in self._modules()}
        found = modules.get(name.replace("-", "_"))
        if found is None:
            raise BadCall(name, "no such module is loaded", ", ".join(sorted(modules)))
        return found

    def place(self, place: int | str) -> int:
        """Return the address that `MODULE:FUNCTION[+OFFSET]` names; BadCall where nothing is."""
        if isinstance(place, int):
            return place
        title, colon, rest = place.partition(":")
        if not colon or not rest:
            hint = "expected MODULE:FUNCTION[+OFFSET], or an address"
            raise BadCall(place, "names no place", hint)
        name, plus, offset = rest.partition("+")
        module = self._module(title)
        address = module.symbols.get(name)
        if address is None:
            close = difflib.get_close_matches(name, module.symbols, 3)
            hint = f"did you mean {', '.join(close)}?" if close else ""
            raise BadCall(place, f"module {module.name} has no such symbol", hint)
        try:
            return address + int(offset, 0) if plus else address
        except ValueError:
            raise BadCall(place, f"{offset!r} is no offset") from None

    def matching(self, pattern: str) -> list[tuple[LoadedModule, TraceSite]]:
        """Return the functions to trace that `MODULE[:GLOB]` names; PatchRefused for none."""
        title, _, glob = pattern.partition(":")
        module = self._module(title)
        return [(module, site) for site in self.ftrace.matching(module, glob or "*")]

    def replace(self, functions: Mapping[int | str, int | str]) -> Replacement:
        """Let calls of functions go to others; see `Machine.replace`."""
        chosen: list[tuple[LoadedModule, TraceSite, int]] = []
        held: list[tuple[LoadedModule, str]] = []
        for old, new in functions.items():
            address, there = self.place(old), self.place(new)
            module, provider = self._around(address), self._around(there)
            if module is None:
                raise PatchRefused(
                    "replace", address, self.patches.where(address), "it lies in no module"
                )
            sites = [site for site in self.ftrace.sites(module) if site.entry == address]
            if not sites:
                reason = "no call site for the tracer at its entry"
                raise PatchRefused("replace", address, self.patches.where(address), reason)
            chosen.append((module, sites[0], there))
            if provider is not None and provider is not module:
                held.append((provider, f"the replacement of {self.patches.where(address)}"))
        replacement = self.ftrace.replace(chosen)
        for provider, user in held:
            replacement.hold(provider, user)
        return replacement

    def _around(self, address: int) -> LoadedModule | None:
        return next((m for m in self._modules() if m.region_at(address) is not None), None)

    def static_key(self, name: str, address: int) -> StaticKey:
        """Return the static key at an address."""
        return StaticKey(name=name, address=address, keys=self.static_keys)

    def static_call(self, name: str, address_of: Callable[[str], int]) -> StaticCall:
        """Return a static call, given what knows the addresses of its key and trampoline."""
        trampoline = address_of(f"__SCT__{name}") if self._trampolines else 0
        return StaticCall(
            name=name,
            key=address_of(f"__SCK__{name}"),
            trampoline=trampoline,
            calls=self.static_calls,
            memory=self._memory,
        )
