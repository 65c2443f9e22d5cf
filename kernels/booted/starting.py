# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting a kernel, until a process of it asks the kernel for something.

There the machine stops: in kernel context, on the stack of process 1, interrupts allowed. From
there any function of the kernel can be called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import attrs

from allocator.types import size_text
from archs.levels.boot import Need, Plan
from emulator.boards import board_of
from emulator.boards.board import Board, Halt
from kernels.booted.initrd import archive
from kernels.errors import BootFailed
from loader.kernel.image import KernelImage
from loader.kernel.relocs import moved

_MIDDLE = 1 << 63
_FIXED = "nokaslr"
_UNMOVED = "KASLR: it stays where it is linked to, as kernels without CONFIG_RANDOMIZE_BASE do"
_LINES = 6  # of the console, in what is said when a boot fails
# Variables and functions that a boot is watched by; older names last.
_JIFFIES = ("jiffies_64", "jiffies")
_MET = "getppid"
_IDLE = ("do_idle", "default_idle_call", "arch_cpu_idle", "cpu_do_idle", "cpu_startup_entry")
_OFF = ("emergency_restart", "machine_restart", "machine_halt", "machine_power_off")
_PANIC = "Kernel panic"
_MEMORY_STEP, _MEMORY = 1 << 16, 1 << 36  # bytes: a page of the largest size; what boards hold
# Of COMMAND_LINE_SIZE, which is 1024 or 2048, what the level's own words leave.
_COMMAND_LINE = 800
# What every boot takes, whatever the hardware is.
_NEEDS = (
    Need(
        option="CONFIG_BLK_DEV_INITRD",
        functions=("unpack_to_rootfs", "do_populate_rootfs", "populate_rootfs"),
        what="an initial file system",
    ),
    Need(
        option="CONFIG_BINFMT_ELF",
        functions=("load_elf_binary", "init_elf_binfmt"),
        what="a first process",
    ),
)
_PRINTK = Need(option="CONFIG_PRINTK", functions=("vprintk_emit", "vprintk"), what="a log")
# KASAN's shadow is an eighth of the memory, and its quarantine and stacks come on top
# (mm/kasan/quarantine.c, lib/stackdepot.c).
_KASAN, _MORE = ("kasan_report", "__asan_load8"), (3, 2)
# Every message goes to the console, with its level; a panic ends at once.
_TELL = "ignore_loglevel console_msg_format=syslog panic=-1"
# Initcalls that let threads print (PREEMPT_RT, nbcon consoles): a log would come after what it is of.
_THREADS = ("printk_set_kthreads_ready", "printk_activate_kthreads")


@attrs.frozen(kw_only=True)
class Parameters:
    """What a boot follows from, beside the kernel itself.

    Parameters
    ----------
    memory
        Bytes of RAM; 0: as the architecture's level says.
    command_line
        Added to what the level says; the kernel takes the last word on a thing.
    cpu
        The CPU's model, one of the level's; "": the first.
    without
        Functions that do nothing while it boots, and return 0.
    kaslr
        What the places of kernel and modules follow from; None: they are not random.
    """

    memory: int = 0
    command_line: str = ""
    cpu: str = ""
    without: tuple[str, ...] = ()
    kaslr: int | None = None


@attrs.frozen(kw_only=True)
class Place:
    """Where things lie in a kernel that stands: what watching it takes.

    Parameters
    ----------
    trap
        An address in its text that nothing ever executes: where calls return to.
    jiffies
        Physical address of `jiffies_64`; None: it is not known.
    idle
        Where it waits for interrupts: pairs of start and end.
    off
        Functions that end everything.
    """

    trap: int
    jiffies: int | None
    idle: tuple[tuple[int, int], ...]
    off: tuple[int, ...]

    def watch(self, board: Board) -> None:
        """Let a computer watch it."""
        if self.jiffies is not None:
            board.watch_jiffies(self.jiffies)
        for start, end in self.idle:
            board.watch_idle(start, end)
        for address in self.off:
            board.break_at(address, board.off_here)


@attrs.frozen(kw_only=True)
class Started:
    """A kernel that stands in a system call of its first process.

    `slide` is how far it is from where it is linked to.
    """

    board: Board
    place: Place
    slide: int = 0


