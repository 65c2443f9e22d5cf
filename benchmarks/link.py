# SPDX-License-Identifier: GPL-2.0-or-later
"""What reading, planning and linking a module costs, beside other linkers and the floor.

The floor does what no linker can do without: one numpy view per relocation table, read
once, and one copy of every allocated section. *least* (least.py) is what numpy needs at the
least to compute and store, *read* what ours takes to read the file. These run in this process
on the same bytes; peers (see peers.py) are processes, so what they need for an empty object of
the same architecture is subtracted. All take turns, and every figure is a median of CPU time
(user + system), so that a busy machine disturbs all of them alike.

    python -m benchmarks.link [MODULE...]            # ours, floor and peers
    python -m benchmarks.link --growth --memory      # from 10 to a million relocations
    python -m benchmarks.link --all --json FILE

Without MODULE: some of EXECMEM_CORPUS (one folder per architecture), or the samples.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from archs import arch, archs
from archs.dialect import RELA
from benchmarks import peers, synthetic
from benchmarks.least import Least
from loader.elf import parse
from loader.elfview import SHT_NOBITS, ElfView
from loader.files import read_module
from loader.layout import PERCPU_SECTION, Layout, plan
from loader.link import link_view
from samples.modules import names, path

CORPUS = ("nouveau", "btrfs", "xfs", "jbd2", "mbcache", "crc16")  # mbcache is a median one
LARGEST = (540_000, 1_700_000)  # relocations and symbols of amdgpu, in the worst case together
GROWTH = tuple(10**n for n in range(1, 7))
ROUNDS = 9
SLOW = 2.0  # seconds of CPU; what takes longer runs once
CLE_LIMIT = 20_000_000  # bytes; cle needs minutes for larger files


def ours(image: bytes) -> None:
    """Parse, plan and link at the start of the architecture's window."""
    view = parse(image)
    layout = plan(view)
    start, places, _ = placed(view, layout)
    link_view(view, layout, places, dict.fromkeys(view.undefined_names, start), percpu=start)


def placed(view: ElfView, layout: Layout) -> tuple[int, dict[int, int], int]:
    """Return the first address, an address per section, and the end: type behind type."""
    start = _window(view.arch.name)
    bases, at = {}, start
    for kind, size in layout.page_sizes().items():
        bases[kind] = at
        at += size
    return start, {i: bases.get(p.type, start) + p.offset for i, p in layout.placements.items()}, at


@cache
def _window(name: str) -> int:
    if arch(name).plt is None:
        return 0xFFFF_FFFF_C000_0000
    return arch(name).loads.address_map().image.start - (64 << 20)


def floor(view: ElfView) -> int:
    """Read every relocation table once and copy every allocated section once."""
    total = 0
    for table in view.tables:
        section = table.section
        records = np.frombuffer(view.data, RELA, table.records.size, section.offset)
        total += int(records["offset"].max(initial=0) ^ records["addend"].max(initial=0))
    copies = [
        bytes(view.contents(section))
        for section in view.sections
        if section.allocated and section.type != SHT_NOBITS
    ]
    return total + len(copies)


def read(image: bytes) -> None:
    """Parse, and decode the names of the undefined symbols, which a link has to look up."""
    len(parse(image).undefined_names)


def least_of(view: ElfView) -> Least:
    """Return the passes that a link of the module with numpy needs at the least."""
    layout = plan(view)
    start, places, _ = placed(view, layout)
    names = dict.fromkeys(view.undefined_names, start)
    return Least(view, link_view(view, layout, places, names, percpu=start), places)


@attrs.frozen
class Peer:
    """What one peer took for one module: milliseconds with and without the empty run, bytes."""

    whole: float
    net: float
    noise: float
    peak: int

    @property
    def measurable(self) -> bool:
        """Whether the module's share stands out of what empty runs differ by."""
        return self.net > 2 * self.noise


