# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations as data: what other architectures need is said by terms, and nothing else."""

from __future__ import annotations

from unittest import mock

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archs import engine
from archs.engine import Failure, Problem, Records, apply
from archs.op import Op, OpKind, Term, signed
from archs.reloc import Part, Reach, Reloc, Rows, Slice, data
from tests.support.scalar import MASK64

REGION = 1 << 28
JUMP = Op("REGION", (Term(1, ("S", "A")), Term(-1, ("P",), granule=REGION, bias=4)))
BELOW_GP = Op("GPREL", (Term(1, ("S", "A")), Term(-1, ("GP",))))
MINUS = Op("MINUS", (Term(1, ("S",)), Term(-1, ("A",))))
HIGH16, LOW16 = (Part(4, (Slice(x, 16, 0),), bias=bias) for x, bias in ((16, 0x8000), (0, 0)))
TOY = Rows(
    {
        row.number: row
        for row in (
            Reloc(1, "R_TOY_ABS64", Op.ABS, data(8)),
            Reloc(2, "R_TOY_PC32", Op.PC, data(4), Reach(-(1 << 31), 1 << 31)),
            Reloc(3, "R_TOY_J26", JUMP, (Part(4, (Slice(2, 26, 0),)),), Reach(0, REGION, 4)),
            Reloc(4, "R_TOY_GPREL", BELOW_GP, data(4), Reach(-(1 << 31), 1 << 31)),
            Reloc(5, "R_TOY_HI16", Op.ABS, (HIGH16,)),
            Reloc(6, "R_TOY_LO16", Op.ABS, (LOW16,)),
            Reloc(7, "R_TOY_NEG_GP_HI16", BELOW_GP.then(MINUS).then(Op.ABS), (HIGH16,)),
            Reloc(8, "R_TOY_PC32_WRAPS", attrs.evolve(Op.PC, name="PC32", bits=32), data(4)),
            Reloc(9, "R_TOY_ABS26", Op.ABS, (Part(4, (Slice(2, 26, 0),)),), Reach(0, REGION, 4)),
        )
    }
)
ADDRESSES = st.integers(0, MASK64)


def run(
    number: int, place: int, target: int, *, addend: int = 0, gp: int = 0, word: int = 0
) -> tuple[int, list[Failure]]:
    """Apply one toy relocation, alone and among others, few and many; return word and failures."""
    found = []
    for few in (4096, 0):
        for around in (0, 2):  # a form that is shared, and one that is not
            others = [1, 9][:around]
            types = [*others, number]
            image = np.zeros(8 * len(types) + 8, np.uint8)
            image[8 * around : 8 * around + 4] = list(word.to_bytes(4, "little"))
            count = len(types)
            records = Records(
                offset=np.arange(count, dtype=np.intp) * 8,
                place=np.array([*[0] * around, place], np.uint64),
                target=np.array([*[64] * around, target & MASK64], np.uint64),
                addend=np.array([*[0] * around, addend & MASK64], np.uint64),
                type=np.array(types, np.uint32),
                bases={"GP": gp},
            )
            with mock.patch.multiple(engine, FEW=few, HARDLY=few):
                failures = list(apply(TOY, image, records))
            at = 8 * around
            told = [(f.problem, f.row, [signed(x) for x in f.x.tolist()]) for f in failures]
            stored = int.from_bytes(image[at : at + 4].tobytes(), "little")
            found.append((None if failures else stored, told))
    assert all(one == found[0] for one in found)
    return stored, failures


@given(ADDRESSES, ADDRESSES)
def test_a_region_jump_arrives_where_the_processor_goes(place: int, target: int) -> None:
    """A jump into its region leads there by the processor's rule; any other is refused."""
    place, target = place & ~3, target & ~3
    near = (place + 4 & MASK64) // REGION * REGION + target % REGION
    word, failures = run(3, place, near, word=0x0C00_0000)
    assert not failures
    assert word >> 26 == 3
    # The processor takes the upper bits from the instruction behind the jump.
    assert (place + 4 & MASK64) >> 28 << 28 | (word & 0x3FF_FFFF) << 2 == near
    _, failures = run(3, place, target)
    assert bool(failures) == (target >> 28 != (place + 4 & MASK64) >> 28)


