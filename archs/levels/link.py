# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *links*: what relocations mean, and the instructions that they fill."""

from __future__ import annotations

from functools import cached_property

import attrs

from archs.dialect import NATIVE, Dialect
from archs.op import Op
from archs.reloc import Reach, Reloc, Rows, data


@attrs.frozen
class Fill:
    """One relocation that fills a field: its number, bytes from the instruction to P, and A."""

    relocation: int
    at: int = 0
    addend: int = 0


@attrs.frozen(kw_only=True)
class Probe:
    """How to execute an instruction in order to see how far it gets.

    Parameters
    ----------
    code
        The instruction, or the pair, with empty fields.
    fills
        The relocations that fill them.
    setup
        Code that runs right before it, so that a conditional branch is taken.
    result
        Register that holds the formed address; None: the guest goes there.
    """

    code: bytes
    fills: tuple[Fill, ...]
    setup: bytes = b""
    result: str | None = None


@attrs.frozen(kw_only=True)
class Branch:
    """An instruction that holds a displacement, and how far it gets.

    Parameters
    ----------
    mnemonic
        As the assembler spells it.
    reach
        Displacements, from the instruction's own address.
    what
        What it is used for: call, jump, branch, data.
    probe
        How to execute it; None where nobody can.
    """

    mnemonic: str
    reach: Reach
    what: str
    probe: Probe | None = None


@attrs.frozen(kw_only=True)
class Link:
    """What linking needs: relocations, and the instructions that they fill.

    Parameters
    ----------
    relocations
        Every relocation the psABI defines for ET_REL, keyed by number.
    clean_target
        Whether the loader refuses a place that is not zero before relocation.
    dialect
        How its object files are written.
    branches
        Instructions that hold a displacement.
    code_model
        What compilers assume of where code and data are, for people.
    code_model_option
        The compiler's option for it.
    code_model_absolute
        Relocations narrower than an address by which its code holds absolute addresses.
    """

    relocations: Rows = attrs.field(converter=Rows, repr=False)
    clean_target: bool
    dialect: Dialect = NATIVE
    branches: tuple[Branch, ...] = ()
    code_model: str = ""
    code_model_option: str = ""
    code_model_absolute: tuple[int, ...] = ()

    @cached_property
    def pointers(self) -> tuple[int, ...]:
        """Relocations that store an address where data holds one."""
        address, bits = data(self.dialect.word, self.dialect.order), self.dialect.bits
        return tuple(
            number
            for number, row in self.relocations.items()
            if row.op == attrs.evolve(Op.ABS, name=row.op.name, bits=row.op.bits)
            and row.op.bits >= bits
            and row.parts == address
        )

    @property
    def calls(self) -> list[int]:
        """Relocations of the instructions that call and jump to functions."""
        probes = [b.probe for b in self.branches if b.what in ("call", "jump") and b.probe]
        return sorted({fill.relocation for probe in probes for fill in probe.fills})


def rows(*table: Reloc) -> Rows:
    """Return a relocation table keyed by number; refuse a number that occurs twice."""
    keyed = Rows({row.number: row for row in table})
    if len(keyed) != len(table):
        raise ValueError("a relocation number occurs twice")
    return keyed