def plan_of(image: KernelImage, parameters: Parameters) -> Plan:
    """Return what is to be started."""
    level = image.arch.boots
    untold = {word for name, word in level.once.items() if name in image.symbols}
    if parameters.kaslr is not None:
        untold.add(_FIXED)
    memory = level.memory
    if any(name in image.symbols for name in _KASAN):
        memory = memory * _MORE[0] // _MORE[1]
    loaded, slide = image.loaded, moved_before(image, parameters)
    at_once = " ".join(f"initcall_blacklist={n}" for n in _THREADS if n in image.symbols)
    words = f"{level.command_line} {_TELL} {at_once} {parameters.command_line}".split(" ")
    words = [word for word in words if word and word not in untold]
    return Plan(
        image=moved(image, slide) if slide else loaded.contents,
        address=loaded.address,
        image_size=loaded.size,
        entry=loaded.entry,
        header=image.header,
        memory=parameters.memory or memory,
        command_line=" ".join(words),
        initrd=archive(level.spin, level.machine),
        kaslr=parameters.kaslr,
    )


def moved_before(image: KernelImage, parameters: Parameters) -> int:
    """Return how far a kernel is moved before it starts; where it moves itself, not at all."""
    distance = image.arch.boots.distance
    if parameters.kaslr is None or distance is None:
        return 0
    return distance(parameters.kaslr, image.loaded.address, image.loaded.size)


def start(
    image: KernelImage,
    parameters: Parameters,
    *,
    seconds: float | None = None,
    on_console: Callable[[bytes], object] | None = None,
) -> Started:
    """Boot a kernel until its first process asks for something.

    Parameters
    ----------
    image
        The kernel.
    parameters
        What else the boot follows from.
    seconds
        Time of the host that it may take; None: any.
    on_console
        Called with what the kernel prints, as it does.

    Raises
    ------
    BootFailed
        It stopped before; with the last lines of its console.
    LevelMissing
        The architecture has no level boot.
    """
    _check(image, parameters)
    plan = plan_of(image, parameters)
    level = image.arch.boots
    beginning = level.start(plan)
    needed = max(at + len(data) for at, data in beginning.contents.items()) - level.ram
    if needed > plan.memory:
        few, least = size_text(plan.memory), size_text(needed)
        raise BootFailed(
            image.name, f"{few} of memory are too little: it takes {least} to begin", ""
        )
    met = [image.symbols.get(form.format(_MET)) for form in level.system_calls]
    where = next((address for address in met if address is not None), None)
    if where is None:
        names = ", ".join(form.format(_MET) for form in level.system_calls)
        raise BootFailed(image.name, f"none of {names} is among its symbols", "")
    try:
        board = board_of(image.arch, plan.memory, parameters.cpu)
    except OSError as error:
        raise BootFailed(image.name, f"no memory of the host: {error.strerror}", "") from None
    board.wires.on_console = on_console
    board.load(beginning)
    base, symbols = image.loaded.address, image.symbols
    for at, data in image.loaded.contents.items():
        board.watch_clocks(data, beginning.image + at)  # before its MMU is on
    slide = moved_before(image, parameters)
    if parameters.kaslr is not None and level.distance is None:
        slide = _move(image, board, beginning.image, seconds)
    for at, data in image.loaded.contents.items():
        board.watch_clocks(data, base + slide + at)
    jiffies = _address(image, _JIFFIES)
    idle = [symbols[name] for name in _IDLE if name in symbols]
    place = Place(
        trap=trap_of(image) + slide,
        jiffies=None if jiffies is None else beginning.image + jiffies - base,
        idle=tuple((at + slide, symbols.end_of(at) + slide) for at in idle),
        off=tuple(symbols[name] + slide for name in _OFF if name in symbols),
    )
    place.watch(board)
    where += slide
    board.break_at(where, board.stop_here)
    timed = {symbols[n] + slide: length for n, length in level.takes.items() if n in symbols}
    for at, length in timed.items():
        board.break_at(at, partial(_takes, board, length))
    left_out = [symbols[n] + slide for n in parameters.without if n in symbols]
    for at in left_out:
        board.break_at(at, partial(_returns, board))
    halt = board.run(place.trap, seconds=seconds)
    if halt is not Halt.STOPPED or board.pc != where:
        why = lacking(image, _NEEDS) or board.broken or halt.value
        raise BootFailed(image.name, why, last_lines(board), bytes(board.wires.console))
    if not board.wires.console:
        needs = (_PRINTK, level.console)
        raise BootFailed(image.name, lacking(image, needs) or "it prints nothing")
    for at in (where, *timed, *left_out):
        board.no_break_at(at)
    return Started(board=board, place=place, slide=slide)