@pytest.mark.parametrize(
    ("place", "target", "problem"),
    [
        (0x1000_0000, 0x1000_0000, None),
        (0x1000_0000, 0x1FFF_FFFC, None),
        (0x1000_0000, 0x2000_0000, Problem.RANGE),
        (0x1000_0000, 0x0FFF_FFFC, Problem.RANGE),
        (0x1FFF_FFFC, 0x1FFF_FFFC, Problem.RANGE),  # the next instruction is in the next region
        (0x1FFF_FFFC, 0x2000_0000, None),
        (0x1000_0000, 0x1000_0002, Problem.ALIGN),
    ],
)
def test_the_ends_of_a_region_are_exact(place: int, target: int, problem: Problem | None) -> None:
    """The region is that of the instruction behind the jump, from its first word to its last."""
    _, failures = run(3, place, target)
    assert [failure.problem for failure in failures] == ([problem] if problem else [])


@given(ADDRESSES, st.integers(-(1 << 20), 1 << 20))
def test_halves_carry(value: int, addend: int) -> None:
    """The high half takes up what the signed low half subtracts."""
    target = value + addend & 0xFFFF_FFFF
    high, _ = run(5, 0, target)
    low, _ = run(6, 0, target)
    assert ((high << 16) + (low ^ 0x8000) - 0x8000) % (1 << 32) == target


@given(ADDRESSES, st.integers(-(1 << 31), (1 << 31) - 1), ADDRESSES)
def test_small_data_counts_from_its_pointer(gp: int, distance: int, addend: int) -> None:
    """A GP-relative word holds the distance from GP."""
    word, failures = run(4, 0, gp + distance, addend=addend, gp=gp)
    assert not failures
    assert (word ^ 1 << 31) - (1 << 31) == distance


@given(ADDRESSES, ADDRESSES, ADDRESSES)
def test_three_operations_of_one_record_are_one(symbol: int, addend: int, gp: int) -> None:
    """Each operation has the one before as addend: the upper half of -(S+A-GP), with its carry."""
    first = symbol + addend - gp
    second = 0 - first
    word, _ = run(7, 0, symbol + addend, addend=addend, gp=gp)
    assert word == (second + 0x8000 >> 16) & 0xFFFF


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF))
def test_addresses_of_32_bits_wrap(place: int, target: int) -> None:
    """A distance between 32-bit addresses wraps there: every target reaches."""
    word, _ = run(8, place, target)
    assert (place + word) % (1 << 32) == target
    x = TOY[8].op.evaluate({"S": target, "A": 0, "P": place})
    assert x is not None
    assert -(1 << 31) <= x < 1 << 31


def test_a_letter_without_a_value_is_no_zero() -> None:
    """Where nothing says what GP is, nothing is computed."""
    with pytest.raises(ValueError, match="GP"):
        apply(
            TOY,
            np.zeros(8, np.uint8),
            Records(*(np.zeros(1, kind) for kind in ("p", "u8", "u8", "u8")), np.array([4], "u4")),
        )
    assert BELOW_GP.evaluate({"S": 1, "A": 1, "P": 1}) is None


ATOMS = st.sampled_from((("S", "A"), ("P",), ("S",), ("A",), ("GP",), ("S", "A", "P")))
TERMS = st.builds(
    Term,
    st.sampled_from((1, -1)),
    ATOMS,
    st.sampled_from((1, 4, 4096, REGION)),
    st.integers(-64, 64),
)


