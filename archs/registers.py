# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of an architecture, for who looks at a CPU that has stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

Place: TypeAlias = int | tuple[int, int, int, int, int]


@attrs.frozen(kw_only=True)
class Registers:
    """The registers that can be asked for, but the program counter (Unicorn's names, lower case).

    Parameters
    ----------
    general
        Those that a program computes with; 64 bits unless `widths` says otherwise.
    float, vector, system
        Other ones.
    places
        Those that Unicorn has no name for: of model specific registers their number, else op0,
        op1, CRn, CRm, op2.
    widths
        Name -> bits, where it is not 64.
    stack
        Of registers that are a stack: how their names begin, how those of the places begin, and
        which register says from which bit on which place is the top.
    enabled
        Register -> another, and bits of that, without which the emulator does not know it.
    unlock
        Which register must have which value so that those of the system can be reached; None:
        they always can.
    repeated
        Returns of an instruction's bytes the register that counts how often it repeats itself,
        empty where something else ends it too; None: it does not repeat itself.
    """

    general: tuple[str, ...] = ()
    float: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    places: Mapping[str, Place] = attrs.field(factory=dict)
    widths: Mapping[str, int] = attrs.field(factory=dict)
    stack: tuple[str, str, str, int] | None = None
    enabled: Mapping[str, tuple[str, int]] = attrs.field(factory=dict)
    unlock: tuple[str, int] | None = None
    repeated: Callable[[bytes], str | None] = lambda _code: None
