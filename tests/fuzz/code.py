# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls random code, in processes that may be lost: `python -m tests.fuzz.code --calls 200000`.

Code comes from several generators (uniform, within classes of instructions, damaged code of the
samples), chosen by seed and number, so that every call can be made again. A process that dies
is counted; the instruction that it died over is found, and the class of such instructions: for
words of fixed size the bits that matter, else the bytes that do. Nothing else may happen: an
error that is not of the `ExecmemError` family, a limit that was exceeded by more than a tenth
of a second and a tenth, or more memory than `emulator.process` says, fails the run.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import re
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from random import Random

import attrs

import archs
from allocator import ExecmemError
from allocator.types import MIB, PAGE_SIZE, MemType
from archs import Arch
from emulator.culprit import attempt, find
from emulator.faults import Fault, FaultKind
from emulator.process import HOST, TRANSLATION, rss
from execmem.worker.child import alone
from execmem.worker.copies import isolated
from loader.elf import parse
from machine.face import Machine
from samples import modules

BATCH = 2000  # calls of one process
MEMORY = 256 * MIB  # of the guest
SECONDS = 0.1  # limit of a call
SLACK = 0.1, 1.1  # so much, and so many times, more is still as promised
ROOM = 2 * PAGE_SIZE
LEFT = 160  # return instructions behind the code
STATE = struct.Struct("<QQQdQ")  # number, calls, exceeded, longest, peak of memory


# What is called ------------------------------------------------------------------------------


def uniform(arch: Arch, random: Random) -> bytes:
    """Return any bytes."""
    del arch
    return random.randbytes(random.choice((4, 4, 8, 16, 32, 64)))


def structured(arch: Arch, random: Random) -> bytes:
    """Return instructions that keep to the classes of an architecture's encoding."""
    one = {"x86_64": _x86, "arm64": _arm64, "riscv64": _riscv, "mips64el": _mips}[arch.name]
    return b"".join(one(random) for _ in range(random.choice((1, 1, 2, 4, 8, 16))))


_LEGACY = (0xF0, 0xF2, 0xF3, 0x66, 0x67, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65)


