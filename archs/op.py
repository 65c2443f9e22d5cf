# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relocation computes, as data.

X is a sum of terms. A term adds letters and a constant, is rounded down to a granule, and
counts once or minus once: `Page(S+A)-Page(P)` is two of them. There is one function that
computes X, of arrays for the engine and of whole numbers for whoever tells about one
relocation; formulas, how X follows when something moves, and what X is read from are derived
from the terms, so nothing about an operation is written down twice.

The letters are the psABIs': the symbol's value S and size Z, the addend A, the place P, and V
for what the relocations at one place have accumulated so far. GP is what an object's small data
is counted from.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK, PAGE_SIZE

Letters: TypeAlias = tuple[str, ...]
Number = TypeVar("Number", int, NDArray[np.uint64])

EVERY_BIT = ADDRESS_MASK
# What symbols bring: the engine gets these sums ready-made, as the target.
TARGETS: tuple[Letters, ...] = (("S", "A"), ("Z", "A"))
_ADDRESSES = ("S", "P", "GP")


def signed(x: int) -> int:
    """Return a 64-bit pattern as a signed number.

    >>> signed(0xffff_ffff_ffff_fffc)
    -4
    """
    x &= ADDRESS_MASK
    return x - (1 << 64) if x >> 63 else x


class OpKind(enum.Enum):
    """What X is."""

    NOTHING = "nothing"
    ADDRESS = "an address"
    DISPLACEMENT = "a distance"
    REGION = "an offset in the region around the place"
    SIZE = "a size"
    ACCUMULATED = "a sum of several records"
    PAIRED = "another record's"


@attrs.frozen
class Term:
    """A part of the sum.

    Parameters
    ----------
    sign
        1 or -1.
    letters
        What is added up.
    granule
        A power of two: what was added up is rounded down to a multiple of it.
    bias
        Added first.
    """

    sign: int
    letters: Letters
    granule: int = 1
    bias: int = 0

    @property
    def mask(self) -> int:
        """The bits that count."""
        return -self.granule & EVERY_BIT

    def render(self, show: Callable[[str, str], str]) -> str:
        """Return the term as text, each letter with its sign as `show` writes them."""
        sign = "-" if self.sign < 0 else "+"
        plain = self.granule == 1
        inner = "".join(
            show("" if n == 0 and not plain else sign if plain else "+", letter)
            for n, letter in enumerate(self.letters)
        )
        if self.bias:
            inner += f"{self.sign * self.bias if plain else self.bias:+#x}"
        if plain:
            return inner
        if self.granule == PAGE_SIZE:
            return f"{sign}Page({inner})"
        return f"{sign}(({inner})&-{self.granule:#x})"


