# SPDX-License-Identifier: GPL-2.0-or-later
"""What a case expects, as `left = right`: the language of LLVM's `jitlink-check`, and more.

Operators have no precedence: they are applied from left to right, and numbers have 64 bits. A
slice `[high:low]` belongs to what stands right before it. `*{n}` reads from all that follows:
`*{1}f+5` is the byte at f+5, and `(*{2}f)[15:13]` slices what was read, not f.

Sources: the class RuntimeDyldCheckerExprEval of LLVM's RuntimeDyldChecker.cpp. What LLVM's
evaluator leaves undefined (a shift by 64 bits, a slice with its ends exchanged) is refused; what
stands in `_OURS`, `-x`, sizes (`128M`), and any address where LLVM wants a symbol, is added.

Long because the language is one thing: what an expression is, how it is read, what it comes to.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Literal, Protocol, TypeAlias

import attrs

from allocator.errors import ExecmemError, printable
from execmem.check.outcome import Unanswerable

MASK = (1 << 64) - 1
DEEPEST = 100  # parentheses, reads and calls inside each other
LONGEST_READ = 8
MOST_BYTES = 1 << 16
UNITS: Mapping[str, int] = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"0x[0-9a-fA-F]*|[0-9]+")
_UNIT = re.compile(r"[KMG](?![0-9A-Za-z:_.$])")
_SYMBOL = re.compile(r"[A-Za-z_.$][0-9A-Za-z:_.$]*")
_TEXT = re.compile(r'"([^"]*)"')
_OPERATOR = re.compile(r"<<|>>|[-+&|]")


class BadExpression(ExecmemError):
    """An expression that cannot be read.

    Parameters
    ----------
    text
        The whole of it.
    column
        Where it goes wrong, from 1.
    reason
        One line.
    """

    def __init__(self, text: str, column: int, reason: str) -> None:
        super().__init__(printable(f"column {column}: {reason}: {text}"))
        self.text, self.column, self.reason = text, column, reason


class Questions(Protocol):
    """What expressions ask: of linked objects, or of anything that can answer.

    Every method raises Unanswerable where it has no answer.
    """

    @property
    def order(self) -> Literal["little", "big"]:
        """The order of bytes in numbers."""
        ...

    def symbol(self, name: str) -> int:
        """Return the address of a symbol."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return linked bytes."""
        ...

    def where(self, address: int) -> str:
        """Return what lies at an address, for people; empty where that is not known."""
        ...

    def section(self, name: str, section: str) -> int:
        """Return the address of an object's section."""
        ...

    def stub(self, name: str, symbol: str) -> int:
        """Return the address of an object's PLT entry for a symbol."""
        ...

    def got(self, name: str, symbol: str) -> int:
        """Return the address of an object's GOT slot for a symbol."""
        ...

    def only(self) -> str:
        """Return the name of the object, where there is one."""
        ...

    def operand(self, address: int, number: int) -> int:
        """Return an operand of the instruction at an address, as LLVM counts and scales them."""
        ...

    def next_pc(self, address: int) -> int:
        """Return the address behind the instruction at an address."""
        ...

    def target(self, address: int) -> int:
        """Return where the branch at an address leads."""
        ...


# What an expression is ----------------------------------------------------------------------------


@attrs.frozen
class Number:
    """A number."""

    value: int


@attrs.frozen
class Symbol:
    """The address of a symbol."""

    name: str


@attrs.frozen
class Read:
    """The number of `size` bytes at an address."""

    size: int
    address: Expression


@attrs.frozen
class Bits:
    """Bits of a value, both ends included."""

    value: Expression
    high: int
    low: int


@attrs.frozen
class Chain:
    """Operators applied from left to right."""

    first: Expression
    rest: tuple[tuple[str, Expression], ...]


@attrs.frozen
class Stood:
    """What is named by texts: a stub, a slot, a section. `text` is as the file has it."""

    name: str
    words: tuple[str, ...]
    text: str


@attrs.frozen
class Decoded:
    """What is read from the instruction at an address; `number` is an operand or a size."""

    name: str
    address: Expression
    number: int
    text: str


@attrs.frozen
class Literally:
    """Bytes, written down."""

    value: bytes


Expression: TypeAlias = Number | Symbol | Read | Bits | Chain | Stood | Decoded | Literally
Value: TypeAlias = int | bytes


@attrs.frozen
class Comparison:
    """Two expressions that have to be equal.

    Parameters
    ----------
    text
        As it was written.
    left, right
        Its sides.
    """

    text: str
    left: Expression
    right: Expression


