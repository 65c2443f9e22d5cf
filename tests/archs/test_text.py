# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that patch text: a disassembler reads them as what they are meant to be.

Lengths are held against the disassembler over real module text; what a probe imitates is
held against the emulated CPU executing the same instruction.
"""

from __future__ import annotations

import random

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.types import Consumer, MemType
from emulator.faults import Stop
from kernels.modelled.guest import Guest
from loader.elf import parse
from loader.files import read_module
from machine.face import Machine
from samples import modules
from tests.archs.facts import cases, facts
from tests.archs.test_registry import disassembler

PLACE = 0xFFFF_FFFF_C012_3450
MASK64 = (1 << 64) - 1


def texts(files):
    """Yield the executable sections of module files."""
    for file in files:
        view = parse(read_module(file), file.name)
        for section in view.sections:
            if section.flags & 6 == 6 and section.size:  # SHF_ALLOC | SHF_EXECINSTR
                yield bytes(view.contents(section))


def agree(arch, code):
    """Assert that both decoders cut code in the same pieces; return how many."""
    engine = disassembler(arch)
    engine.detail, engine.skipdata = False, False
    count = at = 0
    while at < len(code):
        for address, size, mnemonic, _ in engine.disasm_lite(code[at:], at):
            # Capstone leaves off the ModRM byte of UD1 (Intel SDM 2, UD): 0F B9 /r.
            size += mnemonic == "ud1"  # noqa: PLW2901 -- the length that the manual says
            assert arch.patching.kprobes.decode(code[address : address + 16], address).size == size
            count, at = count + 1, address + size
            if mnemonic == "ud1":
                break
        else:
            at += max(len(arch.loads.trap), 1)  # data, or what the disassembler does not know
    return count


def test_lengths_in_sample_modules(arch):
    """Every instruction of our own modules has the disassembler's length."""
    files = [modules.path(arch.name, name) for name in modules.names()]
    assert sum(agree(arch, code) for code in texts(files)) > 500


@pytest.mark.parametrize("name", ["lz4_compress", "libcurve25519-generic", "jbd2", "raid6_pq"])
def test_lengths_in_distribution_modules(arch, corpus, name):
    """Every instruction of a distribution's modules has the disassembler's length."""
    files = list(corpus.glob(f"lib/modules/*/kernel/**/{name}.ko*"))
    if not files:
        pytest.skip(f"no {name} for {arch.name}")
    assert sum(agree(arch, code) for code in texts(files)) > 1000


def decoded(arch, code, address=PLACE):
    """Return all instructions of code as the disassembler sees them; none may be left over."""
    engine = disassembler(arch)
    found = list(engine.disasm(code, address))
    assert sum(insn.size for insn in found) == len(code)
    return found


def target(insn):
    """Return where a direct branch goes: RISC-V's print the displacement."""
    operand = insn.operands[-1].imm
    riscv = insn.reg_name(1) == "ra" or insn.mnemonic.startswith(("j", "c.j"))
    relative = riscv and insn._cs.arch == capstone.CS_ARCH_RISCV
    return (operand + insn.address * relative) & MASK64


@pytest.mark.parametrize("distance", [-0x100000, -0x7F0, -0x40, 0, 8, 0x70, 0x7FE, 0xFFFFC])
def test_static_jumps_go_to_their_target(arch, distance):
    """A jump of each size is one instruction that goes where it should, or out of reach."""
    labels = arch.patching.jump_labels
    place = PLACE & ~3
    to = (place + distance) & ~3
    for size in labels.nops:
        code = labels.jump(place, to, size)
        if code is None:
            assert size == 2
            assert not -126 <= to - place <= 129
            continue
        (insn,) = decoded(arch, code, place)
        assert insn.size == size == labels.size(code)
        assert capstone.CS_GRP_JUMP in insn.groups or insn.mnemonic in ("j", "jal", "b")
        assert target(insn) == to


def test_static_nops_are_nops(arch):
    """The other form of a branch is one NOP of the same size."""
    for size, code in arch.patching.jump_labels.nops.items():
        (insn,) = decoded(arch, code)
        assert insn.size == size == arch.patching.jump_labels.size(code)
        assert insn.mnemonic in ("nop", "xchg")
        if insn.mnemonic == "xchg":
            assert insn.op_str == "ax, ax"


def test_jumps_beyond_their_reach_are_refused(arch):
    """A displacement just inside the branch's reach is encoded, one step further is not."""
    labels = arch.patching.jump_labels
    for size, bits in facts(arch).patch.jump_reach.items():
        behind = size if 2 in labels.nops else 0
        step = 1 if behind else arch.text_poke.granule
        for edge, outside in (((1 << bits) - step, 1 << bits), (-(1 << bits), -(1 << bits) - step)):
            assert labels.jump(PLACE, PLACE + behind + edge, size) is not None
            assert labels.jump(PLACE, PLACE + behind + outside, size) is None


