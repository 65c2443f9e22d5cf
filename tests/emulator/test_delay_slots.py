# SPDX-License-Identifier: GPL-2.0-or-later
"""Branches that go late: whatever stands in their delay slot, code does what the manual says.

The code is assembled by GNU as; what it should do is MIPS64 Architecture for Programmers, volume
II. Each branch is called on a machine of its own, so that what its slot needs was never looked
up before: that is where the emulator forgets where it was (Unicorn issue 2272).
"""

from __future__ import annotations

import pytest

import archs
from allocator.types import MIB
from archs import traps
from archs.system_mips64el import delays
from emulator.faults import Fault, FaultKind
from execmem.check.elfwriter import FUNC, MIPS, A, Rela, Sec, Sym, X
from machine.face import Machine
from tests.machine.snippets import put
from tests.support import tools
from tests.support.checked import made

START = ".set noreorder\n.set noat\n.set mips64r2\n"
# Branch, the values of a1 for which it goes, and for which it does not.
CONDITIONS = {
    "beq $5, $0": ((0,), (1, -1)),
    "bne $5, $0": ((1, -1), (0,)),
    "blez $5": ((0, -1, -(1 << 63)), (1,)),
    "bgtz $5": ((1,), (0, -1)),
    "bltz $5": ((-1, -(1 << 63)), (0, 1)),
    "bgez $5": ((0, 1), (-1,)),
    "bltzal $5": ((-1,), (0, 1)),
    "bgezal $5": ((0, 1), (-1,)),
}
LIKELY = {name.replace(" ", "l ", 1): values for name, values in CONDITIONS.items()}
SLOTS = {
    "load": ("ld $6, 0($4)", 5),
    "store": ("sd $7, 8($4)", 0),
    "clock": ("rdhwr $6, $3", 2),
    # LLD a2, 0(a0): the assembler puts a SYNC in front.
    "linked": (".word 0xd0860000", 5),
    "plain": ("li $6, 3", 3),
}


def code(source, folder):
    """Return the code of instructions with semicolons between."""
    return tools.code(MIPS, START + source.replace("; ", "\n") + "\n", folder)


def fresh():
    """Return a machine."""
    return Machine("mips64el", memory=64 * MIB)


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("branch", [*CONDITIONS, *LIKELY])
def test_a_slot_is_executed_once_whichever_way_it_goes(branch, slot, tmp_path):
    """Taken or not, the slot is executed; behind a likely branch only if it is taken."""
    goes, stays = (CONDITIONS | LIKELY)[branch]
    work, loaded = SLOTS[slot]
    function = code(
        f"move $8, $31; li $6, 0; li $7, 9; {branch}, 1f; {work}; move $31, $8;"
        " jr $31; daddiu $2, $6, 100; 1: move $31, $8; jr $31; daddiu $2, $6, 200",
        tmp_path,
    )
    for value in (*goes, *stays):
        machine = fresh()
        at, cell = put(machine, function), machine.alloc(16)
        machine.write(cell, (5).to_bytes(8, "little") + bytes(8))
        taken = value in goes
        executed = taken or branch not in LIKELY
        assert machine.call(at, cell, value) == loaded * executed + (200 if taken else 100)
        stored = 9 * (executed and slot == "store")
        assert machine.kernel.word(cell + 8) == stored


JUMPS = {
    "jr": "daddiu $25, $5, 1f - start; jr $25",
    "jalr": "daddiu $25, $5, 1f - start; jalr $25",
    "jalr t0": "daddiu $25, $5, 1f - start; jalr $8, $25",
    "bal": "bal 1f",
}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_goes_after_its_slot(jump, slot, tmp_path):
    """What the slot does is there at the target."""
    work, loaded = SLOTS[slot]
    function = code(
        f"start: move $10, $31; li $6, 0; {JUMPS[jump]}; {work}; 2: break;"
        " 1: move $31, $10; jr $31; daddiu $2, $6, 1",
        tmp_path,
    )
    machine = fresh()
    at, cell = put(machine, function), machine.alloc(16)
    machine.write(cell, (5).to_bytes(8, "little"))
    assert machine.call(at, cell, at) == loaded + 1


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("jump", ["j", "jal"])
def test_a_jump_in_its_region_goes_after_its_slot(jump, slot, tmp_path):
    """J and JAL take the region from their slot's place."""
    work, loaded = SLOTS[slot]
    machine = fresh()
    cell = machine.alloc(16)
    machine.write(cell, (5).to_bytes(8, "little"))
    there = put(machine, code("move $31, $10; jr $31; daddiu $2, $6, 1", tmp_path))
    word = {"j": 2, "jal": 3}[jump] << 26 | (there & 0xFFF_FFFF) >> 2
    source = f"move $10, $31; li $6, 0; .word {word:#x}; {work}; break"
    assert machine.call(put(machine, code(source, tmp_path)), cell) == loaded + 1