@attrs.frozen
class Row:
    """One module; times in milliseconds, `first` is ours before anything is warm.

    `peers` maps a name to its cost, or to the reason why there is none.
    """

    module: str
    arch: str
    size: int
    relocations: int
    symbols: int
    first: float
    ours: float
    floor: float
    least: float
    read: float
    peers: Mapping[str, Peer | str]

    def best(self) -> float | None:
        """Return ours as a multiple of the fastest C++ linker, where that can be told."""
        found = [p for n in peers.CPP_PEERS if isinstance(p := self.peers.get(n), Peer)]
        fastest = min(found, key=lambda p: p.net, default=None)
        return self.ours / fastest.net if fastest and fastest.measurable else None

    def of_ld_process(self) -> float | None:
        """Return ours as a multiple of a whole ld process."""
        ld = self.peers.get("ld")
        return self.ours / ld.whole if isinstance(ld, Peer) else None


def timed(function: Callable[[], object], runs: int = 1) -> list[float]:
    """Return the CPU times of `runs` calls in milliseconds."""
    times = []
    for _ in range(runs):
        start = time.process_time_ns()
        function()
        times.append((time.process_time_ns() - start) / 1e6)
    return times


def relocations_of(view: ElfView) -> int:
    """Return the relocations of a module."""
    return sum(table.records.size for table in view.tables)


def job_of(view: ElfView, stem: Path) -> peers.Job:
    """Return the job that `ours` does, for a peer."""
    start, places, end = placed(view, plan(view))
    percpu = view.find(PERCPU_SECTION)
    if percpu is not None:
        places[percpu.index] = end
    return peers.prepare(view, places, dict.fromkeys(view.undefined, start), stem)


class Contest:
    """Ours, the floor and the peers on one module after the other, in turns."""

    def __init__(self, launcher: peers.Launcher, folder: Path, rounds: int) -> None:
        self._launcher, self._folder, self._rounds = launcher, folder, rounds
        self._empty: dict[int, peers.Job] = {}
        self.versions: dict[str, str] = {}

    def row(self, name: str, image: bytes) -> Row:
        """Measure one module."""
        first = timed(partial(ours, image))
        view = parse(image, name)
        relocations = relocations_of(view)
        inner = 1 if relocations > 10_000 else 10
        commands = self._commands(view)
        mine: list[float] = []
        bare: list[float] = []
        least: list[float] = []
        reads: list[float] = []
        passes = least_of(view)
        times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
        failed: dict[str, str] = {}
        for _ in range(self._rounds):
            mine += timed(partial(ours, image), inner)
            bare += timed(partial(floor, view), inner)
            least += timed(passes, inner)
            reads += timed(partial(read, image), inner)
            for peer, (command, empty) in commands.items():
                done = times[peer]
                if peer in failed or (done and done[0][0] > SLOW * 1000):
                    continue
                try:
                    none, _ = self._launcher.run(empty)
                    whole, peak = self._launcher.run(command)
                except RuntimeError as error:
                    failed[peer] = str(error)
                else:
                    done.append((whole * 1e3, none * 1e3, peak))
        found: dict[str, Peer | str] = {
            n: _peer(samples) for n, samples in times.items() if samples
        }
        return Row(
            name,
            view.arch.name,
            len(image),
            relocations,
            len(view.symbols),
            first[0],
            statistics.median(mine),
            statistics.median(bare),
            statistics.median(least),
            statistics.median(reads),
            found | failed,
        )

    def _commands(self, view: ElfView) -> dict[str, tuple[list[str], list[str]]]:
        """Return each installed peer's command line for the module and for an empty object."""
        machine = view.arch.machine
        if machine not in self._empty:
            empty = parse(synthetic.minimal(machine))
            self._empty[machine] = job_of(empty, self._folder / f"empty{machine}")
        job = job_of(view, self._folder / "module")
        found = {}
        for name, peer in peers.PEERS.items():
            command, empty_command = peer(job), peer(self._empty[machine])
            if command and empty_command and (name != "cle" or len(view.data) < CLE_LIMIT):
                found[name] = command, empty_command
                self.versions.setdefault(name, peers.version(command))
        return found


