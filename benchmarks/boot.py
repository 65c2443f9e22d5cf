# SPDX-License-Identifier: GPL-2.0-or-later
"""Booting a kernel beside QEMU, starting from the cache, and going back beside the bare emulator.

*boot*: CPU time until the kernel runs its first program, in one run with `qemu-system-ARCH` (TCG,
one CPU, as much memory, the same initial file system), where that is installed. *start*: from the
cache, beside what `execmem run` of a sample module takes. *reset*: going back to a snapshot after
a call, beside dropping the pages and restoring the context by hand; *loop*: that and a call of
LZ4_decompress_safe, beside the same by hand. Kernels are those of `EXECMEM_KERNELS`.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.block

from archs import Arch, archs
from kernels.booted.initrd import archive
from kernels.booted.opening import open_kernel
from loader.kernel.find import find_kernel
from machine.booted.machine import BootedMachine

REACHED = b"Run /init as init process"
ROUNDS, CALLS = 5, 400
MEMORY = 512
# Board, CPU and console of the peer, as near to ours as it has them; whether it unpacks an image itself.
PEERS = {
    "x86_64": ("x86_64", ["-M", "pc", "-cpu", "max"], "console=ttyS0 nokaslr", True),
    "arm64": (
        *("aarch64", ["-M", "virt,gic-version=2", "-cpu", "cortex-a72"], "console=ttyAMA0"),
        False,
    ),
    "riscv64": ("riscv64", ["-M", "virt"], "console=ttyS0 earlycon=sbi", False),
}


def kernels() -> Iterator[tuple[str, Path, Arch]]:
    """Yield name, folder and architecture of the kernels at hand that boot."""
    for folder in filter(None, os.environ.get("EXECMEM_KERNELS", "").split(os.pathsep)):
        for path in sorted(Path(folder).iterdir()):
            for arch in archs():
                if path.name.rpartition("-")[2] in (arch.name, *arch.aliases) and arch.boot:
                    yield path.name, path, arch


class Reached(Exception):
    """The kernel is where the measurement ends."""


def ours(folder: Path) -> float:
    """Return the CPU seconds of a boot, from reading the file on."""
    seen = bytearray()

    def printed(data: bytes) -> None:
        seen.extend(data)
        if REACHED in seen[-200:]:
            raise Reached

    start = time.process_time()
    try:
        open_kernel(folder, keep=False, on_console=printed)
    except Reached:
        return time.process_time() - start
    raise RuntimeError(f"{folder}: never said {REACHED.decode()!r}")


def qemu(folder: Path, arch: Arch) -> float | None:
    """Return the CPU seconds of a boot in QEMU; None where that is not installed."""
    name, options, words, unpacks = PEERS[arch.name]
    program = shutil.which(f"qemu-system-{name}")
    if program is None:
        return None
    files = find_kernel(folder)
    image = files.image[1] if unpacks else files.read().data
    with tempfile.TemporaryDirectory() as place:
        kernel, initrd = Path(place) / "kernel", Path(place) / "initrd"
        kernel.write_bytes(image)
        initrd.write_bytes(archive(arch.boots.spin, arch.boots.machine))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = subprocess.Popen(
            [
                *(program, *options, "-accel", "tcg,thread=single", "-m", str(MEMORY)),
                *("-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"),
                *("-kernel", str(kernel), "-initrd", str(initrd)),
                *("-append", f"{words} ignore_loglevel panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        seen, fd = bytearray(), child.stdout.fileno()
        while REACHED not in seen and select.select([fd], [], [], 120)[0]:
            piece = os.read(fd, 1 << 16)
            if not piece:
                break
            seen += piece
        child.kill()
        child.wait()
        child.stdout.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if REACHED not in seen:
        return None
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def started(*words: str) -> float:
    """Return the least CPU seconds of a command of ours, of a few."""
    least = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "execmem", *words], check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        least = min(least, spent)
    return least


def microseconds(function: Callable[[], object]) -> float:
    """Return the least CPU time of one call, of a few rounds."""
    least = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        for _ in range(CALLS):
            function()
        least = min(least, (time.process_time_ns() - start) / CALLS)
    return least / 1e3


def resets(folder: Path) -> tuple[float, float, float, float]:
    """Return microseconds: reset, by hand; a loop of LZ4 with reset, by hand."""
    machine = BootedMachine(kernel=folder)
    board, guest = machine.kernel.board, machine.kernel.guest
    plain = b"the quick brown fox jumps over " * 8
    packed = lz4.block.compress(plain, store_size=False)
    source, target = machine.alloc(packed), machine.alloc(4096)
    function = machine.function("LZ4_decompress_safe")
    slots = (source, target, len(packed), 4096)
    assert machine.kernel.call(function, slots) == len(plain)
    snapshot = machine.snapshot()
    context, uc = board.uc.context_save(), board.uc
    calling = machine.arch.runs.calling
    registers = [board.number(name) for name in calling.arguments[:4]]
    link = None if calling.link is None else board.number(calling.link)
    sp = board.number(calling.stack_pointer)

    def by_hand() -> None:
        board.ram.drop()
        uc.context_restore(context)

    def call_by_hand() -> None:
        for number, value in zip(registers, slots, strict=True):
            uc.reg_write(number, value)
        top = guest.base
        if link is None:
            top -= 8
            board.write(top, guest.trap.to_bytes(8, "little"))
        else:
            uc.reg_write(link, guest.trap)
        uc.reg_write(sp, top)
        uc.emu_start(function, guest.trap)

    def dirty(reset: Callable[[], object]) -> Callable[[], object]:
        def work() -> None:
            machine.kernel.call(function, slots)
            reset()

        return work

    called = microseconds(lambda: machine.kernel.call(function, slots))
    machine.restore(snapshot)
    ours_reset = microseconds(dirty(lambda: machine.restore(snapshot))) - called
    bare_reset = microseconds(dirty(by_hand)) - called
    machine.restore(snapshot)
    loop = microseconds(lambda: (machine.restore(snapshot), machine.kernel.call(function, slots)))
    bare = microseconds(lambda: (by_hand(), call_by_hand()))
    return ours_reset, bare_reset, loop, bare


def main() -> None:
    """Print all of them."""
    known = list(kernels())
    if not known:
        print("EXECMEM_KERNELS names no kernel that boots")
        return
    sample = started("run", "hello", "--arch", "arm64")
    print(f"{'kernel':14} {'boot s':>7} {'qemu s':>7} {'ratio':>6} {'start +s':>8}", end="")
    print(f" {'reset us':>8} {'bare':>6} {'ratio':>6} {'loop us':>8} {'bare':>6} {'ratio':>6}")
    for name, folder, arch in known:
        peer = qemu(folder, arch)
        boot = ours(folder)
        shown, ratio = ("-", "-") if peer is None else (f"{peer:.1f}", f"{boot / peer:.2f}")
        found = resets(folder)
        modules = sorted(folder.rglob("lz4.ko*")) or sorted(folder.rglob("*.ko*"))
        extra = "-"
        if modules:
            extra = f"{started('run', str(modules[0]), '--kernel', str(folder)) - sample:.2f}"
        print(f"{name:14} {boot:7.1f} {shown:>7} {ratio:>6} {extra:>8}", end="")
        print(f" {found[0]:8.1f} {found[1]:6.1f} {found[0] / found[1]:6.2f}", end="")
        print(f" {found[2]:8.1f} {found[3]:6.1f} {found[2] / found[3]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
