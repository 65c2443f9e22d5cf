# SPDX-License-Identifier: GPL-2.0-or-later
"""Which numbers instructions hold, counted and scaled as LLVM's MCInst does: as data.

Relocation tests name an operand by its number among those of LLVM: registers count, what is
written and read counts twice, a memory operand of x86 counts five times, and a displacement
stands in the unit that the instruction holds. Two kinds of tables say so: `Patterns`, where
instructions are words of fixed fields, and `Templates`, where they are opcodes with a tail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import attrs

_PIECE = re.compile(r"([01?]+)|([A-Z])(\d+)|([a-z])\[(\d+)(?::(\d+))?\]")
UNKNOWN = "?"  # instead of operands, where LLVM's are not the same in all of its versions
_OPERAND = re.compile(r"(?:(-|[A-Z])|(~?)([a-z])(?:\+(\d+))?|#(\d+))")


@attrs.frozen
class Piece:
    """Bits of a word that belong to a number: `bits` from bit `low` up, from `word` in the word."""

    low: int
    bits: int
    word: int


@attrs.frozen
class Field:
    """A number that an instruction holds: its pieces, its sign, and what is added."""

    pieces: tuple[Piece, ...]
    signed: bool = False
    bias: int = 0

    def of(self, word: int) -> int:
        """Return the number in an instruction word."""
        value = top = 0
        for piece in self.pieces:
            value |= (word >> piece.word & (1 << piece.bits) - 1) << piece.low
            top = max(top, piece.low + piece.bits)
        if self.signed and value >> (top - 1):
            value -= 1 << top
        return value + self.bias


@attrs.frozen
class Leads:
    """Where a branch leads.

    Parameters
    ----------
    operand
        The number of the operand that says so.
    unit
        Bytes that it counts in, from the instruction.
    region
        Bytes of the region, where it replaces the low bits of the address behind the branch.
    """

    operand: int
    unit: int = 1
    region: int = 0


@attrs.frozen
class Form:
    """Instructions of one encoding.

    Parameters
    ----------
    name
        What it is called.
    pattern
        The word from its highest bit down: bits (`?`: any), registers with their bits (`D5`),
        pieces of numbers (`i[20] i[10:1]`).
    operands
        In LLVM's order: a register's letter, or `-` for one that the word does not name; a
        number's letter, `~i` where it has a sign, `i+4` where LLVM adds something; `#0`, a number
        that stands for itself.
    leads
        Where it leads, if it is a direct branch.
    """

    name: str
    pattern: str
    operands: str = ""
    leads: Leads | None = None

    @cached_property
    def _read(self) -> tuple[int, int, int, dict[str, Field]]:
        """Bits of the word, those that are fixed and how, and the fields by letter."""
        pieces: list[tuple[str, int, int]] = []  # letter (empty: fixed), lowest bit, bits
        mask = value = total = 0
        for fixed, register, width, letter, high, low in _PIECE.findall(self.pattern):
            if fixed:
                for bit in fixed:
                    mask, value = mask << 1 | (bit != "?"), value << 1 | (bit == "1")
                pieces.append(("", 0, len(fixed)))
                continue
            first, last = (int(high), int(low or high)) if letter else (int(width) - 1, 0)
            bits = first - last + 1
            mask, value = mask << bits, value << bits
            pieces.append((letter or register, last, bits))
        total = sum(bits for _, _, bits in pieces)
        found: dict[str, list[Piece]] = {}
        at = total
        for letter, lowest, bits in pieces:
            at -= bits
            if letter:
                found.setdefault(letter, []).append(Piece(lowest, bits, at))
        fields = {letter: Field(tuple(parts)) for letter, parts in found.items()}
        return total, mask, value, fields

    @property
    def size(self) -> int:
        """Bytes of the instruction."""
        return self._read[0] // 8

    def matches(self, word: int) -> bool:
        """Return whether a word is of this form."""
        _, mask, value, _ = self._read
        return word & mask == value

    def field(self, letter: str) -> Field:
        """Return a field by its letter, without sign."""
        return self._read[3][letter]

    @cached_property
    def fields(self) -> tuple[Field | int | None, ...]:
        """Its operands: a number to be read, a number, or None where LLVM has no number."""
        found: list[Field | int | None] = []
        for word in self.operands.split():
            match = _OPERAND.fullmatch(word)
            if match is None:
                raise ValueError(f"{self.name}: {word} is no operand")
            register, sign, letter, bias, constant = match.groups()
            if register:
                found.append(None)
            elif constant is not None:
                found.append(int(constant))
            else:
                found.append(
                    attrs.evolve(self.field(letter), signed=bool(sign), bias=int(bias or 0))
                )
        return tuple(found)

    def values(self, word: int) -> tuple[int | None, ...] | None:
        """Return the operands of a word: numbers, and None for what is none; None: not known."""
        if self.operands == UNKNOWN:
            return None
        return tuple(each.of(word) if isinstance(each, Field) else each for each in self.fields)


@attrs.frozen
class Pair:
    """Two instructions that together lead somewhere: a page from the place, and an offset.

    Parameters
    ----------
    first, second
        Names of the forms; the register that the first writes (`D`) is the one that the second
        adds to (`S`), and both hold `i`.
    shift
        Bits below the page.
    """

    first: str
    second: str
    shift: int


@attrs.frozen(kw_only=True)
class Patterns:
    """Instructions that are words of fixed fields.

    Parameters
    ----------
    forms
        The first that matches counts.
    sizes
        Bytes of an instruction by the low bits of its first halfword that tell: mask, value, size;
        the first that matches counts.
    pairs
        What leads somewhere by two instructions.
    """

    forms: tuple[Form, ...]
    sizes: tuple[tuple[int, int, int], ...] = ((0, 0, 4),)
    pairs: tuple[Pair, ...] = ()

    def size(self, code: bytes) -> int | None:
        """Return the bytes of the first instruction; None where some are missing."""
        if len(code) < 2:
            return None
        low = int.from_bytes(code[:2], "little")
        size = next(size for mask, value, size in self.sizes if low & mask == value)
        return size if size <= len(code) else None

    def find(self, word: int, size: int) -> Form | None:
        """Return the form of an instruction word of `size` bytes; None where it is not known."""
        return next((one for one in self._sized.get(size, ()) if one.matches(word)), None)

    @cached_property
    def _sized(self) -> Mapping[int, Sequence[Form]]:
        found: dict[int, list[Form]] = {}
        for form in self.forms:
            found.setdefault(form.size, []).append(form)
        return found


@attrs.frozen(kw_only=True)
class Templates:
    """Instructions that are opcodes, of whose tail a template says what it holds.

    Parameters
    ----------
    opcodes
        By the opcode's bytes in hex (with the mandatory prefix in front, where one tells), and
        after a slash the number in the second byte where it belongs to the opcode. A template is
        a list of operands: `R` a register, `-` one that is not written down, `E` a register or
        memory, an equals sign in front where it is written and read (a register counts twice
        then), `X` a register or memory of which a register is not known, `i` a number, `s` one
        with sign, `u` one without, `j` a distance from the next instruction, `c` a condition, `o`
        an address. Of `i`, one byte has a sign, and so has what REX.W makes wider.
    prefixes
        Bytes in front of opcodes; the mandatory ones among them count only as part of a key.
    memory
        How many operands memory is, and which of them is the displacement, and the scale.
    """

    opcodes: Mapping[str, str]
    prefixes: bytes
    mandatory: bytes

    def find(self, opcode: str, mandatory: Sequence[int], digit: int | None) -> str | None:
        """Return the template of an opcode; None where it is not known.

        Parameters
        ----------
        opcode
            Its bytes in hex.
        mandatory
            Those of the mandatory prefixes that are there.
        digit
            The number in its second byte; None where there is none.
        """
        stems = [f"{prefix:02x}{opcode}" for prefix in mandatory]
        if opcode not in self._told or not mandatory:
            stems.append(opcode)
        keys = [key for stem in stems for key in (f"{stem}/{digit}", stem)]
        return next((self.opcodes[key] for key in keys if key in self.opcodes), None)

    @cached_property
    def _told(self) -> frozenset[str]:
        """Opcodes that are others with a mandatory prefix."""
        marks = {f"{prefix:02x}" for prefix in self.mandatory}
        return frozenset(key[2:] for key in self.opcodes if key[:2] in marks and len(key) > 4)


def expand(table: str) -> Iterator[tuple[str, str]]:
    """Yield keys and templates of a table of lines, `00-03,08: template`, `f7/0: template`.

    >>> dict(expand("b0-b1 c6/0: E i"))
    {'b0': 'E i', 'b1': 'E i', 'c6/0': 'E i'}
    """
    for line in filter(None, map(str.strip, table.splitlines())):
        keys, _, template = line.partition(":")
        for key in keys.split():
            opcode, slash, digits = key.partition("/")
            first, _, last = opcode.partition("-")
            stem, low = first[:-2], int(first[-2:], 16)
            high = int(last[-2:], 16) if last else low
            for number in range(low, high + 1):
                for digit in digits or " ":
                    yield f"{stem}{number:02x}{slash}{digit}".strip(), template.strip()
