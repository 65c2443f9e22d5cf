# SPDX-License-Identifier: GPL-2.0-or-later
"""What hostile input reaches: each target feeds one input to the product and lets no error out.

A target has seeds (inputs that are good or nearly so), a mutation that knows their structure,
and a function that returns whether the input was accepted. It lets through only what nobody
promised: anything that is not of the ExecmemError family is an escape. Targets that load also
prove, each time, that a refusal changed nothing. Long because a target is all in one place: its
seeds, its damage and its check.
"""

from __future__ import annotations

import bz2
import gc
import gzip
import lzma
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import attrs
import zstandard

import archs
from allocator import AccessError, Execmem, ExecmemError, KernelMemory, PhysicalMemory
from allocator.types import MIB
from allocator.workloads import Runner, read_trace
from archs.environment import Environment
from emulator.faults import Fault, Stop
from execmem.check.elfwriter import AARCH64, X86_64, A, Rela, Sec, Sym, W, write
from execmem.comparing.compare import branch_reach
from kernels.modelled.printf import format_message
from kernels.modelled.table import FUNCTIONS, Function
from loader import files
from loader.archives import modules_in, open_archive
from loader.depends import find_any, open_tree
from loader.elf import parse
from loader.kallsyms import sizes_with_symbols
from loader.kernel.image import KernelImage
from loader.layout import plan
from loader.link import link
from loader.module import Loader
from loader.symbols import SymbolTable
from loader.versions import SymversExport, TreeFacts, read_symvers
from machine.face import Machine
from samples import modules
from tests.archs.facts import facts
from tests.fuzz import mutation
from tests.support import btfwriter, imagewriter, packages
from tests.support.addresses import place
from tests.support.checked import Offer, extended, made, version_table
from tests.support.kernel import FakeKernel, FakePercpu
from tests.support.modules import module

RUNNING = [arch for arch in archs.ALL if arch.run is not None]
MACHINES = tuple(arch.machine for arch in RUNNING)
CRCS = {"module_layout": 1, "_printk": 2}
LISTED = {"_printk": SymversExport(2, "vmlinux", gpl=False, namespace="SPACE")}
SYMVERS = (
    b"0x00000001\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n"
    b"0xffffffff\tf\tdrivers/net/some-thing\tEXPORT_SYMBOL_GPL\tSPACE\n"
)
INSTRUCTIONS = 20_000  # that a guest may execute for one input


@attrs.frozen
class Target:
    """One way in: seeds, a mutation, and what is done with an input."""

    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    run: Callable[[bytes, Random], bool]


# ELF objects -------------------------------------------------------------------------------