@given(distance=st.integers(-(1 << 26), (1 << 26) - 1))
def test_call_sites_call_the_trampoline(arch, distance):
    """A traced entry ends in a call of the trampoline, and keeps its size."""
    ftrace, place = arch.patching.ftrace, PLACE & ~7
    to = (place + distance) & ~3
    code = ftrace.call(place, to)
    assert len(code) == ftrace.size
    last = decoded(arch, code, place)[-1]
    if last.mnemonic == "jalr":  # behind AUIPC t0: the two together
        pages, low = (insn.operands[-1] for insn in decoded(arch, code, place))
        low = low.imm if low.type == capstone.riscv.RISCV_OP_IMM else low.mem.disp
        assert ((pages.imm << 12) + low - (to - place)) % (1 << 32) == 0
    else:
        assert last.mnemonic in ("call", "bl")
        assert target(last) == to


# What probes imitate ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laboratory():
    """Return what gives each architecture a machine with a page of code and a stack, once."""
    made = {}

    def of(arch):
        if arch.name not in made:
            machine = Machine(arch)
            with machine.execmem.alloc(MemType.TEXT, 0x400, consumer=Consumer.THUNK) as pending:
                text = pending.finish()
            made[arch.name] = machine, text.address, machine.alloc(0x100) + 0x80
        return made[arch.name]

    return of


def test_imitated_instructions_do_what_the_cpu_does(arch, laboratory):
    """Whatever registers hold, imitating an instruction and executing it end the same."""
    machine, base, stack = laboratory(arch)
    place, chance = base + 0x200, random.Random(arch.name)
    names = arch.patching.kprobes.registers
    pc = arch.runs.calling.program_counter
    guest = Guest(machine.cpu, machine.kernel)

    def state():
        return {name: machine.cpu.read(name) & MASK64 for name in names} | {
            "stack": machine.read(stack - 0x40, 0x80)
        }

    for text in facts(arch).patch.imitated:
        code = bytes.fromhex(text)
        filler = chance.randbytes(16 // arch.text_poke.granule * arch.text_poke.granule)
        machine.execmem.poke(place, (code + filler)[:16])
        insn = arch.patching.kprobes.decode(code + filler, place)
        assert (insn.size, insn.refusal) == (len(code), ""), text
        assert insn.simulate is not None, text
        for _ in range(12):
            interesting = [0, 1, 2, 1 << 4, 1 << 36, 1 << 31, 1 << 63, MASK64, base, base + 0x80]
            values = {name: chance.choice(interesting) for name in facts(arch).patch.writable}
            for name, value in values.items():
                machine.cpu.write(name, value)
            machine.cpu.write(arch.runs.calling.stack_pointer, stack)
            machine.write(stack - 0x40, 0x10 * (base + 0x100).to_bytes(8, "little"))
            if facts(arch).patch.flags is not None:
                name, mask, fixed = facts(arch).patch.flags
                machine.cpu.write(name, chance.getrandbits(32) & mask | fixed)
            context, memory = machine.cpu.context(), machine.read(stack - 0x40, 0x80)
            with pytest.raises(Stop):  # after one instruction, or nothing is where it goes
                machine.cpu.run(place, 1 << 63, instructions=1, seconds=None)
            executed = state()
            machine.cpu.restore(context)
            machine.write(stack - 0x40, memory)
            machine.cpu.write(pc, insn.simulate(guest))
            assert state() == executed, (text, values)


@pytest.mark.parametrize(("arch", "refused"), cases("patch", "refused_probes"))
def test_refused_instructions(arch, refused):
    """What cannot be imitated nor executed elsewhere is refused with its reason."""
    assert facts(arch).patch
    code, reason = refused
    insn = arch.patching.kprobes.decode(bytes.fromhex(code).ljust(16, b"\x90"), PLACE & ~7)
    assert reason in insn.refusal


def test_conditional_static_calls_keep_their_condition():
    """A conditional tail call goes to another target on the same condition, and never nowhere."""
    import archs

    encode = archs.arch("x86_64").patching.static_calls.encode
    for condition in range(16):
        code = bytes((0x0F, 0x80 | condition)) + bytes(4)
        to = PLACE + 0x1234
        before, after = decoded(archs.arch("x86_64"), code + encode(PLACE, code, to, True, False))
        assert (before.mnemonic, after.size) == (after.mnemonic, 6)
        assert target(after) - after.address == to - PLACE
        assert encode(PLACE, code, 0, True, False) is None
    assert encode(PLACE, b"\x48\x89\xd8\x90\x90\x90", PLACE, False, False) is None


def test_relative_operands_are_made_up_for_the_distance():
    """A copied x86-64 instruction names the same address from its slot, or is refused."""
    import archs

    x86 = archs.arch("x86_64")
    for text in ("488b0510000000", "c7052000000001000000", "48833d0000000005", "c5f96f0500010000"):
        code = bytes.fromhex(text)
        insn = x86.patching.kprobes.decode(code, PLACE)
        slot = PLACE + 0x12345
        named = []
        for copied, address in ((code, PLACE), (insn.copy(slot), slot)):
            (found,) = decoded(x86, copied, address)
            memory = next(o.mem for o in found.operands if o.type == capstone.x86.X86_OP_MEM)
            named.append((found.mnemonic, address + found.size + memory.disp))
        assert named[0] == named[1]
        assert insn.copy(PLACE - (1 << 32)) is None