@pytest.mark.parametrize(
    ("work", "kind"), [("ld $2, 0($4)", FaultKind.READ), ("sd $5, 0($4)", FaultKind.WRITE)]
)
def test_a_fault_in_a_slot_is_where_the_slot_is(work, kind, tmp_path):
    """The place is the slot's own, not the branch's, and the address that of the access."""
    machine = fresh()
    at = put(machine, code(f"nop; jr $31; {work}", tmp_path))
    with pytest.raises(Fault) as caught:
        machine.call(at, 0x1230)
    assert (caught.value.kind, caught.value.pc, caught.value.address) == (kind, at + 8, 0x1230)
    assert machine.call(at, machine.alloc(8)) == 0


def test_the_exception_table_names_slots(tmp_path):
    """An access in a slot that is expected to fail goes on where the table says (exception_epc)."""
    text = code("b 1f; ld $2, 0($4); 1: jr $31; li $2, 1; jr $31; li $2, 7", tmp_path)
    relas = [Rela(0, 18, "peek", 4), Rela(8, 18, "peek", 16)]
    image = made(
        MIPS,
        extra=[
            Sec(".text.peek", text, A | X, align=4),
            Sec("__ex_table", bytes(16), A, align=8, relas=relas),
        ],
        symbols=[Sym("peek", ".text.peek", 0, len(text), FUNC)],
    )
    machine = fresh()
    module = machine.load(image)
    assert module.call("peek", 0x1000) == 7
    assert module.call("peek", machine.alloc(8)) == 1


def test_every_step_of_a_thread_is_whole(tmp_path):
    """A branch and its slot are one step, so that a step is never between them."""
    machine = Machine("mips64el", cpus=2)
    at = put(machine, code("li $2, 0; 1: bne $2, $4, 1b; daddiu $2, $2, 1; jr $31; nop", tmp_path))
    thread = machine.start(at, 3, cpu=1)
    steps = 0
    while not thread.step():
        assert thread.pc in (at, at + 4, at + 12, machine.calls.return_address)
        steps += 1
    assert thread.result == 4
    assert steps in (6, 7)


def test_counting_is_exact_whatever_is_looked_up(tmp_path):
    """A run costs as many instructions the first time as later, when all pages are known."""
    machine = fresh()
    at = put(
        machine, code("ld $2, 0($4); beqz $0, 1f; sd $2, 0($5); 1: jr $31; ld $3, 0($6)", tmp_path)
    )
    pages = [machine.memory.vmalloc(4096) for _ in range(3)]
    for _ in range(2):
        with machine.budget(instructions=1000) as budget:
            machine.call(at, *pages)
        assert 1000 - budget.left == 5


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("ld $2, 1($4)", "a load at an address that is not aligned"),
        ("sw $2, 2($4)", "a store at an address that is not aligned"),
    ],
)
def test_what_is_not_aligned_is_named(work, said, tmp_path):
    """An address error is told as what it is."""
    machine = fresh()
    at = put(machine, code(f"{work}; jr $31; nop", tmp_path))
    with pytest.raises(Fault, match=said) as caught:
        machine.call(at, machine.alloc(16))
    assert caught.value.kind is FaultKind.TRAP


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        ("break", FaultKind.TRAP),
        ("break 12", FaultKind.TRAP),
        ("teq $0, $0", FaultKind.TRAP),
        ("tgei $0, 0", FaultKind.TRAP),
        ("syscall", FaultKind.TRAP),
        ("lui $8, 0x7fff; add $8, $8, $8", FaultKind.TRAP),
        (".set hardfloat; mtc1 $0, $f0", FaultKind.TRAP),
        (".word 0xec000000", FaultKind.INSTRUCTION),
        (".word 0x0000000e", FaultKind.INSTRUCTION),
        ("eret", FaultKind.INSTRUCTION),
        ("b .+8; break", FaultKind.TRAP),
    ],
)
def test_traps_have_their_place(work, kind, tmp_path):
    """Each exception is at the instruction that raises it, wherever another one was before."""
    machine = fresh()
    function = code(f"teq $0, $31; rdhwr $8, $3; {work}; jr $31; nop", tmp_path)
    before = code(f"teq $0, $31; rdhwr $8, $3; {work}", tmp_path).rstrip(b"\0")
    at = put(machine, function)
    with pytest.raises(Fault) as caught:
        machine.call(at)
    assert caught.value.kind is kind
    assert caught.value.pc == at + (len(before) + 3) // 4 * 4 - 4