@attrs.frozen
class Op:
    """How X is computed.

    Parameters
    ----------
    name
        What the operation is called here.
    terms
        What is summed up; empty where X is not computed from the record.
    high_half
        X is that of the HI20 record at S.
    anew
        What the place accumulated before does not count; later records add to X.
    bits
        Width of addresses: X wraps there, and is signed.
    """

    NONE: ClassVar[Op]
    ABS: ClassVar[Op]
    PC: ClassVar[Op]
    PAGE: ClassVar[Op]
    PAIR: ClassVar[Op]
    SIZE: ClassVar[Op]
    ADD: ClassVar[Op]
    SUB: ClassVar[Op]
    SET: ClassVar[Op]

    name: str
    terms: tuple[Term, ...] = ()
    high_half: bool = False
    anew: bool = False
    bits: int = 64

    def __attrs_post_init__(self) -> None:
        sums = [term for term in self.terms if term.letters != ("V",)]
        if self.accumulates and not (
            len(sums) == 1
            and sums[0].letters == ("S", "A")
            and not (sums[0].bias or sums[0].granule > 1 or self.bits < 64)
        ):
            raise ValueError(f"{self.name}: records add up S+A, or subtract it, and nothing else")

    # What it is --------------------------------------------------------------------------------

    @cached_property
    def accumulates(self) -> bool:
        """Whether records at one place add up before X is stored."""
        return self.anew or self.weight("V") != 0

    @cached_property
    def kind(self) -> OpKind:
        """What X is."""
        if self.high_half:
            return OpKind.PAIRED
        if not self.terms:
            return OpKind.NOTHING
        if self.accumulates:
            return OpKind.ACCUMULATED
        if self.weight("Z"):
            return OpKind.SIZE
        if sum(map(self.weight, _ADDRESSES)) == 1:
            return OpKind.ADDRESS
        return OpKind.DISPLACEMENT if self.granule <= PAGE_SIZE else OpKind.REGION

    @cached_property
    def relative(self) -> bool:
        """Whether X says how far the target is from something: the place, its page or region."""
        return self.kind in (OpKind.DISPLACEMENT, OpKind.REGION)

    @cached_property
    def placed(self) -> bool:
        """Whether P enters."""
        return self.weight("P") != 0

    @cached_property
    def shows_address(self) -> bool:
        """Whether X alone is read as an address; what is added to V later may begin as one."""
        return not self.weight("V") and sum(map(self.weight, _ADDRESSES)) == 1

    def weight(self, letter: str) -> int:
        """Return how often X counts a letter: how X follows when what it stands for moves."""
        return sum(term.sign * term.letters.count(letter) for term in self.terms)

    @cached_property
    def granule(self) -> int:
        """What moves have to be multiples of, for X to follow by `weight` alone."""
        return max((term.granule for term in self.terms), default=1)

    @cached_property
    def columns(self) -> tuple[int, int] | None:
        """Bits of the target and of P that count, where X is their difference; else None."""
        target = place = 0
        for term in self.terms:
            if term.sign == 1 and term.letters in TARGETS and not target:
                target = term.mask
            elif term.sign == -1 and term.letters == ("P",) and not place:
                place = term.mask
            else:
                return None
        return None if any(term.bias for term in self.terms) or self.bits < 64 else (target, place)

    # What it says ------------------------------------------------------------------------------

    @cached_property
    def formula(self) -> str:
        """The psABI's formula.

        >>> Op.PAGE.formula, Op.SUB.formula, Op.SET.formula
        ('Page(S+A)-Page(P)', 'V-S-A', 'S+A, later V')
        """
        if self.high_half:
            return "X of the HI20 at S"
        later = ", later V" if self.anew else ""
        return self.render(lambda sign, letter: sign + letter) + later if self.terms else "-"

    def render(self, show: Callable[[str, str], str]) -> str:
        """Return the sum as text; `show` writes a letter, given its sign (empty for the first)."""
        return "".join(term.render(show) for term in self.terms).removeprefix("+")

    # What it gives -----------------------------------------------------------------------------

    def compute(self, total: Callable[[Letters], Number]) -> Number:
        """Return X modulo 2^64, of whole numbers or of arrays of uint64.

        Parameters
        ----------
        total
            Returns the sum of letters.
        """
        x: Any = None  # the types of numpy do not know that uint64 stays uint64
        for term in self.terms:
            value: Any = total(term.letters)
            if term.bias:
                value = value + (term.bias & EVERY_BIT)
            if term.granule > 1:
                value = value & term.mask
            if x is None:
                x = value if term.sign > 0 else -value
            else:
                x = x + value if term.sign > 0 else x - value
        if x is None:
            raise ValueError(f"{self.name} computes nothing")
        if self.bits < 64:
            half = 1 << self.bits - 1
            x = ((x + half) & (2 * half - 1)) - half
        found: Number = x
        return found

    def evaluate(self, letters: Mapping[str, int]) -> int | None:
        """Return X as a signed number; None where nothing is computed or a letter has no value.

        >>> Op.PAGE.evaluate({"S": 0x5ff8, "A": 8, "P": 0x1234})
        20480
        >>> Op.PAIR.evaluate({"S": 0}) is None
        True
        """
        if not self.terms or any(name not in letters for t in self.terms for name in t.letters):
            return None
        return signed(self.compute(lambda names: sum(letters[name] for name in names)))

    def origin(self, letters: Mapping[str, int]) -> int | None:
        """Return the address that S+A has where X is 0; None where X is nothing like that."""
        if self.weight("S") != 1 or self.accumulates:
            return None
        zero = self.evaluate({**letters, "S": 0, "A": 0})
        return None if zero is None else -zero & ADDRESS_MASK

    def then(self, later: Op) -> Op:
        """Return one operation for two of one record: X becomes the addend of `later`, without S.

        >>> below = Op("GP", (Term(1, ("S", "A")), Term(-1, ("GP",))))
        >>> below.then(Op("SUB", (Term(1, ("S",)), Term(-1, ("A",))))).formula
        '-S-A+GP'
        """
        terms: list[Term] = []
        for term in later.terms:
            rest = tuple(name for name in term.letters if name not in ("S", "A"))
            if "A" not in term.letters:
                terms += [attrs.evolve(term, letters=rest)] if rest else []
            elif rest or term.bias or term.granule > 1 or self.bits != later.bits or not self.terms:
                raise ValueError(f"{self.name}, then {later.name}: no sum of terms says that")
            else:
                terms += [attrs.evolve(own, sign=own.sign * term.sign) for own in self.terms]
        return Op(f"{self.name}, {later.name}", tuple(terms), bits=later.bits)


