# SPDX-License-Identifier: GPL-2.0-or-later
"""The language of expectations: what it means to LLVM, and that nothing escapes it."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execmem.check.expressions import (
    BadExpression,
    evaluate,
    evaluate_value,
    parse,
    parse_value,
)
from execmem.check.outcome import Unanswerable
from tests.support import tools

MASK = (1 << 64) - 1
DATA = bytes(range(0x81, 0x81 + 64))


@attrs.frozen
class Fake:
    """Answers from a table, and tells what it was asked."""

    symbols: Mapping[str, int]
    order: Literal["little", "big"] = "little"
    base: int = 0x1000

    def symbol(self, name: str) -> int:
        """Return from the table."""
        if name not in self.symbols:
            raise Unanswerable(f"there is no symbol {name}")
        return self.symbols[name]

    def read(self, address: int, size: int) -> bytes:
        """Return some of the bytes."""
        start = address - self.base
        if not 0 <= start <= len(DATA) - size:
            raise Unanswerable(f"{address:#x} is in no section")
        return DATA[start : start + size]

    def where(self, address: int) -> str:
        """Return the offset in the bytes."""
        return f".data+{address - self.base:#x}"

    def section(self, name: str, section: str) -> int:
        """Return a number that tells names apart."""
        return len(name) << 8 | len(section)

    def stub(self, name: str, symbol: str) -> int:
        """Return a number that tells names apart."""
        return 0x10000 | self.section(name, symbol)

    def got(self, name: str, symbol: str) -> int:
        """Return a number that tells names apart."""
        return 0x20000 | self.section(name, symbol)

    def only(self) -> str:
        """Return a name."""
        return "a.o"

    def operand(self, address: int, number: int) -> int:
        """Return both."""
        return address << 8 | number

    def next_pc(self, address: int) -> int:
        """Return an address behind."""
        return address + 4

    def target(self, address: int) -> int:
        """Return some address."""
        return address + 0x100


FAKE = Fake({"data": 0x1000, "x": 0x1234, "big": MASK, "target": 5, ".Lx": 7, "a$b:c": 8})


def value(text: str) -> int | bytes:
    """Return what one expression comes to."""
    return evaluate_value(parse_value(text), FAKE)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2 + 3 << 1", 10),
        ("2 | 1 & 1", 1),
        ("1 - 2 - 3", -4 & MASK),
        ("1 - (2 - 3)", 2),
        ("big + 2", 1),
        ("(x + 0)[11:4]", 0x23),
        ("x[11:4]", 0x23),
        ("big[63:0]", MASK),
        ("big[64:12]", MASK >> 12),
        ("*{1}data+5", DATA[5]),
        ("(*{1}data) + 5", DATA[0] + 5),
        ("*{2}data", 0x8281),
        ("*{4}(data)[15:0]", 0x84838281),
        ("(*{4}data)[15:8]", 0x82),
        ("*{1}(data + (*{1}data) - 0x80)", DATA[1]),
        ("017", 15),
        ("0x1F", 31),
        ("128M", 128 << 20),
        ("4K+2G", (4 << 10) + (2 << 30)),
        ("-1", MASK),
        ("x - -1", 0x1235),
        ("target + 1", 6),
        ("target(x)", 0x1334),
        (".Lx", 7),
        ("a$b:c", 8),
        ("decode_operand(x, 3)", 0x123403),
        ("decode_operand(x + 4, 0)[15:0]", 0x3800),
        ("operand(x - 4, 1)", 0x123001),
        ("next_pc( x )", 0x1238),
        ("section_addr(some-file.o, .text.a)", 0xB07),
        ("stub_addr(a.o, x)", 0x10301),
        ("got_addr(a.o, x)", 0x20301),
        ("section(.data)", 0x305),
        ("plt(x)", 0x10301),
        ("got(x)", 0x20301),
        ("bytes(data + 1, 2)", DATA[1:3]),
        ('"de AD be  ef"', bytes.fromhex("deadbeef")),
    ],
)
def test_value(text: str, wanted: int | bytes) -> None:
    """Operators go from left to right, a read takes all behind it, numbers have 64 bits."""
    assert value(text) == wanted


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("x", 2, "expected an operator or '='"),
        ("x = ", 5, "expected a number, a symbol"),
        ("x == 1", 4, "one '='"),
        ("x = (1", 7, "expected an operator or ')'"),
        ("x = 1)", 6, "expected an operator or the end"),
        ("x = 08", 5, "base 8"),
        ("x = 0x", 5, "base 16"),
        ("x = 0x10000000000000000", 5, "at most"),
        ("x = *4", 6, "expected '{'"),
        ("x = *{9}x", 7, "1 to 8"),
        ("x = *{0}x", 7, "1 to 8"),
        ("x = x[3:4]", 6, "high:low"),
        ("x = x[64:64]", 6, "high:low"),
        ("x = x[3]", 8, "expected ':'"),
        ("x = foo(1)", 5, "no function foo"),
        ("x = decode_operand + 1", 20, "expected '('"),
        ("x = decode_operand(x)", 21, "expected ','"),
        ("x = stub_addr(x)", 15, "names between commas"),
        ("x = stub_addr(x, y", 19, "expected ')'"),
        ('x = "00"', 9, "bytes are compared"),
        ('bytes(x, 1) = "0"', 15, "pairs of hex digits"),
        ('bytes(x, 1) = "00', 15, "expected bytes"),
        ('x = 1 + "00"', 8, "no number"),
        ("x = " + "(" * 200, 105, "nested deeper"),
        ("x = " + "-" * 200 + "1", 105, "nested deeper"),
        ("x = 1 % 2", 7, "expected an operator or the end"),
    ],
)
def test_refused(text: str, column: int, reason: str) -> None:
    """An error says where, and what would be right."""
    with pytest.raises(BadExpression) as caught:
        parse(text)
    assert caught.value.column == column
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)


def test_nothing_answers() -> None:
    """What cannot be answered is said by name, and so is what LLVM leaves undefined."""
    with pytest.raises(Unanswerable, match="no symbol nowhere"):
        value("nowhere + 1")
    with pytest.raises(Unanswerable, match="shift by 64"):
        value("1 << 64")
    with pytest.raises(Unanswerable) as caught:
        value("stub_addr(a.o, x, thumb)")
    assert caught.value.foreign


def test_explanation() -> None:
    """One line holds the place, the formula, both values and the numbers that make them."""
    result = evaluate(parse("*{2}(data + 4) =   x + 1"), FAKE)
    assert not result.holds
    assert result.explanation == (
        "at 0x1004 (.data+0x4): *{2}(data + 4) = x + 1: 0x8685 is not 0x1235"
        " (it is +0x7450 off); data 0x1000, x 0x1234"
    )
    assert (
        evaluate(parse("x = 0x1234"), FAKE).explanation == "x = 0x1234: 0x1234 is 0x1234; x 0x1234"
    )


def test_many_terms() -> None:
    """A long line is no deep one."""
    assert value(" + ".join(["1"] * 20000)) == 20000


def _made(chance: random.Random, depth: int) -> str:
    """Return an expression that LLVM's reader takes: it has no space behind numbers."""
    kind = chance.randrange(7 if depth else 2)
    if kind == 0:
        return chance.choice(
            [f"{chance.getrandbits(64):#x}", str(chance.getrandbits(31) | 1 << 31)]
        )
    if kind == 1:
        return chance.choice(["abs_a", "abs_b"])
    if kind == 2:
        low = chance.randrange(60)
        inner = f"({_made(chance, depth - 1)})"
        return f"{inner}[{chance.randrange(low, min(low + 62, 63))}:{low}]"
    if kind == 3:
        return f"*{{{chance.choice([1, 2, 4, 8])}}}(data + {chance.randrange(56)})"
    if kind == 4:
        return f"*{{{chance.choice([1, 2, 4, 8])}}}data+{chance.randrange(8)}+{chance.randrange(8)}"
    if kind == 5:
        return f"({_made(chance, depth - 1)}){chance.choice(['<<', '>>'])}{chance.randrange(64)}"
    operator = chance.choice("+-&|")
    return f"({_made(chance, depth - 1)}) {operator} ({_made(chance, depth - 1)})"