def _move(image: KernelImage, board: Board, physical: int, seconds: float | None) -> int:
    """Let a kernel start until it has moved itself; return how far.

    Its first instruction above the middle of all addresses is where it has gone.
    """
    halt = board.run_below(_MIDDLE, trap_of(image), seconds=seconds)
    at = board.translate(board.pc) if halt is Halt.STOPPED else None
    if at is None:
        why = board.broken or halt.value
        raise BootFailed(image.name, why, last_lines(board), bytes(board.wires.console))
    slide = board.pc - (image.loaded.address + at - physical)
    if not slide:
        raise BootFailed(image.name, _UNMOVED, "", b"")
    return slide


def _check(image: KernelImage, parameters: Parameters) -> None:
    """Refuse what nobody can boot with; BootFailed."""
    if parameters.memory % _MEMORY_STEP or not 0 <= parameters.memory <= _MEMORY:
        most = size_text(_MEMORY)
        reason = (
            f"memory={parameters.memory}: a multiple of {_MEMORY_STEP:#x} bytes, at most {most}"
        )
        raise BootFailed(image.name, reason, "")
    words = parameters.command_line
    if not words.isascii() or (words and not words.isprintable()):
        raise BootFailed(image.name, f"command line {words!r}: not printable ASCII", "")
    if len(words) > _COMMAND_LINE:
        reason = f"a command line of {len(words)} bytes: at most {_COMMAND_LINE}"
        raise BootFailed(image.name, reason, "")


def lacking(image: KernelImage, needs: Iterable[Need]) -> str:
    """Return what a kernel is built without, if anything."""
    lacks = [n for n in needs if not any(name in image.symbols for name in n.functions)]
    return "; ".join(f"it is built without {n.option} ({n.what})" for n in lacks)


def _takes(board: Board, length: int) -> None:
    """Let a function take its time."""
    board.clock.advance(board.clock.now + length)


def _returns(board: Board) -> int:
    """Let the function that has just been entered return 0; where to go on."""
    calling = board.arch.runs.calling
    board.set(calling.result, 0)
    if calling.link is not None:
        return board.get(calling.link)
    board.sp += 8
    return int.from_bytes(board.read(board.sp - 8, 8), "little")


def trap_of(image: KernelImage) -> int:
    """Return an address between two functions, where nothing is ever executed."""
    padding = image.arch.boots.padding
    start, end = image.symbols["_stext"], image.symbols["_etext"]
    text = image.read(start, end - start)
    for name in ("schedule", "kmalloc", "kfree", "vfree", "printk", "_printk"):
        at = image.symbols.get(name)
        if at is None:
            continue
        for filler in padding:
            if text[at - start - len(filler) : at - start] == filler:
                return at - len(filler)
    for at in sorted(image.symbols.values()):
        for filler in padding:
            if start < at < end and text[at - start - len(filler) : at - start] == filler:
                return at - len(filler)
    raise BootFailed(image.name, "no two of its functions have anything between them", "")


def last_lines(board: Board) -> str:
    """Return the end of what a kernel printed."""
    lines = board.wires.console.decode("utf-8", "backslashreplace").splitlines()
    for number, line in enumerate(lines):
        if _PANIC in line:
            return "\n".join(lines[number : number + _LINES])
    return "\n".join(lines[-_LINES:])


def _address(image: KernelImage, names: tuple[str, ...]) -> int | None:
    for name in names:
        if name in image.symbols:
            return image.symbols[name]
        if name in image.exports:
            return image.exports[name].address
    return None
