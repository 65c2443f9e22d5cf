# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions a second of the fuzzer's rounds, beside a bare Unicorn loop over the same function.

python -m benchmarks.fuzz [ARCH] runs the sample's CRC over 64 bytes in the modelled kernel,
python -m benchmarks.fuzz FOLDER... functions of the kernel in a folder, which it boots: LZ4 out of the
kernel itself, and where the folder has hid.ko a mouse's report descriptor; and a system call, without a
bare loop beside it. Bare is: registers and input set, the emulator started, memory, registers and
looked-up addresses dropped. Beside it are rounds without coverage, with it, and with it and mutated
inputs, which is what `execmem fuzz` does; the processor's time, the median of turns that alternate.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from execmem import Machine
from execmem.fuzzing import targets
from execmem.fuzzing.mutate import Mutator
from loader.errors import NoModule
from samples.modules import root

SECONDS, TURNS = 0.2, 5  # of a turn; turns of each
PACKED = bytes.fromhex("1f410100ff0e504142434445")  # 290 times A, and BCDE
MOUSE = bytes.fromhex(
    "05010902a1010901a100050919012903150025019503750181029501750581010501093009311581257f750895028106c0c0"
)
Work = Callable[[], object]


def rates(works: dict[str, Work]) -> dict[str, float]:
    """Return how often a second each of some things can be done."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            began, count = time.process_time(), 0
            while (taken := time.process_time() - began) < SECONDS:
                for _ in range(10):
                    work()
                count += 10
            if turn:  # the first lets code be translated
                found[name].append(count / taken)
    return {name: statistics.median(each) for name, each in found.items()}


def show(title: str, works: dict[str, Work]) -> None:
    """Print a line for each, beside the first."""
    found = rates(works)
    first = next(iter(found.values()))
    for name, rate in found.items():
        print(f"{title}: {name} {rate:,.0f}/s, {rate / first:.2f} of the first")


def modelled(name: str) -> None:
    """Measure a sample's function in the modelled kernel."""
    machine: Any = Machine(name, root=root(name))
    module = machine.load("checksums")
    address = module.symbols["checksums_crc32"]
    section = next(each for each in module.sections.values() if each.name == ".text")
    text = (section.address, section.address + section.size)
    for spans in ((), (text,)):
        _modelled(machine, name, address, spans)


def _modelled(machine: Any, name: str, address: int, spans: tuple[tuple[int, int], ...]) -> None:
    data = bytes(range(64))
    rounds = machine.rounds(spans)
    buffer = rounds.buffer(4096)
    mutator = Mutator(64)
    with rounds:
        cpu, calling = machine.cpu, machine.arch.runs.calling
        at = buffer.put(data)
        rounds.run(lambda: rounds.call(address, (at, 64, 0)))
        end = machine.kernel.return_address
        names = (
            *calling.arguments[:3],
            calling.stack_pointer,
            calling.link or calling.arguments[2],
        )
        bank = cpu.bank(names)
        top = machine.calls.stack.start + 0x3F00
        if calling.link is None:
            machine.memory.write(top, end.to_bytes(8, "little"))

        def bare() -> None:
            buffer.put(data)
            if calling.link is None:
                machine.memory.write(top, end.to_bytes(8, "little"))
            bank([at, 64, 0, top, end if calling.link else 0])
            cpu.uc.emu_start(address, end)
            rounds._ram.drop()  # noqa: SLF001 -- what a bare loop would do itself

        inputs = mutator.inputs([data], 1, 1 << 30)

        def call(given: bytes) -> object:
            return rounds.run(lambda: rounds.call(address, (buffer.put(given), len(given), 0)))

        works: dict[str, Work] = {"bare": bare, "rounds": lambda: call(data)}
        if spans:
            works["rounds and mutation"] = lambda: call(next(inputs))
        show(f"{name}, {'with' if spans else 'without'} coverage", works)