def finalisable(machine: int) -> bytes:
    """Return a module with an entry or two of every table that finalisation reads."""
    near, whole = facts(machine).link.prel32, facts(machine).link.abs64

    def relative(name: str, entry: int, words: int, count: int = 3) -> Sec:
        places = [(e, w) for e in range(count) for w in range(words)]
        relas = [Rela(entry * e + 4 * w, near, "mini_work", 4 * e) for e, w in places]
        return Sec(name, bytes(entry * count), A | W, align=8, relas=relas)

    def pointers(name: str, *targets: tuple[str, int]) -> Sec:
        relas = [Rela(8 * n, whole, name, addend) for n, (name, addend) in enumerate(targets)]
        return Sec(name, bytes(8 * len(targets)), A | W, align=8, relas=relas)

    alternatives = bytearray(14 * 3)
    for at in range(0, 42, 14):
        alternatives[at + 8 : at + 14] = bytes((16, 0, 0, 0, 4, 3))
    same_size = bytes(8) + bytes((0, 0, 4, 4))
    event = [Rela(16, whole, "events", 128), Rela(56, whole, "events", 192)]
    event += [Rela(64, whole, "text", 0), Rela(128, whole, "text", 8)]
    event += [Rela(160, whole, "events", 256), Rela(256, whole, "text", 0)]
    maps = [Rela(0, whole, "text", 8), Rela(8, whole, "text", 2)]
    extra = [
        relative("__ex_table", 12, 2),
        relative("__jump_table", 16, 3),
        relative(".retpoline_sites", 4, 1),
        relative(".return_sites", 4, 1),
        relative(".call_sites", 4, 1),
        relative(".smp_locks", 4, 1),
        relative(".ibt_endbr_seal", 4, 1),
        relative(".orc_unwind_ip", 4, 1),
        Sec(".orc_unwind", bytes(18), A),
        relative(".static_call_sites", 8, 2),
        Sec(
            ".altinstructions",
            bytes(alternatives) if machine == X86_64 else same_size * 3,
            A,
            relas=[
                Rela(n * (14 if machine == X86_64 else 12) + 4 * w, near, "mini_work", w)
                for n in range(3)
                for w in range(2)
            ],
        ),
        Sec(".alternative", bytes(20), A, relas=[Rela(4 * w, near, "mini_work") for w in (0, 1)]),
        pointers("__mcount_loc", ("mini_work", 0), ("mini_work", 4)),
        pointers("__patchable_function_entries", ("mini_work", 0), ("mini_work", 4)),
        Sec("events", bytes(512), A | W, align=64, relas=event),
        Sec("maps", bytes(24), A | W, align=8, relas=maps),
        Sec("text", b"f FOO 1\0sys\0" + bytes(20), A | W, align=8),
        pointers("_ftrace_events", ("events", 0), ("events", 0)),
        pointers("_ftrace_eval_map", ("maps", 0)),
        Sec("__dyndbg_classes", bytes(56), A | W),
        pointers("___srcu_struct_ptrs", ("events", 0)),
    ]
    symbols = [Sym(name, name) for name in ("events", "maps", "text")]
    return module(machine, exported=("mini_f",), percpu=64, extra=extra, symbols=symbols)


def versioned(machine: int) -> list[bytes]:
    """Return modules with versions in both forms, namespaces, CRCs and flags of exports."""
    crcs = {"module_layout": 1, "_printk": 2, "lib_f": 3}
    offers = [Offer("f", crc=1), Offer("g", gpl=True, space="SPACE", crc=2)]
    tags = ["import_ns=SPACE", "test=Y", "staging=Y"]
    return [
        made(machine, uses=["_printk", "lib_f"], offers=offers, extra=[version_table(crcs)]),
        made(machine, uses=["lib_f"], offers=offers, flagged=True, extra=extended(crcs), tags=tags),
        made(machine, uses=["lib_f"], licence="x", magic=None, extra=[Sec(".ctors", bytes(8), A)]),
    ]


@cache
def objects() -> list[bytes]:
    """Return our own modules, from the smallest to samples of compiled C."""
    found = []
    for machine in MACHINES:
        found.append(module(machine))
        if facts(machine).link.prel32 is not None:
            found.append(finalisable(machine))
        found.append(module(machine, weak=("maybe",), exported=("mini_f",), plt=False))
        found += versioned(machine)
    for arch in RUNNING:
        for name in ("hello", "tables", "sealed"):
            found.append(modules.path(arch.name, name).read_bytes())
    return found


@cache
def environments(name: str) -> tuple[Environment, ...]:
    """Return a machine's environment, and one with every feature its tables know."""
    arch = archs.arch(name)
    few = Environment(features=arch.runs.emulation.capabilities)
    return few, Environment(features=facts(arch).load.features - {"call_depth", "rethunk"})


@cache
def tiny() -> list[bytes]:
    """Return objects so small that most damage hits a table that is read."""
    sections = [Sec(".text", b"code", A, relas=[Rela(0, 1, "f")]), Sec(".modinfo", b"name=x\0", A)]
    return [write(machine, sections, [Sym("f"), Sym("g", ".text")]) for machine in MACHINES]


