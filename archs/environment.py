# SPDX-License-Identifier: GPL-2.0-or-later
"""What decides how a kernel finalises its modules: CPU, command line, kernel symbols.

A `Boot` is what a running kernel says about itself, in its own words; an `Environment` is
what follows from it for a module. How the one gives the other is each architecture's
business (`Arch.environment`): the kernel decides by CPU model, known bugs and
command line which mitigations are in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.versions import MODELLED, Version

PADDING = "__pfx_"


@attrs.frozen(kw_only=True)
class Boot:
    """A kernel's own account of one boot.

    Parameters
    ----------
    command_line
        /proc/cmdline.
    cpuinfo
        /proc/cpuinfo; empty where it is not known.
    vulnerabilities
        /sys/devices/system/cpu/vulnerabilities: name -> text; what is missing is derived.
    model
        The emulator's name of the CPU model, where there is no cpuinfo.
    possible_cpus
        CPUs that may ever come online.
    symbols
        Kernel symbols -> address.
    console
        The console's log.
    config
        The kernel's configuration, as far as it is known: CONFIG_NAME -> value.
    version
        Of Linux.
    capabilities
        What the kernel found the CPU to have, by its own numbers; None where nobody kept them.
    return_thunk
        x86-64: the return thunk in force, where the kernel says it; else empty.
    """

    command_line: str = ""
    cpuinfo: str = attrs.field(default="", repr=False)
    vulnerabilities: Mapping[str, str] = attrs.field(factory=dict)
    model: str = ""
    possible_cpus: int = 1
    symbols: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    console: str = attrs.field(default="", repr=False)
    config: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    version: Version = MODELLED
    capabilities: frozenset[int] | None = attrs.field(default=None, repr=False)
    return_thunk: str = ""

    @cached_property
    def cpu(self) -> Mapping[str, str]:
        """The fields of the first CPU in `cpuinfo`."""
        first = self.cpuinfo.split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
        return {name.strip(): value.strip() for name, _, value in pairs}

    @cached_property
    def options(self) -> Mapping[str, str]:
        """The command line's words: `name=value` or `name`; the last of a name counts."""
        pairs = (word.partition("=") for word in self.command_line.split())
        return {name: value for name, _, value in pairs}


class SymbolNeeded(LookupError):
    """Finalisation needs a kernel symbol that the environment does not have."""


@attrs.frozen(kw_only=True)
class Environment:
    """One boot, as far as module finalisation can see it.

    Parameters
    ----------
    features
        The kernel's names of the CPU capabilities and mitigations in force, as the
        architecture's record spells them ("retpoline", "bmi2").
    options
        Choices that are more than on or off, by name ("return_thunk": a symbol's name).
    possible_cpus
        CPUs that may ever come online.
    symbols
        Kernel symbols -> address, those that modules do not name included.
    version
        Of Linux.
    capabilities
        What the CPU has and the kernel decided, by the numbers of tables in modules of that
        version; None: `features` say it, in 6.12's numbers.
    static_keys
        Kernel's and other modules' static keys that are not as they were compiled: name -> on;
        an element of an array is `NAME+0xOFFSET`.
    static_calls
        What static calls call, where it is not a tracepoint's default: name -> address of the
        function, 0 for nothing.
    """

    features: frozenset[str] = frozenset()
    options: Mapping[str, str] = attrs.field(factory=dict)
    possible_cpus: int = 1
    symbols: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    static_calls: Mapping[str, int] = attrs.field(factory=dict)
    static_keys: Mapping[str, bool] = attrs.field(factory=dict)
    version: Version = MODELLED
    capabilities: frozenset[int] | None = None

    def symbol(self, name: str) -> int:
        """Return a kernel symbol's address; SymbolNeeded where there is none."""
        if name not in self.symbols:
            raise SymbolNeeded(name)
        return self.symbols[name]

    @cached_property
    def padded(self) -> NDArray[np.uint64]:
        """Addresses of the kernel's functions that have padding in front, ascending.

        The padding has a symbol of its own, `__pfx_NAME` (CONFIG_PREFIX_SYMBOLS).
        """
        names = [name[len(PADDING) :] for name in self.symbols if name.startswith(PADDING)]
        found = [self.symbols[name] for name in names if name in self.symbols]
        return np.unique(np.array(found, np.uint64))