@attrs.frozen(kw_only=True)
class Result:
    """What a comparison came to.

    Parameters
    ----------
    comparison
        What was asked.
    left, right
        The values of its sides.
    facts
        The values of all names in it: text, value.
    places
        What was read, each once: address, and what lies there, for people.
    """

    comparison: Comparison
    left: Value
    right: Value
    facts: tuple[tuple[str, int], ...]
    places: tuple[tuple[int, str], ...]

    @property
    def holds(self) -> bool:
        """Whether both sides are equal."""
        return self.left == self.right

    @cached_property
    def explanation(self) -> str:
        """One line: where, the formula, both values, and the numbers that they are made of."""
        spots = ", ".join(f"{at:#x}{f' ({text})' if text else ''}" for at, text in self.places)
        left, right = shown(self.left), shown(self.right)
        relation = "is" if self.holds else "is not"
        line = (
            f"{f'at {spots}: ' if spots else ''}{self.comparison.text}: {left} {relation} {right}"
        )
        if not self.holds and isinstance(self.left, int) and isinstance(self.right, int):
            gap = (self.left - self.right) & MASK
            line += f" (it is {gap - (gap >> 63 << 64):+#x} off)"
        if self.facts:
            line += "; " + ", ".join(f"{text} {value:#x}" for text, value in self.facts)
        return printable(" ".join(line.split()))


def shown(value: Value) -> str:
    r"""Return a value for people.

    >>> shown(16), shown(b"\x01\x02")
    ('0x10', '01 02')
    """
    return f"{value:#x}" if isinstance(value, int) else value.hex(" ")


# Reading it ---------------------------------------------------------------------------------------

# LLVM's functions, of which the first three name a file, and what is added.
_NAMED: Mapping[str, tuple[int, int]] = {
    "stub_addr": (2, 3),
    "got_addr": (2, 3),
    "section_addr": (2, 2),
    "plt": (1, 1),
    "got": (1, 1),
    "section": (1, 1),
}
_AT: Mapping[str, bool] = {
    "decode_operand": True,
    "next_pc": False,
    "operand": True,
    "bytes": True,
    "target": False,
}
_OURS = frozenset(("plt", "got", "section", "operand", "bytes", "target"))


def parse(text: str) -> Comparison:
    """Read a comparison.

    BadExpression where it is none.
    """
    return _Reader(text).comparison()


def parse_value(text: str) -> Expression:
    """Read one side of a comparison; BadExpression where it is none."""
    return _Reader(text).value()