def _peer(samples: Sequence[tuple[float, float, int]]) -> Peer:
    whole, empty, peaks = zip(*samples, strict=True)
    median = statistics.median(whole)
    return Peer(
        median, median - statistics.median(empty), statistics.pstdev(empty), int(max(peaks))
    )


@attrs.frozen
class Growth:
    """One synthetic object: milliseconds for ours and the floor."""

    arch: str
    relocations: int
    symbols: int
    ours: float
    floor: float

    @property
    def per_relocation(self) -> float:
        """Nanoseconds per relocation."""
        return self.ours * 1e6 / self.relocations


def growth() -> list[Growth]:
    """Measure synthetic objects of growing size, and one as large as the largest module."""
    rows = []
    for machine in synthetic.GROUPS:
        for relocations, symbols in (*((n, 0) for n in GROWTH), LARGEST):
            image = synthetic.write(machine, relocations, symbols)
            view = parse(image)
            ours(image)
            runs = 5 if relocations > 10_000 else 50
            mine = statistics.median(timed(partial(ours, image), runs))
            least = statistics.median(timed(partial(floor, view), runs))
            count = relocations_of(view)
            rows.append(Growth(view.arch.name, count, len(view.symbols), mine, least))
    return rows


@attrs.frozen
class Memory:
    """Peak memory of a link in bytes, the file included, beside the file's size."""

    module: str
    arch: str
    size: int
    peak: int


def memory(modules: Sequence[tuple[str, Path]]) -> list[Memory]:
    """Measure the peak memory of a link, each in a process of its own."""
    rows = []
    code = "import sys; from benchmarks.link import peak; print(peak(sys.argv[1]))"
    for name, file in modules:
        command = [sys.executable, "-c", code, str(file)]
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": paths}
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        image = file.read_bytes()
        rows.append(Memory(name, parse(image).arch.name, len(image), int(out.stdout)))
    return rows


def peak(file: str) -> int:
    """Return by how many bytes this process grew at most while it read and linked `file`.

    Linux's VmHWM, which is reset first; what a link needs whatever the module (imports,
    code that is touched for the first time) is left out by linking an empty object before.
    """
    status = Path("/proc/self/status")

    def kilobytes(field: str) -> int:
        line = next(s for s in status.read_text("ascii").splitlines() if s.startswith(field))
        return int(line.split()[1])

    for machine in synthetic.GROUPS:
        ours(synthetic.write(machine, 10))
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = kilobytes("VmRSS")
    ours(Path(file).read_bytes())
    return (kilobytes("VmHWM") - before) * 1024