def parse_elf(data: bytes, _random: Random) -> bool:
    """Parse, and plan the layout."""
    return bool(plan(parse(data, "fuzz.ko")).sizes)


def read_elf(data: bytes, random: Random) -> bool:
    """Parse, plan, and ask for every name and table that a report shows."""
    view = parse(data, "fuzz.ko")
    layout = plan(view, errata=random.choice(((), ("843419",))))
    assert view.undefined is not None
    assert view.called is not None
    assert view.modinfo is not None
    assert view.crcs is not None
    assert view.aliases is not None
    sizes_with_symbols(view, layout)
    for index in range(0, view.symbols.size, 1 + view.symbols.size // 50):
        view.symbol_name(index)
    return view.global_symbols is not None


def link_elf(data: bytes, random: Random) -> bool:
    """Link, and finalise, with all sections near each other and symbols near or far."""
    view = parse(data, "fuzz.ko")
    base = view.arch.loads.address_map().image.start
    addresses = place(plan(view), base)
    far = random.choice((0, 1 << 20, 1 << 31, 1 << 40))
    symbols = {name: base + far + 64 * n for n, name in enumerate(view.undefined)}
    environment = random.choice((None, *environments(view.arch.name)))
    checks = random.choice(("hardware", "hardware", "kernel"))
    stubs = random.random() < 0.2
    link(data, addresses, symbols, checks=checks, environment=environment, percpu=0x1000,
         stubs=stubs, errata=random.choice(((), ("843419",))))  # fmt: skip
    return True


@cache
def _loader(name: str) -> tuple[Loader, FakePercpu, PhysicalMemory]:
    arch = archs.arch(name)
    physical = PhysicalMemory(32 * MIB)
    execmem = Execmem(
        KernelMemory(physical, arch.loads.address_map()),
        trap=arch.loads.trap,
        text_poke=arch.text_poke,
    )
    percpu = FakePercpu()
    kernel = FakeKernel("_printk", base=arch.loads.address_map().image.start)
    found = Loader(arch, execmem, SymbolTable(kernel), percpu.alloc, percpu.free, percpu.write)
    found.environment = environments(name)[0]
    lib = made(arch.machine, "lib", offers=[Offer("lib_f", gpl=True, space="SPACE", crc=3)])
    found.settle(found.form(lib, "lib.ko"))
    return found, percpu, physical


def load_elf(data: bytes, random: Random) -> bool:
    """Form, settle, unload: whatever happens, everything is as before."""
    view = parse(data, "fuzz.ko")
    loader, percpu, physical = _loader(view.arch.name)
    before = physical.free_bytes, len(loader.execmem.allocations())
    facts = random.choice((None, TreeFacts("6.5.0", view.arch.loads.vermagic, None, CRCS, LISTED)))
    loader.gate.facts, loader.gate.force = lambda: facts, random.random() < 0.2
    try:
        loaded = loader.form(data, "fuzz.ko")
        if random.random() < 0.5:
            loader.settle(loaded)
            loader.begin_unload(loaded)
        loader.discard(loaded)
    finally:
        assert (physical.free_bytes, len(loader.execmem.allocations())) == before
        assert loader.modules.keys() == {"lib"}
        assert loader.symbols.exports.keys() == {"lib_f"}
        assert not percpu.live
        assert not loader.modules["lib"].users
    return True


def symvers(data: bytes, _random: Random) -> bool:
    """Read a list of a kernel's exports."""
    return read_symvers(data, "symvers") is not None


class _Guests:
    """Machines that are used again until something could have made them worse."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Machine, int]] = {}

    def get(self, name: str, memory: int = 64 * MIB, **options: Any) -> Machine:
        """Return a machine that served fewer than 300 inputs."""
        machine, uses = self._made.get(name, (None, 300))
        if machine is None or uses >= 300 or machine.memory.physical.size != memory:
            self.drop(name)
            machine = Machine(name, memory=memory, unknown="zero", **options)
            uses = 0
        self._made[name] = machine, uses + 1
        return machine

    def drop(self, name: str) -> None:
        """Forget a machine."""
        self._made.pop(name, None)
        gc.collect()  # each reserves a GiB for translated code


GUESTS = _Guests()


def run_guest(data: bytes, random: Random) -> bool:
    """Load, run init, call what there is, unload; every allocation is back afterwards."""
    name = archs.arch(parse(data, "fuzz.ko").arch.name).name
    machine = GUESTS.get(name)
    before = machine.execmem.allocations()
    machine.instructions, machine.seconds = INSTRUCTIONS, 2.0
    try:
        loaded = machine.load(data)
        for function in list(loaded.symbols)[: random.randrange(4)]:
            with suppress(ExecmemError):
                loaded.call(function, b"x" * 64, 64)
        with suppress(Fault):
            loaded.unload(force=True)  # some have no exit any more
    finally:
        assert machine.execmem.allocations() == before
        assert not machine.modules
        assert not machine.loader.modules
        machine.log.clear()
        if len(machine.kernel.heap.live()) > 5000:
            GUESTS.drop(name)
    return True


# Files around modules --------------------------------------------------------------------------


@cache
def streams() -> list[bytes]:
    """Return one small module in every wrapper."""
    image = objects()[0][:3000]
    frames = [lzma.compress(image), gzip.compress(image), zstandard.compress(image)]
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    frames.append(stream.compress(image) + stream.flush())
    frames += [lzma.compress(bytes(1 << 20)), gzip.compress(bytes(1 << 20))]
    halves = image[:1500], image[1500:]
    for pack in (lzma.compress, gzip.compress, zstandard.compress, bz2.compress):
        frames.append(b"".join(map(pack, halves)) + bytes(8))
    frames.append(lzma.compress(image, format=lzma.FORMAT_ALONE))
    frames.append(bytes.fromhex("502a4d1804000000") + bytes(4) + zstandard.compress(image))
    return [*frames, zstandard.compress(bytes(1 << 20)), image]


def unwrap(data: bytes, _random: Random) -> bool:
    """Decompress under a limit of one MiB."""
    kept, files.MAX_SIZE = files.MAX_SIZE, MIB
    try:
        found = files.decompress(data, "fuzz.ko")
        assert found is data or len(found) <= MIB
        return found is not data  # what is no stream at all comes back as it is
    finally:
        files.MAX_SIZE = kept


def _folder() -> Path:
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="execmem-fuzz-", dir=where))


@cache
def _tree() -> Path:
    folder = _folder()
    (folder / "kernel").mkdir()
    for name in ("hello", "mathlib"):
        (folder / "kernel" / f"{name}.ko").write_bytes(modules.path("x86_64", name).read_bytes())
    return folder


def dependencies(data: bytes, random: Random) -> bool:
    """Read modules.dep (or modules.alias), and look up what it names."""
    folder = _tree()
    index, _, aliases = data.partition(b"\n\n")
    (folder / "modules.dep").write_bytes(index)
    (folder / "modules.alias").write_bytes(aliases)
    tree = open_tree(folder)
    names = [*[*tree.files][:3], "hello", "crypto-x", "b" * random.randrange(1, 400)]
    for name in names:
        assert tree.to_load(name)[-1] is not None
        with suppress(ExecmemError):
            find_any(tree, name)
    return True


def indices() -> list[bytes]:
    """Return indices of a module tree: dependencies, a blank line, aliases."""
    samples = (
        modules.root("x86_64") / "lib/modules" / modules.RELEASE / "modules.dep"
    ).read_bytes()
    return [
        samples + b"\n\nalias pci:v*d*sv* hello\nalias crypto-x mathlib\n",
        b"kernel/hello.ko:\nkernel/mathlib.ko.zst: kernel/hello.ko\n\nalias crypto-* hello\n",
        b"a.ko: b.ko\nb.ko: a.ko\n\nalias [a-z]?* a\n",
    ]


TRACE = b"""{"trace": 1, "arch": "x86_64", "workload": "w", "memory": 33554432}
{"op": "alloc", "key": "b", "type": "TEXT", "size": 320, "align": 8, "consumer": "bpf"}
{"op": "load", "module": "m", "regions": {"TEXT": [4024, 64], "DATA": [100, 8]}, \
"plt_slots": [0, 0], "calls": [1, 0, 2], "depends": [], "settled": false}
{"op": "settle", "module": "m"}
{"op": "alloc", "key": "r", "type": "RO_AFTER_INIT", "size": 64, "align": 8, "consumer": "module"}
{"op": "seal", "key": "r"}
{"op": "pages", "count": 3}
{"op": "free", "key": "b"}
{"op": "unload", "module": "m"}
"""


def trace(data: bytes, random: Random) -> bool:
    """Read a trace, which is also what a workload file is, and carry it out."""
    path = _tree() / "trace.jsonl"
    path.write_bytes(data)
    found = read_trace(path)
    if found.arch not in {arch.name for arch in archs.archs()}:
        return False
    arch = archs.arch(found.arch)
    memory = KernelMemory(PhysicalMemory(min(found.memory, 32 * MIB)), arch.loads.address_map())
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke,
                      design=random.choice(("vmalloc", "strata", "rox_cache")))  # fmt: skip
    runner = Runner(execmem, branch_reach(arch))
    for operation in found.operations:
        runner.step(operation)
    runner.measure()
    execmem.check()
    return True


# What the guest says -------------------------------------------------------------------------


class _Slots:
    def __init__(self, random: Random, pointers: list[int]) -> None:
        self._random, self._pointers = random, pointers

    def next(self) -> int:
        """Return a pointer into something, or a number."""
        return hostile(self._random, self._pointers)


def hostile(random: Random, pointers: list[int]) -> int:
    """Return an argument: mostly a pointer or a small size, sometimes anything."""
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(pointers) + random.choice((0, 0, 0, 1, 8, 64, 4088))
    if kind < 5:
        return random.randrange(300)
    return mutation.number(random, 64)


@cache
def _memory() -> tuple[KernelMemory, list[int]]:
    arch = archs.arch("x86_64")
    memory = KernelMemory(PhysicalMemory(4 * MIB), arch.loads.address_map())
    start = memory.vmalloc(64 << 10)
    pointers = [start, start + 4096, start + (64 << 10) - 3, 0, 8, 1 << 40, (1 << 64) - 4]
    blob = Random(5).randbytes(4096)
    memory.write(start, b"text %s %d\0" + bytes(60) + blob)
    memory.write(start + 8192, b"A" * 4096)  # no NUL for a page
    words = b"".join(p.to_bytes(8, "little") for p in pointers) * 8
    memory.write(start + 4096, words)
    return memory, pointers


def formats(data: bytes, random: Random) -> bool:
    """Format a message with forged arguments; the result stays small."""
    memory, pointers = _memory()
    args = _Slots(random, pointers)
    found = format_message(data, args, memory, va_list=lambda _address: args)
    assert len(found) < 64 * MIB
    return True


FORMATS = [b"%s %d %p\n", b"%pI6c %pISpfschl %pM %phN %64ph", b"%pR %pr %pra %pUb %pE %*pE %pV"]
FORMATS += [b"%-08.3lld|%+x|%#o|%c|%%|%hhx|%zu|%tx", b"%*pb[l] %*pbl %p4cc %ps %pS %pB %pe"]


BLOCK = 8  # functions that one input calls
CALL_SECONDS = 0.2
CALL_MEMORY = 256 * MIB  # of the guest, most of which one call may touch
CALL_HEAP = 16 * MIB
# What the host may need for one call: what the guest touches and what its heap may come to, and
# what Python needs for a moment.
CALL_HOST = CALL_MEMORY + 4 * CALL_HEAP
SIZES = (0, 1, 7, 8, 64, 300, 4095, 4096, 4097, 1 << 20, 200 << 20, (1 << 31) - 1, 1 << 31)
SIZES += ((1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)


@cache
def _calls() -> list[str]:
    return sorted(FUNCTIONS)


def blocks() -> list[bytes]:
    """Return an input for each block of the kernel's functions, so that all are reached."""
    count = -(-len(_calls()) // BLOCK)
    return [n.to_bytes(2, "little") + bytes(n % 3) + b"%s a=1,b=2 %d\0" for n in range(count)]


def kernel_calls(data: bytes, random: Random) -> bool:
    """Call kernel functions with forged arguments, one after the other, as a guest may.

    None may take longer than its limit, or more of the host than the guest's limits allow.
    """
    name = RUNNING[len(data) % len(RUNNING)].name
    machine = GUESTS.get(name, memory=CALL_MEMORY, heap_limit=CALL_HEAP)
    pointers = _pool(machine, data)
    address = machine.kernel.address
    start = int.from_bytes(data[:2], "little") * BLOCK
    functions = _calls()
    for number in range(start, start + BLOCK):
        chosen = functions[number % len(functions)]
        args = _arguments(FUNCTIONS[chosen], pointers, random)
        began, before = time.process_time(), _peak()
        try:
            machine.call(address(chosen), *args, instructions=2000, seconds=CALL_SECONDS)
        except Fault as error:
            tripped = error.__cause__
            if tripped is not None and not isinstance(tripped, ExecmemError | Stop):
                tripped.add_note(f"{name}: {chosen}({', '.join(map(hex, args))})")
                raise tripped from None  # the net held, but nothing should fall into it
        except Exception as error:
            error.add_note(f"{name}: {chosen}({', '.join(map(hex, args))})")
            GUESTS.drop(name)
            raise
        took, grown = time.process_time() - began, _peak() - before
        if took > 1.1 * CALL_SECONDS + 0.1 or grown > CALL_HOST:
            GUESTS.drop(name)
            what = f"{name}: {chosen}({', '.join(map(hex, args))})"
            raise AssertionError(f"{what}: {took:.2f} s of CPU time, {grown >> 20} MiB more")
    machine.log.clear()
    if machine.kernel.heap.full or machine.memory.physical.free_bytes < CALL_MEMORY // 2:
        GUESTS.drop(name)
    return True


def _peak() -> int:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _arguments(function: Function, pointers: list[int], random: Random) -> list[int]:
    """Return what the prototype asks for, mostly, and a few more: pointers, sizes, and any."""
    found = []
    for parameter in function.prototype.params:
        pointer = parameter.type.pointer != (random.random() < 0.1)
        if random.random() < 0.2:
            found.append(hostile(random, pointers) % (1 << 64))
        else:
            found.append(random.choice(pointers if pointer else SIZES))
    if function.prototype.variadic:
        found += [hostile(random, pointers) % (1 << 64) for _ in range(random.randrange(4))]
    return found


def _pool(machine: Machine, data: bytes) -> list[int]:
    """Return pointers that a guest could have: objects that lead to each other, and none.

    Some lie in the direct map, all of which is there: what stands behind them is large.
    """
    heap, direct = machine.kernel.heap, machine.memory.direct_map.start
    one, two = heap.alloc(4096, zero=True), heap.alloc(256, zero=True)
    if not one or not two:
        GUESTS.drop(machine.arch.name)
        raise ExecmemError("full")
    image = machine.kernel.image.start
    pointers = [one, two, one + 4000, image, image + 0x200000, 0, 16, (1 << 64) - 22, 1 << 45]
    pointers += [direct + 16 * MIB, direct + 20 * MIB + 3, (1 << 64) - 8, (1 << 64) - 1]
    found = (data + bytes(64))[:3000]
    with suppress(AccessError):
        machine.write(one, found)
        for n, at in enumerate(pointers):
            machine.write(one + 3072 + 8 * n, at.to_bytes(8, "little"))
            machine.write(two + 8 * n, pointers[-n].to_bytes(8, "little"))
    return [*pointers, one + 3072, one + 16]


# Packages and tarballs ---------------------------------------------------------------------

# The first byte of an input is the kind of archive, as a file's name would tell it.
KINDS = (
    *((packages.tarball, ".tar" + packing, packing) for packing in packages.PACK),
    *((packages.deb, ".deb", packing) for packing in (".gz", ".xz", ".zst")),
    *((packages.rpm, ".rpm", packing) for packing in (".gz", ".xz", ".zst", ".bz2")),
)


@cache
def archives() -> list[bytes]:
    """Return one small archive of every kind and packing, two modules in each."""
    files = [("lib/modules/1/x.ko", objects()[0][:3000]), ("lib/modules/1/y.ko", bytes(range(256)))]
    return [
        bytes([number]) + make(files, packing) for number, (make, _, packing) in enumerate(KINDS)
    ]


def unpack(data: bytes, _random: Random) -> bool:
    """List an archive twice, once for what its modules need."""
    suffix = KINDS[data[0] % len(KINDS)][1] if data else ".tar"
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data[1:])
        file.flush()
        open_archive(Path(file.name))
        found = list(modules_in(Path(file.name)))
    for member in found:
        assert member.file is None or len(member.file.data) == member.size
    return bool(found)


def types(data: bytes, _random: Random) -> bool:
    """Read BTF and ask it everything."""
    return btfwriter.ask_everything(data)


@cache
def images() -> list[bytes]:
    """Return small kernel images of every layout, and packed ones."""
    found = []
    for layout in ("6.1", "6.2", "6.12", "7.0"):
        listed = imagewriter.symbols(facts("arm64").load.image_base, 1200)
        pointers = b"".join(symbol.address.to_bytes(8, "little") for symbol in listed)
        tables = imagewriter.kallsyms(listed, 64, facts("arm64").load.image_base, layout)
        body = tables + bytes(-len(tables) % 8) + pointers + btfwriter.blob().blob()
        found.append(imagewriter.flat(AARCH64, body, 1 << 20))
    packed = gzip.compress(found[0], mtime=0)
    return [*found, imagewriter.bzimage(packed), imagewriter.zboot(packed, b"gzip")]


def read_image(data: bytes, _random: Random) -> bool:
    """Read a kernel image and everything in it."""
    try:
        kernel = KernelImage.parse(data)
        assert len(kernel.symbols.names) == kernel.symbols.count
        return isinstance(dict(kernel.unknown), dict)
    except ExecmemError:
        return False


TARGETS: dict[str, Target] = {
    "btf": Target(
        lambda: [btfwriter.blob(order).blob() for order in "<>"],
        mutation.raw,
        types,
    ),
    "image": Target(images, mutation.raw, read_image),
    "tables": Target(tiny, mutation.elf, parse_elf),
    "parse": Target(objects, mutation.elf, parse_elf),
    "elf": Target(objects, mutation.elf, read_elf),
    "link": Target(objects, mutation.elf, link_elf),
    "load": Target(objects, mutation.elf, load_elf),
    "guest": Target(objects, mutation.elf, run_guest),
    "wrapper": Target(streams, mutation.packed, unwrap),
    "archive": Target(archives, mutation.raw, unpack),
    "depends": Target(indices, mutation.text, dependencies),
    "symvers": Target(lambda: [SYMVERS], mutation.text, symvers),
    "trace": Target(lambda: [TRACE], mutation.text, trace),
    "printf": Target(lambda: FORMATS, mutation.text, formats),
    "kernel": Target(blocks, mutation.raw, kernel_calls),
}
