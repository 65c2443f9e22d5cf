# SPDX-License-Identifier: GPL-2.0-or-later
"""What decides how a kernel finalises its modules: CPU, command line, kernel symbols."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from archs import Arch
from archs.arch import Boot


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
    static_calls
        Kernel static calls that stand elsewhere than at their default: name -> the symbol of
        the function, or "" for none.
    flipped_keys
        Kernel static keys whose state is not the one they were built with.
    """

    features: frozenset[str] = frozenset()
    options: Mapping[str, str] = attrs.field(factory=dict)
    possible_cpus: int = 1
    symbols: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    static_calls: Mapping[str, str] = attrs.field(factory=dict)
    flipped_keys: frozenset[str] = frozenset()


def of_boot(arch: Arch, boot: Boot, symbols: Mapping[str, int]) -> Environment:
    """Return what a recorded boot was booted with, as its kernel would find out.

    Parameters
    ----------
    boot
        What the boot said about itself.
    symbols
        The kernel's symbols, where they were in that boot.
    """
    rules = arch.finalisation
    return Environment(
        features=rules.features(boot) if rules is not None else frozenset(),
        possible_cpus=boot.cpus,
        symbols=symbols,
    )