def modules_of(words: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return names and images of the modules to measure."""
    files = [Path(word) for word in words]
    corpus = os.environ.get("EXECMEM_CORPUS")
    if not files and corpus:
        for folder in sorted(Path(corpus).iterdir()):
            if folder.is_dir():
                found = {p.name.split(".ko")[0]: p for p in folder.rglob("*.ko*")}
                files += [found[name] for name in CORPUS if name in found]
    if not files:
        files = [path(arch.name, name) for arch in archs() for name in names()]
    return [(file.name.split(".ko")[0], read_module(file)) for file in files]


def largest() -> list[tuple[str, bytes]]:
    """Return one synthetic module per architecture as large as the largest driver."""
    return [("synthetic", synthetic.write(machine, *LARGEST)) for machine in synthetic.GROUPS]


def machine_text() -> str:
    """Return CPU, number of CPUs, kernel and Python, for the record."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text("utf-8").splitlines())
        cpu = next((v.strip() for k, _, v in lines if k.strip() == "model name"), cpu)
    python = f"Python {platform.python_version()}, numpy {np.__version__}"
    return f"{cpu}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, {python}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _net(peer: Peer | str | None) -> str:
    if isinstance(peer, Peer):
        return _number(peer.net) if peer.measurable else "~0"
    return "fails" if peer else "-"


def _whole(peer: Peer | str | None) -> str:
    if isinstance(peer, Peer):
        return f"{peer.whole:.0f} / {peer.peak / 1e6:.0f}"
    return "fails" if peer else "-"


def show_rows(rows: Sequence[Row]) -> None:
    """Print times, then whole processes and memory."""
    columns = list(peers.PEERS)
    print("CPU milliseconds, a peer's empty run subtracted (~0: lost in its noise)")
    print("best: ours / fastest C++ linker; ld proc.: ours / a whole ld process")
    heads = ("ours", "first", "floor", "x floor", "least", "read", *columns, "best", "ld proc.")
    print(f"{'module':10} {'arch':8} {'relocs':>7} " + " ".join(f"{h:>8}" for h in heads))
    for row in rows:
        mine = [_number(v) for v in (row.ours, row.first, row.floor, row.ours / row.floor)]
        mine += [_number(row.least), _number(row.read)]
        theirs = [_net(row.peers.get(column)) for column in columns]
        cells = [*mine, *theirs, _number(row.best()), _number(row.of_ld_process())]
        print(
            f"{row.module:10} {row.arch:8} {row.relocations:7} "
            + " ".join(f"{cell:>8}" for cell in cells)
        )
    print("\nwhole processes: CPU milliseconds / peak MB")
    print(f"{'module':10} {'arch':8} {'symbols':>8} " + " ".join(f"{c:>15}" for c in columns))
    for row in rows:
        cells = [_whole(row.peers.get(column)) for column in columns]
        print(
            f"{row.module:10} {row.arch:8} {row.symbols:8} "
            + " ".join(f"{cell:>15}" for cell in cells)
        )
    for row in rows:
        for name, peer in row.peers.items():
            if isinstance(peer, str):
                print(f"{name}, {row.module} {row.arch}: {peer}")


def show_growth(rows: Sequence[Growth]) -> None:
    """Print times and nanoseconds per relocation."""
    print(f"\n{'arch':8} {'relocs':>8} {'symbols':>8} {'ms':>9} {'ns/reloc':>9} {'x floor':>8}")
    for row in rows:
        print(
            f"{row.arch:8} {row.relocations:8} {row.symbols:8} {row.ours:9.3f} "
            f"{row.per_relocation:9.0f} {row.ours / row.floor:8.1f}"
        )


def show_memory(rows: Sequence[Memory]) -> None:
    """Print peak memory as a multiple of the file."""
    print(f"\n{'module':10} {'arch':8} {'file MB':>8} {'peak MB':>8} {'ratio':>6}")
    for row in rows:
        print(
            f"{row.module:10} {row.arch:8} {row.size / 1e6:8.2f} {row.peak / 1e6:8.2f} "
            f"{row.peak / row.size:6.2f}"
        )


def main() -> None:
    """Measure what the command line asks for, print tables and write the document."""
    parser = argparse.ArgumentParser(description="Measure the link beside other linkers.")
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--growth", action="store_true", help="synthetic objects of growing size")
    parser.add_argument("--memory", action="store_true", help="peak memory beside the file's size")
    parser.add_argument("--all", action="store_true", help="the comparison, growth and memory")
    parser.add_argument("--large", action="store_true", help="add a synthetic amdgpu per machine")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns that each one takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    now = datetime.now(UTC).date().isoformat()
    document: dict[str, Any] = {"machine": machine_text(), "date": now}
    print(f"{document['machine']}, {now}")
    modules = modules_of(options.modules)
    if options.large or options.all:
        modules += largest()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.all or not (options.growth or options.memory):
            with peers.Launcher(folder / "log") as launcher:
                contest = Contest(launcher, folder, options.rounds)
                rows = [contest.row(*module) for module in modules]
            print("; ".join(f"{k}: {v}" for k, v in contest.versions.items()))
            show_rows(rows)
            document |= {"versions": contest.versions, "modules": [attrs.asdict(r) for r in rows]}
        if options.all or options.growth:
            grown = growth()
            show_growth(grown)
            document["growth"] = [attrs.asdict(row) for row in grown]
        if options.all or options.memory:
            files = []
            for number, (module, image) in enumerate(modules):
                files.append((module, folder / f"{number}.ko"))
                files[-1][1].write_bytes(image)
            needed = memory(files)
            show_memory(needed)
            document["memory"] = [attrs.asdict(row) for row in needed]
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