@given(st.lists(TERMS, min_size=1, max_size=4), st.sampled_from((32, 64)), st.data())
def test_arrays_and_numbers_and_text_say_the_same(
    terms: list[Term], bits: int, draws: st.DataObject
) -> None:
    """X of an array, X of whole numbers, and the formula read as arithmetic are the same."""
    op = Op("ANY", tuple(terms), bits=bits)
    s, a, p, gp = (draws.draw(ADDRESSES) for _ in range(4))
    letters = {"S": s, "A": a, "P": p, "GP": gp}
    records = Records(
        offset=np.zeros(1, np.intp),
        place=np.array([p], np.uint64),
        target=np.array([s + a & MASK64], np.uint64),
        addend=np.array([a], np.uint64),
        type=np.ones(1, np.uint32),
        bases={"GP": gp},
    )
    row = Reloc(1, "R_ANY", op, data(8))
    x = op.evaluate(letters)
    assert x is not None
    assert signed(int(engine.compute(row, records, slice(None))[0])) == x
    read = eval(op.formula, {"Page": lambda v: v // 4096 * 4096, **letters})
    assert (read - x) % (1 << bits) == 0
    assert -(1 << bits - 1) <= x < 1 << bits - 1
    numbers = eval(
        op.render(lambda sign, letter: f"{sign}{letters[letter]:#x}"),
        {"Page": lambda v: v // 4096 * 4096},
    )
    assert numbers == read


@given(st.lists(TERMS, min_size=1, max_size=4), st.data())
def test_x_follows_by_weights_where_everything_moves_by_granules(
    terms: list[Term], draws: st.DataObject
) -> None:
    """Moving what a letter stands for by multiples of the granule moves X by the letter's weight."""
    op = Op("ANY", tuple(terms))
    letters = {name: draws.draw(ADDRESSES) for name in ("S", "A", "P", "GP")}
    moves = {name: op.granule * draws.draw(st.integers(-100, 100)) for name in letters}
    before = op.evaluate(letters)
    after = op.evaluate({name: value + moves[name] for name, value in letters.items()})
    assert before is not None
    assert after is not None
    expected = sum(op.weight(name) * move for name, move in moves.items())
    assert (after - before - expected) % (1 << 64) == 0


@pytest.mark.parametrize(
    ("op", "kind", "formula"),
    [
        (Op.NONE, OpKind.NOTHING, "-"),
        (Op.ABS, OpKind.ADDRESS, "S+A"),
        (Op.PC, OpKind.DISPLACEMENT, "S+A-P"),
        (Op.PAGE, OpKind.DISPLACEMENT, "Page(S+A)-Page(P)"),
        (Op.PAIR, OpKind.PAIRED, "X of the HI20 at S"),
        (Op.SIZE, OpKind.SIZE, "Z+A"),
        (Op.ADD, OpKind.ACCUMULATED, "V+S+A"),
        (Op.SUB, OpKind.ACCUMULATED, "V-S-A"),
        (Op.SET, OpKind.ACCUMULATED, "S+A, later V"),
        (JUMP, OpKind.REGION, "S+A-((P+0x4)&-0x10000000)"),
        (BELOW_GP, OpKind.DISPLACEMENT, "S+A-GP"),
        (BELOW_GP.then(MINUS), OpKind.DISPLACEMENT, "-S-A+GP"),
    ],
)
def test_what_x_is_follows_from_the_terms(op: Op, kind: OpKind, formula: str) -> None:
    """Kind and formula are what the terms say."""
    assert (op.kind, op.formula) == (kind, formula)


def test_operations_that_no_terms_say_are_refused() -> None:
    """What accumulates is S+A, added or subtracted; what rounds a sum has no first operation."""
    with pytest.raises(ValueError, match="nothing else"):
        Op("BAD", (Term(1, ("V",)), Term(1, ("S", "A")), Term(-1, ("P",))))
    with pytest.raises(ValueError, match="no sum of terms"):
        Op.PC.then(Op.PAGE)
    with pytest.raises(ValueError, match="no sum of terms"):
        Op.PAIR.then(Op.ABS)


def test_operations_are_values() -> None:
    """An operation that says the same is the same: rows of it are stored together."""
    again = Op("PC", (Term(1, ("S", "A")), Term(-1, ("P",))))
    assert again == Op.PC
    assert hash(again) == hash(Op.PC)