def test_a_pair_of_ll_and_sc(tmp_path):
    """A conditional store stores and says 1; without its load, or after another's store, 0."""
    add = code(
        "1: .word 0xd0820000; daddiu $3, $2, 1; scd $3, 0($4); beqz $3, 1b; nop; jr $31; nop",
        tmp_path,
    )
    alone = code("li $2, 7; jr $31; scd $2, 0($4)", tmp_path)
    machine = Machine("mips64el", cpus=2)
    cell = machine.alloc(8)
    machine.write(cell, (41).to_bytes(8, "little"))
    at = put(machine, add)
    assert machine.call(at, cell) == 41
    assert machine.kernel.word(cell) == 42
    assert machine.call(put(machine, alone), cell) == 0
    assert machine.kernel.word(cell) == 42
    thread = machine.start(at, cell, cpu=1)
    thread.step(2)  # it has loaded 42
    assert machine.call(at, cell) == 42
    assert thread.finish() == 43  # its store failed, and it tried again
    assert machine.kernel.word(cell) == 44


def test_words_of_32_bits_are_sign_extended(tmp_path):
    """LL loads a signed word, and SC stores 32 bits."""
    machine = fresh()
    cell = machine.alloc(8)
    machine.write(cell, b"\xff\xff\xff\x80\x11\x22\x33\x44")
    at = put(machine, code(".word 0xc0820000; move $3, $2; sc $3, 0($4); jr $31; nop", tmp_path))
    assert machine.call(at, cell) == 0xFFFF_FFFF_80FF_FFFF
    assert machine.read(cell, 8) == b"\xff\xff\xff\x80\x11\x22\x33\x44"


def test_instructions_with_a_slot_are_told_by_their_encoding(tmp_path):
    """The branches and jumps of Release 2, and nothing like them."""
    late = "j 0; jal 0; jr $31; jalr $25; beq $1, $2, .; bne $1, $2, .; blez $1, .; bgtz $1, .;"
    late += " bltz $1, .; bgez $1, .; bltzal $1, .; bgezal $1, .; beql $1, $2, .; bnel $1, $2, .;"
    late += " blezl $1, .; bgtzl $1, .; bltzl $1, .; bgezl $1, .; bltzall $1, .; bgezall $1, ."
    for source in late.split("; "):
        assert delays(code(source, tmp_path)[:4]), source
    for source in ("nop", "syscall", "break", "teq $1, $2", "tgei $1, 3", "movz $1, $2, $3",
                   "sync", "mthi $1", "addiu $1, $2, 3", "ld $1, 0($2)", "synci 0($1)"):  # fmt: skip
        assert not delays(code(source, tmp_path)[:4]), source


def test_the_record_has_what_the_emulator_needs():
    """Division by zero is a trap with a number; other architectures have no such slots."""
    assert traps.mips64el(b"", (0x0000_01F4).to_bytes(4, "little")).detail
    late = [a.name for a in archs.ALL if a.run and a.runs.emulation.delay_slots is not None]
    assert late == ["mips64el"]