@attrs.define
class _Reader:
    text: str
    at: int = 0
    depth: int = 0

    def comparison(self) -> Comparison:
        left = self._chain()
        self._wanted("=", "an operator or '='")
        if self.text.startswith("=", self.at):  # as in C: one is meant
            raise self._bad("an expression needs one '='")
        right = self._chain()
        self._end()
        if _bytes(left) != _bytes(right):
            raise self._bad("bytes are compared with bytes only")
        return Comparison(self.text.strip(), left, right)

    def value(self) -> Expression:
        value = self._chain()
        self._end()
        return value

    def _end(self) -> None:
        self._space()
        if self.at < len(self.text):
            raise self._bad("expected an operator or the end")

    def _bad(self, reason: str, at: int | None = None) -> BadExpression:
        at = self.at if at is None else at
        found = "the end" if at >= len(self.text) else repr(self.text[at : at + 12])
        return BadExpression(self.text, at + 1, f"{reason}, found {found}")

    def _space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._space()
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def _is(self, mark: str) -> bool:
        self._space()
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def _wanted(self, mark: str, what: str = "") -> None:
        if not self._is(mark):
            raise self._bad(f"expected {what or repr(mark)}")

    def _chain(self) -> Expression:
        """Read what operators join."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._bad(f"nested deeper than {DEEPEST}")
        first, rest = self._simple(), []
        while (operator := self._take(_OPERATOR)) is not None:
            at = self.at
            operand = self._simple()
            if _bytes(first) or _bytes(operand):
                raise self._bad("bytes are no number to reckon with", at)
            rest.append((operator.group(), operand))
        self.depth -= 1
        return Chain(first, tuple(rest)) if rest else first

    def _simple(self) -> Expression:
        """Read what has no operator outside parentheses, and its slice."""
        self._space()
        mark = self.text[self.at : self.at + 1]
        value: Expression
        if mark == "(":
            self.at += 1
            value = self._chain()
            self._wanted(")", "an operator or ')'")
        elif mark == "*":
            self.at += 1
            return self._read()  # a slice in there belongs to the address
        elif mark == "-":
            self.at += 1
            self.depth += 1
            if self.depth > DEEPEST:
                raise self._bad(f"nested deeper than {DEEPEST}")
            at = self.at
            operand = self._simple()
            if _bytes(operand):
                raise self._bad("bytes are no number to reckon with", at)
            value = Chain(Number(0), (("-", operand),))
            self.depth -= 1
            return value
        elif mark == '"':
            return self._literally()
        elif mark.isdigit() and mark.isascii():
            value = Number(self._number())
        elif (found := self._take(_SYMBOL)) is not None:
            value = self._named(found)
        else:
            raise self._bad("expected a number, a symbol, '(' or '*{'")
        return self._sliced(value)

    def _sliced(self, value: Expression) -> Expression:
        self._space()
        at = self.at
        if not self._is("["):
            return value
        if _bytes(value):
            raise self._bad("bytes have no bits", at)
        high = self._number()
        self._wanted(":")
        low = self._number()
        self._wanted("]")
        # As in LLVM, what is above the number is zero: [64:12] is [63:12].
        if not low <= high or low > 63 or high > 127:
            raise self._bad("a slice is [high:low] of 64 bits, high >= low", at)
        return Bits(value, high, low)

    def _number(self, *, most: int = MASK, what: str = "a number") -> int:
        self._space()
        at = self.at
        found = self._take(_NUMBER)
        if found is None:
            raise self._bad(f"expected {what}")
        digits = found.group()
        unit = _UNIT.match(self.text, self.at)
        if unit is not None:
            self.at = unit.end()
        # As in C, and in LLVM's getAsInteger: zero in front makes it octal.
        base = 16 if digits.startswith("0x") else 8 if digits[0] == "0" and len(digits) > 1 else 10
        try:
            value = (
                int(digits[2:] if base == 16 else digits, base) if len(digits) < 99 else most + 1
            )
        except ValueError:
            raise self._bad(f"no number of base {base}", at) from None
        value *= UNITS[unit.group()] if unit else 1
        if value > most:
            raise self._bad(f"{what} is at most {most:#x}", at)
        return value

    def _read(self) -> Expression:
        self._wanted("{")
        size = self._number(most=LONGEST_READ, what="a number of bytes, 1 to 8")
        if not size:
            raise self._bad("a number is read of 1 to 8 bytes", self.at - 1)
        self._wanted("}")
        at = self.at
        address = self._chain()
        if _bytes(address):
            raise self._bad("bytes are no address", at)
        return Read(size, address)

    def _literally(self) -> Literally:
        at = self.at
        found = self._take(_TEXT)
        if found is None:
            raise self._bad("expected bytes in hex and '\"'", at)
        try:
            return Literally(bytes.fromhex(found.group(1)))
        except ValueError:
            raise self._bad("bytes are pairs of hex digits", at) from None

    def _named(self, found: re.Match[str]) -> Expression:
        """Read what begins with a name: a function, or a symbol."""
        name, start = found.group(), found.start()
        known = name in _NAMED or name in _AT
        self._space()
        if not known or (name in _OURS and not self.text.startswith("(", self.at)):
            if self.text.startswith("(", self.at):
                raise self._bad(f"there is no function {name}", start)
            return Symbol(name)
        self._wanted("(")
        if name in _NAMED:
            words = self._words(*_NAMED[name])
            return Stood(name, words, " ".join(self.text[start : self.at].split()))
        at, number = self.at, 0
        address = self._chain()
        if _bytes(address):
            raise self._bad("bytes are no address", at)
        if _AT[name]:
            self._wanted(",")
            most = MOST_BYTES if name == "bytes" else 0xFFFF_FFFF
            number = self._number(most=most)
        self._wanted(")")
        return Decoded(name, address, number, " ".join(self.text[start : self.at].split()))

    def _words(self, least: int, most: int) -> tuple[str, ...]:
        """Read names, which may hold what symbols may not; files do, up to the comma."""
        end = self.text.find(")", self.at)
        if end < 0:
            self.at = len(self.text)
            raise self._bad("expected ')'")
        words = tuple(word.strip() for word in self.text[self.at : end].split(","))
        if not least <= len(words) <= most or not all(words):
            count = f"{least} to {most} names" if most > least else f"{least} of them"
            raise self._bad(f"expected names between commas, {count}")
        self.at = end + 1
        return words


def _bytes(value: Expression) -> bool:
    """Return whether the value is bytes."""
    if isinstance(value, Literally):
        return True
    return isinstance(value, Decoded) and value.name == "bytes"


# What it comes to ---------------------------------------------------------------------------------


def evaluate(comparison: Comparison, questions: Questions) -> Result:
    """Return what both sides come to.

    Unanswerable where the questions are not answered.
    """
    asked = _Asked(questions)
    left, right = asked.value(comparison.left), asked.value(comparison.right)
    return Result(
        comparison=comparison,
        left=left,
        right=right,
        facts=tuple(asked.facts.items()),
        places=tuple((at, questions.where(at)) for at in asked.places),
    )


def touched(comparison: Comparison, questions: Questions) -> tuple[tuple[int, int], ...]:
    """Return what a comparison looks at: addresses, and bytes there; as far as can be answered."""
    found: list[tuple[int, int]] = []
    for one in _parts(comparison):
        if isinstance(one, Read | Decoded):
            with contextlib.suppress(Unanswerable):
                address = _Asked(questions).number(one.address)
                found.append((address, _bytes_at(one, address, questions)))
    return tuple(found)


def _bytes_at(one: Read | Decoded, address: int, questions: Questions) -> int:
    if isinstance(one, Read):
        return one.size
    if one.name == "bytes":
        return one.number
    return (questions.next_pc(address) - address) & MASK


def names(comparison: Comparison, *functions: str) -> tuple[Stood, ...]:
    """Return where a comparison names something by one of these functions."""
    return tuple(
        one for one in _parts(comparison) if isinstance(one, Stood) and one.name in functions
    )


def symbols(comparison: Comparison) -> tuple[str, ...]:
    """Return the symbols that a comparison names."""
    return tuple(one.name for one in _parts(comparison) if isinstance(one, Symbol))


def decoded(comparison: Comparison, questions: Questions) -> tuple[int, ...]:
    """Return the addresses of instructions whose operands are compared, as far as they are known."""
    found: list[int] = []
    for one in _parts(comparison):
        if isinstance(one, Decoded) and one.name != "bytes":
            with contextlib.suppress(Unanswerable):
                found.append(_Asked(questions).number(one.address))
    return tuple(found)


def _parts(comparison: Comparison) -> Iterator[Expression]:
    """Yield everything in a comparison, what holds others first."""
    waiting: list[Expression] = [comparison.right, comparison.left]
    while waiting:
        one = waiting.pop()
        yield one
        match one:
            case Read() | Decoded():
                waiting.append(one.address)
            case Bits():
                waiting.append(one.value)
            case Chain():
                waiting += (one.first, *(operand for _, operand in one.rest))
            case _:
                pass


def evaluate_value(value: Expression, questions: Questions) -> Value:
    """Return what one expression comes to; Unanswerable as `evaluate`."""
    return _Asked(questions).value(value)


@attrs.define
class _Asked:
    questions: Questions
    facts: dict[str, int] = attrs.field(factory=dict)
    places: dict[int, None] = attrs.field(factory=dict)

    def number(self, value: Expression) -> int:
        found = self.value(value)
        assert isinstance(found, int)  # the reader saw to it
        return found & MASK

    def value(self, value: Expression) -> Value:
        match value:
            case Number():
                return value.value
            case Literally():
                return value.value
            case Symbol():
                return self._noted(value.name, self.questions.symbol(value.name))
            case Read():
                address = self.number(value.address)
                self.places[address] = None
                return int.from_bytes(
                    self.questions.read(address, value.size), self.questions.order
                )
            case Bits():
                mask = (1 << (value.high - value.low + 1)) - 1
                return self.number(value.value) >> value.low & mask
            case Chain():
                total = self.number(value.first)
                for operator, operand in value.rest:
                    total = _OPERATORS[operator](total, self.number(operand)) & MASK
                return total
            case Stood():
                return self._noted(value.text, self._stood(value))
            case Decoded():
                return self._decoded(value)

    def _noted(self, text: str, value: int) -> int:
        self.facts[text] = value & MASK
        return value & MASK

    def _stood(self, value: Stood) -> int:
        one, words = self.questions, value.words
        match value.name:
            case "section_addr":
                return one.section(*words)
            case "section":
                return one.section(one.only(), *words)
            case "stub_addr" | "got_addr" if len(words) > 2:
                what = f"which of several stubs one is, by kind ({words[2]}), is not known here"
                raise Unanswerable(f"{value.text}: {what}", foreign=True)
            case "stub_addr":
                return one.stub(*words)
            case "got_addr":
                return one.got(*words)
            case "plt":
                return one.stub(one.only(), *words)
            case _:
                return one.got(one.only(), *words)

    def _decoded(self, value: Decoded) -> Value:
        address = self.number(value.address)
        if value.name == "next_pc":
            return self._noted(value.text, self.questions.next_pc(address))
        self.places[address] = None
        if value.name == "bytes":
            return self.questions.read(address, value.number)
        if value.name == "target":
            return self._noted(value.text, self.questions.target(address))
        return self._noted(value.text, self.questions.operand(address, value.number))


def _shift(operator: str) -> Callable[[int, int], int]:
    def shifted(value: int, by: int) -> int:
        if by > 63:
            raise Unanswerable(f"a shift by {by} bits is undefined: numbers have 64")
        return value << by if operator == "<<" else value >> by

    return shifted


_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "&": lambda left, right: left & right,
    "|": lambda left, right: left | right,
    "<<": _shift("<<"),
    ">>": _shift(">>"),
}