def booted(folder: Path) -> None:
    """Measure functions of a kernel that is booted."""
    machine: Any = Machine(kernel=folder, root=folder if list(folder.rglob("*.ko*")) else None)
    title = f"{machine.kernel.release} {machine.arch.name}"
    out, unpack = machine.alloc(512), machine.function("LZ4_decompress_safe")
    text = machine.ground.text()
    _both(
        machine,
        f"{title}, LZ4",
        unpack,
        PACKED,
        (text.start, text.stop),
        lambda at, size: (at, out, size, 512),
    )
    with machine.fork():
        call = targets.system_call(machine, "write:fd=/dev/null,buf=bytes:0-64,count=len(buf)")
        rounds = machine.rounds(call.spans)
        call.prepare(rounds)
        with rounds:
            show(f"{title}, write(2)", {"rounds": lambda: rounds.run(call.work(rounds, b"abc"))})
    try:
        hid = machine.load("hid")
    except NoModule as error:
        print(f"{title}, hid_open_report: {error}")
        return
    driver, bus = machine.new("struct hid_driver"), machine.new("struct hid_ll_driver")
    device = hid.functions.hid_allocate_device()
    device.dev_rdesc, device.dev_rsize = machine.alloc(MOUSE), len(MOUSE)
    device.driver, device.ll_driver = driver.address_, bus.address_
    span = next(each for each in hid.sections.values() if each.name == ".text")
    parse, spans = hid.address_of("hid_open_report"), (span.address, span.address + span.size)
    _both(
        machine, f"{title}, hid_open_report", parse, MOUSE, spans, lambda _at, _size: (int(device),)
    )


def _both(
    machine: Any,
    title: str,
    address: int,
    data: bytes,
    span: tuple[int, int],
    slots: Callable[[int, int], tuple[int, ...]],
) -> None:
    """Measure a function without coverage and with it."""
    for spans in ((), (span,)):
        with machine.fork():
            _booted(machine, title, address, data, spans, slots)


def _booted(
    machine: Any,
    title: str,
    address: int,
    data: bytes,
    spans: tuple[tuple[int, int], ...],
    slots: Callable[[int, int], tuple[int, ...]],
) -> None:
    board, calling = machine.kernel.board, machine.arch.runs.calling
    trap = machine.kernel.guest.trap
    rounds = machine.rounds(spans)
    buffer = rounds.buffer(4096)
    with rounds:
        given = slots(buffer.put(data), len(data))
        assert rounds.run(lambda: rounds.call(address, given)).fault is None
        context = rounds._snapshot.still.context  # noqa: SLF001 -- as a bare loop would have it
        top = machine.kernel.guest.base - 0x200 - (8 if calling.link is None else 0)

        def bare() -> None:
            buffer.put(data)
            board.uc.context_restore(context)
            for name, value in zip(calling.arguments, given, strict=False):
                board.set_number(board.number(name), value)
            if calling.link is None:
                board.write(top, trap.to_bytes(8, "little"))
            else:
                board.set_number(board.number(calling.link), trap)
            board.sp = top
            board.uc.emu_start(address, trap)
            board.ram.drop()
            board.forget_addresses()

        bare()

        def call(given: bytes) -> object:
            return rounds.run(lambda: rounds.call(address, slots(buffer.put(given), len(given))))

        inputs = Mutator(64).inputs([data], 1, 1 << 30)
        works: dict[str, Work] = {"bare": bare, "rounds": lambda: call(data)}
        if spans and data is PACKED:
            works["rounds and mutation"] = lambda: call(next(inputs))
        show(f"{title}, {'with' if spans else 'without'} coverage", works)


def main(*words: str) -> None:
    """Measure architectures by name, and kernels by folder."""
    for word in words or ("arm64",):
        if Path(word).is_dir():
            booted(Path(word))
        else:
            modelled(word)


if __name__ == "__main__":
    main(*sys.argv[1:])
