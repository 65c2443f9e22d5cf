# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats of trace events, beside a scanner that takes one character at a time."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archs.environment import Environment
from archs.passes.trace_events import replace_names
from execmem.check.elfwriter import A, Rela, Sec, Sym, W
from loader.errors import BadModule
from tests.support.finalising import finalised

WORD = (string.ascii_letters + string.digits).encode()


def walked(text: bytes, names: dict[bytes, bytes]) -> bytes:
    """Return the memory of a format after every name was looked for, character by character."""
    memory = bytearray(text + b"\0")
    for name, value in names.items():
        at, quoted = 0, False

        def word(i: int, extra: bytes = b"") -> bool:
            return memory[i] in WORD + extra and memory[i] != 0

        while memory[at]:
            if memory[at] == ord("\\"):
                at += 1
                if not memory[at]:
                    break
            elif memory[at] == ord('"'):
                quoted = not quoted
            elif quoted:
                pass
            elif chr(memory[at]).isdigit():
                while word(at):
                    at += 1
                if not memory[at]:
                    break
            elif word(at, b"_"):
                end = at + len(name)
                if memory[at:end] == name and not word(end, b"_"):
                    rest = memory[end : memory.index(0, at)]
                    for i, byte in enumerate(value + rest + b"\0"):
                        memory[at + i] = byte
                    at += len(value)
                    if not memory[at]:
                        break
                else:
                    more = True
                    while more:
                        at += 1
                        while word(at, b"_"):
                            at += 1
                        more = False
                        if memory[at] == ord("."):
                            at, more = at + 1, True
                        elif memory[at : at + 2] == b"->":
                            at, more = at + 2, True
                        more = more and memory[at] != 0
                    if not memory[at]:
                        break
            at += 1
    return bytes(memory)


# A name of the enumeration is an operand: no member follows it, and no name without a space.
PIECES = st.sampled_from(
    (
        *b"""ONE TWO_2 ONE_ xONE REC-> REC->ONE x.ONE " \\ 12UL { , ( ) _ "ONE" -1""".split(),
        b"sizeof(struct x) ",
        b" ",
    )
)
NAMES = {b"ONE": b"1", b"TWO_2": b"-2", b"sizeof(struct x)": b"48"}


@given(st.lists(PIECES, max_size=25).map(b"".join))
@example(b'__print_symbolic(REC->x, { ONE, "ONE" }, { TWO_2, "TWO_2" })')
@example(b'"\\"ONE" ONE')
@example(b"ONE TWO_2 ONE")
@settings(max_examples=500, deadline=None)
def test_names_become_values_as_a_scanner_would(text):
    """Text, and what is left behind its new end, are what a naive scanner makes of it."""
    assert replace_names(text, NAMES) == walked(text, NAMES)


def test_strings_and_members_stay():
    """A name in quotes or behind `->` is no use of the enumeration."""
    text = b'"%s ONE", REC->ONE, { ONE, "ONE" }'
    assert replace_names(text, NAMES).split(b"\0")[0] == b'"%s ONE", REC->ONE, { 1, "ONE" }'


def event(size: int, pointers: dict[int, str]):
    """Return a module with one trace event, finalised: offset -> what it points at."""
    names = ("class", "functions", "format")
    relas = [Rela(at, 1, name) for at, name in pointers.items()]
    sections = [
        Sec("events", bytes(size), A | W, align=8, relas=relas),
        Sec("things", bytes(32) + bytes(64), A | W, align=8, relas=[Rela(32, 1, "things")]),
        Sec(".gnu.linkonce.this_module", bytes(64), A | W, align=64),
        Sec("_ftrace_events", bytes(8), A | W, align=8, relas=[Rela(0, 1, "event")]),
    ]
    symbols = [Sym("event", "events"), *(Sym(name, "things") for name in (*names, "things"))]
    return finalised(b"\x90" * 16, sections, Environment(), extra=symbols)


@pytest.mark.parametrize(
    ("size", "functions", "format_at", "module"), [(120, 56, 64, 72), (144, 72, 80, 96)]
)
def test_the_owner_of_an_event(size, functions, format_at, module):
    """The owner is written where the event's own structure has it: 6.12's, or one before 6.2."""
    result = event(size, {16: "class", functions: "functions", format_at: "format"})
    before, after = (x[result.index("events")] for x in (result.before, result.after))
    owner = result.address(".gnu.linkonce.this_module").to_bytes(8, "little")
    assert after == before[:module] + owner + before[module + 8 :]


def test_an_event_of_no_known_structure():
    """An event whose pointers are elsewhere is refused: nobody knows where its owner goes."""
    with pytest.raises(BadModule, match="no structure that is known"):
        event(120, {16: "class", 40: "functions"})