_TARGET, _PLACE = Term(1, ("S", "A")), Term(-1, ("P",))

Op.NONE = Op("NONE")
Op.ABS = Op("ABS", (_TARGET,))
Op.PC = Op("PC", (_TARGET, _PLACE))
Op.PAGE = Op(
    "PAGE", (attrs.evolve(_TARGET, granule=PAGE_SIZE), attrs.evolve(_PLACE, granule=PAGE_SIZE))
)
Op.PAIR = Op("PAIR", high_half=True)
Op.SIZE = Op("SIZE", (Term(1, ("Z", "A")),))
Op.ADD = Op("ADD", (Term(1, ("V",)), _TARGET))
Op.SUB = Op("SUB", (Term(1, ("V",)), Term(-1, ("S", "A"))))
Op.SET = Op("SET", (_TARGET,), anew=True)


@attrs.frozen
class _Through:
    """What stands for S where a row goes through the global offset table.

    Parameters
    ----------
    holds
        What the row's slot of the table holds, whose address then counts; empty: it has none.
    symbol
        Whether S itself counts.
    table
        How often the table's start counts.
    granule
        What the table's start is rounded down to first.
    """

    holds: Letters = ()
    symbol: bool = False
    table: int = 0
    granule: int = 1


class Got(enum.Enum):
    """What stands for S where a row goes through the global offset table."""

    SLOT = _Through(("S",))
    SLOT_SUM = _Through(("S", "A"))
    OFFSET = _Through(("S",), table=-1)
    OFFSET_SUM = _Through(("S", "A"), table=-1)
    PAGE_OFFSET_SUM = _Through(("S", "A"), table=-1, granule=PAGE_SIZE)
    BASE = _Through(table=1)
    RELATIVE = _Through(symbol=True, table=-1)

    @property
    def holds(self) -> Letters:
        """What the row's slot holds; empty where it needs none."""
        return self.value.holds

    @property
    def keeps_addend(self) -> bool:
        """Whether the row still adds A; else the slot's content has it."""
        return "A" not in self.holds

    @property
    def weights(self) -> tuple[int, int]:
        """How often what stands for S counts the symbol, and the table (whose slots move along)."""
        return int(self.value.symbol), bool(self.holds) + self.value.table

    @property
    def text(self) -> str:
        """What stands for S, in words."""
        if not self.holds:
            return (
                "distance of the symbol from the table's start"
                if self.value.symbol
                else "address of the table"
            )
        slot = f"of the slot that holds {'+'.join(self.holds)}"
        if not self.value.table:
            return f"address {slot}"
        page = "the page of " if self.value.granule > 1 else ""
        return f"offset {slot} from {page}the table's start"

    def symbol(
        self, letters: Mapping[str, int], table: int, slot_of: Callable[[int], int | None]
    ) -> int | None:
        """Return what stands for S, modulo 2^64; None where it has no slot.

        Parameters
        ----------
        letters
            The symbol's own S, and A.
        table
            Where the table starts.
        slot_of
            Returns the address of the slot that holds a value.
        """
        value = letters["S"] if self.value.symbol else 0
        if self.holds:
            slot = slot_of(sum(letters[name] for name in self.holds) & ADDRESS_MASK)
            if slot is None:
                return None
            value = slot
        return value + self.value.table * (table & -self.value.granule)
