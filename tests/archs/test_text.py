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
from machine.machine import Machine
from samples import modules
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
    sizes = (
        {2: 7, 5: 31} if 2 in labels.nops else {4: {8: 27, 2: 20}[arch.loads.function_alignment]}
    )
    for size, bits in sizes.items():
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

# Instructions relative to where they stand, or that leave the straight line.
IMITATED = {
    "x86_64": [
        *(f"{0x70 + cc:02x}10" for cc in range(16)),  # jcc +0x10
        *(f"0f{0x80 + cc:02x}e0ffffff" for cc in range(16)),  # jcc -0x20
        "eb20",  # jmp +0x20
        "e900010000",  # jmp +0x100
        "e8f0ffffff",  # call -0x10
        "e008",  # loopne
        "e108",  # loope
        "e208",  # loop
        "e3f0",  # jrcxz
        "c3",  # ret
        "c21000",  # ret $16
        "ffd0",  # call *%rax
        "41ffd3",  # call *%r11
        "ffe1",  # jmp *%rcx
        "41ffe7",  # jmp *%r15
        "f3c3",  # rep ret
    ],
    "arm64": [
        "40000014",  # b .+0x100
        "f0ffff97",  # bl .-0x40
        *(f"{0x40 + cc:02x}000054" for cc in range(16)),  # b.cc .+8
        "43000034",  # cbz w3, .+8
        "430000b4",  # cbz x3, .+8
        "a3ffffb5",  # cbnz x3, .-0xc
        "a3ffff35",  # cbnz w3, .-0xc
        "64002036",  # tbz w4, #4, .+0xc
        "640020b7",  # tbnz x4, #36, .+0xc
        "a0001fd6",  # br x5
        "c0003fd6",  # blr x6
        "c0035fd6",  # ret
        "87000010",  # adr x7, .+0x10
        "e8ffff70",  # adr x8, .-1
        "09000090",  # adrp x9, .
        "aaffffb0",  # adrp x10, ...
        "4b000018",  # ldr w11, .+8
        "4c000058",  # ldr x12, .+8
        "4d000098",  # ldrsw x13, .+8
        "5f000058",  # ldr xzr, .+8
    ],
    "riscv64": [
        "97020080",  # auipc t0, 0x80000
        "17f5ff7f",  # auipc a0, 0x7ffff
        "ef000010",  # jal .+0x100
        "6ff01fff",  # j .-0x10
        "e7800200",  # jalr t0
        "678002ff",  # jr -16(t0)
        "e7821200",  # jalr t0, 1(t0)
        *(f"63{0x80 | kind << 4:02x}b500" for kind in (0, 1, 4, 5, 6, 7)),  # b.. a1, a1
        *(f"63{0x80 | kind << 4:02x}c500" for kind in (0, 1, 4, 5, 6, 7)),  # b.. a1, a2
        *(f"e3{0x0E | kind << 4:02x}b6fe" for kind in (0, 1, 4, 5, 6, 7)),  # b.. a3, a1 back
        "21a8",  # c.j
        "0dc2",  # c.beqz a2
        "75fe",  # c.bnez a2
        "8282",  # c.jr t0
        "0293",  # c.jalr t1
    ],
}
WRITABLE = {
    "x86_64": "rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(),
    "arm64": [f"x{n}" for n in range(31)],
    "riscv64": "ra t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7".split(),
}
FLAGS = {"x86_64": ("eflags", 0x8D5, 0x202), "arm64": ("nzcv", 0xF000_0000, 0)}


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

    for text in IMITATED[arch.name]:
        code = bytes.fromhex(text)
        filler = chance.randbytes(16 // arch.text_poke.granule * arch.text_poke.granule)
        machine.execmem.poke(place, (code + filler)[:16])
        insn = arch.patching.kprobes.decode(code + filler, place)
        assert (insn.size, insn.refusal) == (len(code), ""), text
        assert insn.simulate is not None, text
        for _ in range(12):
            interesting = [0, 1, 2, 1 << 4, 1 << 36, 1 << 31, 1 << 63, MASK64, base, base + 0x80]
            values = {name: chance.choice(interesting) for name in WRITABLE[arch.name]}
            for name, value in values.items():
                machine.cpu.write(name, value)
            machine.cpu.write(arch.runs.calling.stack_pointer, stack)
            machine.write(stack - 0x40, 0x10 * (base + 0x100).to_bytes(8, "little"))
            if arch.name in FLAGS:
                name, mask, fixed = FLAGS[arch.name]
                machine.cpu.write(name, chance.getrandbits(32) & mask | fixed)
            context, memory = machine.cpu.context(), machine.read(stack - 0x40, 0x80)
            with pytest.raises(Stop):  # after one instruction, or nothing is where it goes
                machine.cpu.run(place, 1 << 63, instructions=1, seconds=None)
            executed = state()
            machine.cpu.restore(context)
            machine.write(stack - 0x40, memory)
            machine.cpu.write(pc, insn.simulate(guest))
            assert state() == executed, (text, values)


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("x86_64", "ff10", "indirect branch through memory"),  # call *(%rax)
        ("x86_64", "ff6c2408", "far transfer"),  # ljmp *8(%rsp)
        ("x86_64", "0f0b", "ud2"),
        ("x86_64", "06", "no valid instruction"),
        ("arm64", "010000d4", "takes an exception"),  # svc #0
        ("arm64", "1f0b5fd6", "authenticated branch"),  # retaa, roughly
        ("arm64", "7f2003d5", "hint"),  # wfi
        ("arm64", "01421bd5", "writes a system register"),  # msr nzcv, x1
        ("arm64", "20423bd5", "interrupt mask"),  # mrs x0, daif
        ("arm64", "4000001c", "literal load"),  # ldr s0, .+8
        ("arm64", "207c5fc8", "exclusive access"),  # ldxr x0, [x1]
        ("riscv64", "73001000", "system instruction"),  # ebreak
        ("riscv64", "0f00f00f", "fence"),
        ("riscv64", "2fa60510", "exclusive access"),  # lr.w a2, (a1)
        ("riscv64", "0290", "breakpoint"),  # c.ebreak
        ("riscv64", "0000", "undefined"),
    ],
)
def test_refused_instructions(arch, name, code, reason):
    """What cannot be imitated nor executed elsewhere is refused with its reason."""
    if name != arch.name:
        return
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
