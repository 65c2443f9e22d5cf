# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64 code as bytes: instruction lengths, NOPs, relative fields, and what a boot implies."""

from __future__ import annotations

from pathlib import Path

import capstone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs.boot_x86_64 import FEATURES, environment
from archs.environment import Boot
from archs.insn_x86_64 import NOPS, decode
from loader.elf import parse

ENGINE = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
ENGINE.detail = True
SAMPLES = Path(__file__).parents[2] / "samples" / "modules" / "x86_64"

# UD0 and UD1 have operands in Intel's manual; EXTRQ and INSERTQ are AMD's alone.
DISPUTED = {"ud0", "ud1", "extrq", "insertq"}

opcodes = st.one_of(
    st.integers(0, 255).map(lambda byte: bytes((byte,))),
    st.integers(0, 255).map(lambda byte: bytes((0x0F, byte))),
    st.integers(0, 255).map(lambda byte: bytes((0x0F, 0x38, byte))),
    st.integers(0, 255).map(lambda byte: bytes((0x0F, 0x3A, byte))),
    st.tuples(st.integers(0, 255), st.integers(0, 255)).map(lambda b: bytes((0xC5, *b))),
)
prefixes = st.sampled_from(["", "66", "f2", "f3", "f0", "2e", "65", "48", "41", "f34c"])


def agree(code: bytes) -> None:
    """Assert that both decoders see the same instruction, where the disassembler knows it."""
    ours, theirs = decode(code), next(ENGINE.disasm(code, 0), None)
    if ours is None or theirs is None or theirs.mnemonic in DISPUTED:
        return
    if 0x66 in ours.prefixes and theirs.group(capstone.CS_GRP_BRANCH_RELATIVE):
        return  # AMD's processors take 16 bits, Intel's and the kernel's decoder 32
    assert ours.length == theirs.size, theirs.mnemonic
    if theirs.disp_size in (1, 4):  # capstone takes 66 for a prefix of the address, too
        assert ours.displacement == (theirs.disp_offset, theirs.disp_size)


@settings(max_examples=600)
@given(prefix=prefixes, opcode=opcodes, rest=st.binary(min_size=12, max_size=12))
def test_instructions_are_as_long_as_a_disassembler_says(prefix, opcode, rest):
    """Any prefixes, opcode and operands have the length, and the displacement, of capstone's."""
    agree(bytes.fromhex(prefix) + opcode + rest)


def test_compiled_code_is_walked_as_a_disassembler_walks_it():
    """In the text of the sample modules every instruction starts where capstone's does."""
    seen = 0
    for path in sorted(SAMPLES.rglob("*.ko")):
        view = parse(path.read_bytes())
        section = view.section(".text")
        text = bytes(view.contents(section))
        at = 0
        for theirs in ENGINE.disasm(text, 0):
            ours = decode(text, at)
            assert ours is not None, path.name
            assert (at, ours.length) == (theirs.address, theirs.size), path.name
            at += ours.length
            seen += 1
    assert seen > 200


def test_a_part_of_an_instruction_is_none():
    """Code that ends within an instruction has no instruction there."""
    code = bytes.fromhex("488b8d40010000")  # mov 0x140(%rbp), %rcx
    assert decode(code).length == 7
    assert all(decode(code[:size]) is None for size in range(7))


@pytest.mark.parametrize("length", range(1, 12))
def test_each_nop_is_one_instruction_of_its_length(length):
    """The preferred NOP of each length is one NOP to a disassembler."""
    (insn,) = ENGINE.disasm(NOPS[length], 0)
    assert (insn.mnemonic, insn.size) == ("nop", length)
    assert decode(NOPS[length]).is_nop


def test_features_have_the_bits_of_cpuid():
    """Words of features that are CPUID registers have the architecture's bits (SDM, CPUID)."""
    published = {"sse2": 26, "nx": 32 + 20, "popcnt": 4 * 32 + 23, "erms": 9 * 32 + 9}
    published |= {"smap": 9 * 32 + 20, "fsrm": 18 * 32 + 4, "xsaveopt": 10 * 32}
    assert {name: FEATURES[name] for name in published} == published
    assert len(set(FEATURES.values())) == len(FEATURES)


INTEL = "vendor_id : GenuineIntel\ncpu family : 6\nflags : fpu sse2 smap {}\nbugs : {}\n"
AMD = "vendor_id : AuthenticAMD\ncpu family : {}\nflags : fpu sse2\nbugs : {}\n"
V2 = "spectre_v1 spectre_v2"