def test_llvm_agrees(tmp_path: Path) -> None:
    """LLVM's evaluator comes to the same values, and to no others."""
    jitlink, assembler = tools.llvm("llvm-jitlink"), tools.llvm("llvm-mc")
    chance = random.Random(19)
    fake = attrs.evolve(FAKE, symbols={"data": 0x1000, "abs_a": 0x1234_5678_9ABC, "abs_b": 1 << 63})
    made = [_made(chance, 4) for _ in range(300)]
    values = [evaluate_value(parse_value(text), fake) for text in made]
    source = tmp_path / "a.s"
    source.write_text(f".globl data\n.data\ndata: .byte {', '.join(map(str, DATA))}\n", "ascii")
    built = tmp_path / "a.o"
    tools.run(assembler, "-triple=x86_64-linux", "-filetype=obj", "-o", built, source)
    for wrong in (False, True):
        checks = tmp_path / "checks.txt"
        checks.write_text(
            "".join(
                f"# jitlink-check: {text} = {found ^ wrong:#x}\n"
                for text, found in zip(made, values, strict=True)
                if isinstance(found, int)
            ),
            "ascii",
        )
        command = [
            jitlink,
            "-noexec",
            "-abs",
            "abs_a=0x123456789abc",
            "-abs",
            f"abs_b={1 << 63:#x}",
        ]
        command += ["-entry=data", "-check", str(checks), str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("Expression")]
        assert len(said) == (len(made) if wrong else 0), done.stderr[:2000]
        assert bool(done.returncode) is wrong


def _error(text: str) -> BadExpression | None:
    """Return why a text is no expression; None where it is one."""
    try:
        evaluate(parse(text), FAKE)
    except BadExpression as error:
        return error
    return None


@given(st.text(alphabet="x=+-&|<>()[]{}*:,.\"0189afKMG dtos_'\\\n\t\x00é²\u0661", max_size=40))
def test_any_text(text: str) -> None:
    """Any text is an expression, or an error with a column in it."""
    with contextlib.suppress(Unanswerable):
        error = _error(text)
        assert error is None or 1 <= error.column <= len(text) + 1


_WORDS = st.sampled_from(
    "x|data|=|+|-|(|)|[|]|7:0|*{4}|1|0x10|,| |decode_operand(|next_pc(|stub_addr(a, |bytes(|"
    '"00"|target(|section(.a)'.split("|")
)


@given(st.lists(_WORDS, max_size=20))
def test_any_words(words: list[str]) -> None:
    """The same of the words of the language."""
    with contextlib.suppress(Unanswerable):
        error = _error("".join(words))
        assert error is None or str(error).startswith(f"column {error.column}: ")