def _x86(random: Random) -> bytes:
    code = bytes(random.choices(_LEGACY, k=random.choice((0, 0, 1, 1, 2))))
    if random.random() < 0.4:
        code += bytes((0x40 | random.randrange(16),))
    code += random.choice((b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a"))
    code += random.randbytes(1)
    form = random.choice((0xC0, 0xC0, 0x00, 0x40, 0x80))
    code += bytes((form | random.randrange(64),))
    return code + random.randbytes(random.choice((0, 1, 1, 4, 5)))


def _arm64(random: Random) -> bytes:
    word = random.getrandbits(32)
    classes = (0b0111, 0b1111, 0b0111, 0b1111, 0b1000, 0b0100, 0b0110, 0b1100, 0b1110, 0b0101)
    word = word & ~(0xF << 25) | random.choice(classes) << 25
    if random.random() < 0.2:  # system instructions: barriers, hints, registers, exceptions
        word = 0xD500_0000 | random.getrandbits(22)
    return word.to_bytes(4, "little")


def _riscv(random: Random) -> bytes:
    if random.random() < 0.3:
        return (random.getrandbits(16) & ~3 | random.randrange(3)).to_bytes(2, "little")
    major = random.choice((0x03, 0x07, 0x0B, 0x0F, 0x13, 0x17, 0x1B, 0x23, 0x27, 0x2B, 0x2F, 0x33,
                           0x37, 0x3B, 0x43, 0x47, 0x4B, 0x4F, 0x53, 0x57, 0x5B, 0x63, 0x67, 0x6F,
                           0x73, 0x73, 0x77, 0x7B))  # fmt: skip
    return (random.getrandbits(32) & ~0x7F | major).to_bytes(4, "little")


def _mips(random: Random) -> bytes:
    word = random.getrandbits(32) & 0x3FF_FFFF
    classes = (*range(8), 0, 0, 0, 1, 8, 9, 12, 15, 16, 16, *range(20, 32), *range(32, 64))
    return (random.choice(classes) << 26 | word).to_bytes(4, "little")


@cache
def _texts(name: str) -> list[bytes]:
    found = []
    for module in modules.names():
        view = parse(modules.path(name, module).read_bytes(), module)
        section = view.section(".text")
        if section is not None and len(view.contents(section)) > 16:
            found.append(bytes(view.contents(section)))
    return found


def damaged(arch: Arch, random: Random) -> bytes:
    """Return real code with a few bits or bytes changed."""
    text = random.choice(_texts(arch.name))
    step = 4 if arch.runs.emulation.longest(b"") == 4 else 2
    start = random.randrange(0, len(text) - 8, step)
    code = bytearray(text[start : start + random.choice((8, 16, 32, 64))])
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(code))
        code[at] = random.choice((code[at] ^ 1 << random.randrange(8), random.randrange(256)))
    return bytes(code)


GENERATORS = (uniform, structured, structured, damaged)


def code_of(arch: Arch, seed: int, number: int) -> tuple[bytes, Random]:
    """Return the code of a call, and what chooses its arguments."""
    random = Random(f"{seed}/{arch.name}/{number}")
    code = random.choice(GENERATORS)(arch, random)
    return code + arch.runs.emulation.ret, random


# Calling it -----------------------------------------------------------------------------------


class Caller:
    """A machine with room for code, used for many calls."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.machine = Machine(arch, memory=MEMORY, unknown="zero")
        pending = self.machine.execmem.alloc(MemType.TEXT, ROOM)
        pending.write(0, arch.runs.emulation.ret * (ROOM // len(arch.runs.emulation.ret)))
        self.address = pending.finish().address
        found = self.machine.memory.translate(self.address)
        assert found is not None
        self._frame = found.address
        self.buffer = self.machine.alloc(4 * PAGE_SIZE)

    def call(self, code: bytes, random: Random) -> tuple[str, float, float]:
        """Call code; return what came of it, the seconds that it took, and how many it might."""
        machine = self.machine
        padded = (
            code + self.arch.runs.emulation.ret * LEFT
        )  # of what was called before, nothing stays
        machine.memory.physical.write(self._frame, padded)
        machine.cpu.sync_icache(self.address, self.address + len(padded))
        near = self.buffer + 4096
        choices = (near, near + 8, 0, 1, 64, random.getrandbits(64), self.address)
        arguments = [random.choice(choices) for _ in range(6)]
        counted = 2000 if random.random() < 0.25 else None
        began, used = time.monotonic(), time.process_time()
        try:
            machine.call(self.address, *arguments, seconds=SECONDS, instructions=counted)
            came = "returned"
        except Fault as fault:
            came = fault.kind.value
        except ExecmemError as error:
            came = type(error).__name__
        # A busy host may let a process wait; that is not the call's time.
        took, used = time.monotonic() - began, time.process_time() - used
        return came, took if used > SECONDS else min(took, SECONDS), SECONDS


def batch(name: str, seed: int, start: int, count: int, shared: mmap.mmap) -> dict[str, object]:
    """Make calls; in a process of its own, which notes in `shared` how far it is."""
    arch = archs.arch(name)
    signal.alarm(120)
    _, calls, exceeded, longest, peak = STATE.unpack_from(shared, 0)
    caller, came, escapes = Caller(arch), Counter[str](), []
    for number in range(start, start + count):
        STATE.pack_into(shared, 0, number, calls, exceeded, longest, max(peak, rss()))
        code, random = code_of(arch, seed, number)
        try:
            what, took, allowed = caller.call(code, random)
            came[what] += 1
        except Exception as error:  # noqa: BLE001 -- to find these is what it is for
            escapes.append((number, "".join(traceback.format_exception(error))))
            took, allowed, caller = 0.0, SECONDS, Caller(arch)
            gc.collect()
        calls += 1
        longest = max(longest, took)
        exceeded += took > allowed * SLACK[1] + SLACK[0]
    STATE.pack_into(shared, 0, start + count, calls, exceeded, longest, max(peak, rss()))
    return {"came": came, "escapes": escapes}


# What a process died over -----------------------------------------------------------------------


def dies(arch: Arch, code: bytes) -> bool:
    """Return whether an instruction by itself ends a process."""
    return not alone(partial(attempt, arch, code))


def class_of(arch: Arch, code: bytes) -> str:
    """Return the class of an instruction that ends processes, as a mask and a value, or bytes."""
    if len(code) <= 4 and arch.runs.emulation.longest(code) == len(code):
        word, mask = int.from_bytes(code, "little"), 0
        for bit in range(8 * len(code)):
            if not dies(arch, (word ^ 1 << bit).to_bytes(len(code), "little")):
                mask |= 1 << bit
        return f"word & {mask:#010x} == {word & mask:#010x}"
    for at in range(len(code) - 1, -1, -1):  # shorter, as long as it is one instruction
        shorter = code[:at] + code[at + 1 :]
        if shorter and dies(arch, shorter):
            code = shorter
    pattern = ""
    for at, byte in enumerate(code):
        mask = 0
        for bit in range(8):
            changed = code[:at] + bytes((byte ^ 1 << bit,)) + code[at + 1 :]
            if not dies(arch, changed):
                mask |= 1 << bit
        pattern += f"{byte & mask:02x}/{mask:02x} " if mask != 0xFF else f"{byte:02x} "
    return pattern.strip()


def matches(kind: str, code: bytes) -> bool:
    """Return whether a class of words holds an instruction."""
    found = re.fullmatch(r"word & (\w+) == (\w+)", kind)
    word = int.from_bytes(code, "little")
    return found is not None and word & int(found[1], 16) == int(found[2], 16)


@attrs.define
class Death:
    """A class of instructions that end processes."""

    example: str
    told: str
    numbers: list[int] = attrs.field(factory=list)


def smallest(arch: Arch, seed: int, number: int) -> bytes:
    """Return the instruction of a call's code that ends a process by itself; empty for none."""
    code, _ = code_of(arch, seed, number)
    found = find(arch.name, code, 0, alone)
    return b"" if found is None else found[1]


def campaign(arch: Arch, calls: int, seed: int) -> dict[str, object]:
    """Make so many calls, and return what came of them."""
    shared = mmap.mmap(-1, PAGE_SIZE)
    came, deaths, escapes = Counter[str](), dict[str, Death](), []
    died, number, began = 0, 0, time.monotonic()
    while number < calls:
        try:
            done = isolated(batch, arch.name, seed, number, min(BATCH, calls - number), shared)
            came += done["came"]
            escapes += done["escapes"]
            number = STATE.unpack_from(shared, 0)[0]
        except ExecmemError as error:
            number, done_calls, *more = STATE.unpack_from(shared, 0)
            STATE.pack_into(shared, 0, number, done_calls + 1, *more)
            died += 1
            told = isinstance(error, Fault) and error.kind in (
                FaultKind.EMULATOR,
                FaultKind.TIME_LIMIT,
            )
            came["died" if told else "died untold"] += 1
            code = smallest(arch, seed, number)
            kind = next((k for k in deaths if code and matches(k, code)), "")
            if not kind:
                kind = class_of(arch, code) if code else f"not alone: {error}"
            if kind not in deaths:
                deaths[kind] = Death(code.hex(), str(error))
                print(f"{arch.name}: {number}: {kind}: {code.hex()}: {error}", file=sys.stderr)
            deaths[kind].numbers.append(number)
            number += 1
    _, made, exceeded, longest, peak = STATE.unpack_from(shared, 0)
    bound = resource_bound()
    return {
        "arch": arch.name,
        "calls": made,
        "came": dict(came.most_common()),
        "died": died,
        "deaths": {
            kind: {"example": d.example, "told": d.told, "times": len(d.numbers),
                   "first": d.numbers[0]}
            for kind, d in deaths.items()
        },
        "escapes": escapes[:20],
        "exceeded": exceeded,
        "longest": round(longest, 3),
        "peak": peak,
        "bound": bound,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def resource_bound() -> int:
    """Return what a process of the campaign may have at most, beside what it starts with."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(own + MEMORY + TRANSLATION + HOST * MEMORY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; return 1 when anything happened that may not."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.code")
    parser.add_argument("--arch", action="append", help="only this one; repeatable")
    parser.add_argument("--calls", type=int, default=20_000, help="for each architecture")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    failed = False
    for arch in archs.archs():
        if options.arch and arch.name not in options.arch:
            continue
        found = campaign(arch, options.calls, options.seed)
        print(json.dumps(found, indent=1), flush=True)
        untold = found["came"].get("died untold", 0)
        failed |= bool(found["escapes"] or found["exceeded"] or untold)
        failed |= found["peak"] > found["bound"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