@pytest.mark.parametrize(
    ("line", "cpuinfo", "there", "missing", "thunk"),
    [
        ("mitigations=off", INTEL.format("", V2 + " retbleed its"), "", "retpoline rethunk", ""),
        ("", INTEL.format("", V2), "retpoline rsb_vmexit", "rethunk retpoline_lfence", ""),
        ("nospectre_v2", INTEL.format("", V2), "", "retpoline", ""),
        ("spectre_v2=off", INTEL.format("", V2 + " its"), "", "rethunk", ""),
        ("spectre_v2=retpoline,lfence", INTEL.format("", V2), "retpoline_lfence", "", ""),
        ("", INTEL.format("ibrs_enhanced", V2), "", "retpoline", ""),
        ("", INTEL.format("ibrs", V2 + " retbleed"), "kernel_ibrs", "retpoline", ""),
        ("", INTEL.format("", V2 + " its"), "rethunk", "indirect_thunk_its", "its"),
        ("", INTEL.format("ibrs_enhanced", V2 + " its"), "indirect_thunk_its", "", "its"),
        ("indirect_target_selection=off", INTEL.format("", V2 + " its"), "", "rethunk", ""),
        ("retbleed=stuff", INTEL.format("", V2 + " retbleed its"), "call_depth", "", "call_depth"),
        ("", INTEL.format("", V2 + " retbleed"), "", "call_depth rethunk", ""),
        ("", AMD.format(23, V2 + " retbleed"), "unret rethunk", "srso", "retbleed"),
        ("", AMD.format(23, V2 + " retbleed srso"), "srso unret", "srso_alias", "srso"),
        ("", AMD.format(25, V2 + " srso"), "srso_alias", "", "srso_alias"),
        ("retbleed=ibpb", AMD.format(23, V2 + " retbleed"), "entry_ibpb", "unret", ""),
        ("", INTEL.format("", V2 + " mds l1tf"), "clear_cpu_buf l1tf_pteinv smap", "", ""),
    ],
)
def test_mitigations_follow_from_cpu_and_command_line(line, cpuinfo, there, missing, thunk):
    """What is in force is what Documentation/admin-guide/hw-vuln says for the CPU and options."""
    found = environment(Boot(command_line=line, cpuinfo=cpuinfo))
    assert set(there.split()) <= found.features
    assert not set(missing.split()) & found.features
    names = {"": "__x86_return_thunk"}
    assert found.options["return_thunk"] == names.get(thunk, f"{thunk}_return_thunk")
    assert {"always", "lfence_rdtsc"} <= found.features


def test_what_a_boot_said_wins_over_the_family():
    """Where the kernel reported that SRSO needs nothing (no second thread), nothing is done."""
    says = {"spec_rstack_overflow": "Mitigation: SMT disabled"}
    boot = Boot(cpuinfo=AMD.format(23, V2 + " srso"), vulnerabilities=says)
    assert "srso" not in environment(boot).features


@pytest.mark.parametrize(
    ("mode", "calls"),
    [
        ("", {"cond_resched": 0x1000, "might_resched": 0x1000, "preempt_schedule": 0}),
        ("none", {"cond_resched": 0x1000, "might_resched": 0x2000, "preempt_schedule": 0}),
        ("full", {"cond_resched": 0x2000, "might_resched": 0x2000, "preempt_schedule": 0x3000}),
    ],
)
def test_preemption_decides_what_its_static_calls_call(mode, calls):
    """`preempt=` turns rescheduling points into calls, or into nothing (__sched_dynamic_update)."""
    symbols = {"__cond_resched": 0x1000, "__static_call_return0": 0x2000}
    symbols["preempt_schedule_thunk"] = 0x3000
    found = environment(Boot(command_line=f"preempt={mode}", symbols=symbols)).static_calls
    assert calls.items() <= found.items()


@pytest.mark.parametrize("model", ["max", "Skylake-Server", "EPYC"])
def test_models_are_known_without_cpuinfo(model):
    """A boot that kept no cpuinfo is known by the emulator's model; all its flags are features."""
    found = environment(Boot(model=model))
    assert {"sse2", "smap", "hypervisor", "spectre_v2"} <= found.features
    assert found.features <= set(FEATURES)


def test_the_emulated_cpu_has_the_features_it_claims():
    """CPUID, executed in the emulator, shows each feature that modules are finalised for."""
    import unicorn
    from unicorn import x86_const as x86

    record = archs.arch("x86_64").runs.emulation
    leaves = {0: (1, 0, "RDX"), 1: (1 << 31 | 1, 0, "RDX"), 4: (1, 0, "RCX")}
    leaves |= {6: (1 << 31 | 1, 0, "RCX"), 9: (7, 0, "RBX"), 10: (13, 1, "RAX")}
    leaves |= {15: (1 << 31 | 10, 0, "RDX")}
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.ctl_set_cpu_model(getattr(x86, record.model))
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, b"\x0f\xa2")  # cpuid
    words = {}
    for word, (leaf, subleaf, register) in leaves.items():
        uc.reg_write(x86.UC_X86_REG_RAX, leaf)
        uc.reg_write(x86.UC_X86_REG_RCX, subleaf)
        uc.emu_start(0x1000, 0x1002)
        words[word] = uc.reg_read(getattr(x86, f"UC_X86_REG_{register}"))
    synthetic = {"always", "lfence_rdtsc"}
    for name in record.capabilities - synthetic:
        assert words[FEATURES[name] >> 5] >> (FEATURES[name] & 31) & 1, name
