# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real kernel made of real modules: recordings on disk, read into frozen values.

A recording folder holds, per architecture, the module files (`ko/`), one JSON per module for
the plain boot (`base/`), one compressed JSON per other boot (`runs/`), and what each boot said
about itself (`boot/RUN/`). A module's JSON gives the address of every section, the value of
every undefined symbol, and the SHA-256 of every section at two points: *relocated* (nothing
but relocation was done) and *final* (all patching done, init not yet run). Raw bytes stand
beside it for small modules: the relocated bytes, and their exclusive-or with the final ones.

Everything but the JSON may be missing: a reader gets None, and the comparison has less to
show but still compares the hashes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs

import archs
from allocator.files import read_regular
from allocator.types import MemType
from archs import Arch
from archs.environment import Boot, Environment
from archs.passes.static_calls import KEY
from loader.elf import parse
from loader.errors import BadModule
from loader.files import read_module
from loader.static_calls import defaults

BASE = "base"
# struct module is running state; the others are not allocated with the module.
NOT_COMPARED = frozenset(
    (".gnu.linkonce.this_module", ".symtab", ".strtab", ".modinfo", "__versions", ".data..percpu")
)
_NOT_PLACED = NOT_COMPARED - {".gnu.linkonce.this_module"}


@attrs.frozen
class RecordedSection:
    """One section as the kernel laid it out.

    Parameters
    ----------
    flags, size, align
        The kernel's, after it resized PLT sections.
    offset
        Where its bytes stand in the raw files.
    relocated, final
        SHA-256 at the two points, in hex.
    """

    index: int
    name: str
    address: int
    size: int
    flags: int
    align: int
    offset: int
    relocated: str
    final: str


@attrs.frozen
class Recording:
    """One module of one boot.

    Parameters
    ----------
    folder
        The architecture's folder.
    arch_name, run, name
        Which module of which boot.
    file, sha256
        The module's file, relative to `folder`, and the hash of the image in it.
    cpu, append, cpus
        The emulated CPU model, what was appended to the command line, and how many CPUs.
    errno
        What loading returned in the end.
    sections
        Every section with an address.
    symbols
        Undefined name -> value.
    regions
        Memory type -> address and size in bytes.
    percpu
        Address of the per-cpu section, or None.
    plt_used, veneers
        How many PLT entries the kernel filled, and those for an erratum.
    """

    folder: Path
    arch_name: str
    run: str
    name: str
    file: str
    sha256: str
    cpu: str
    append: str
    cpus: int
    errno: int
    sections: tuple[RecordedSection, ...]
    symbols: Mapping[str, int] = attrs.field(repr=False)
    regions: Mapping[MemType, tuple[int, int]]
    percpu: int | None
    plt_used: int = 0
    veneers: int = 0

    @property
    def arch(self) -> Arch:
        """The architecture's record."""
        return archs.arch(self.arch_name)

    @property
    def addresses(self) -> dict[int, int]:
        """Section index -> address, of sections that are allocated with the module."""
        return {s.index: s.address for s in self.sections if s.name not in _NOT_PLACED}

    @property
    def compared(self) -> tuple[RecordedSection, ...]:
        """The sections whose bytes the kernel decides when it loads the module."""
        return tuple(s for s in self.sections if s.name not in NOT_COMPARED)

    def raw(self) -> tuple[bytes | None, bytes | None]:
        """Return all sections' bytes at the two points, None where they were not kept."""
        base = self.folder / BASE if self.run == BASE else self.folder / "runs" / self.run
        relocated = self._kept(base / f"{self.name}.reloc.bin.xz")
        change = self._kept(base / f"{self.name}.init.xor.xz")
        if relocated is None or change is None:
            return relocated, None
        both = int.from_bytes(relocated, "little") ^ int.from_bytes(change, "little")
        return relocated, both.to_bytes(len(relocated), "little")

    def _kept(self, path: Path) -> bytes | None:
        """Return the bytes of all sections, if they were kept."""
        found = _unpacked(path)
        size = max((s.offset + s.size for s in self.sections), default=0)
        if found is not None and len(found) != size:
            raise BadModule(path.name, "recording", f"has {len(found)} bytes instead of {size}")
        return found


@attrs.frozen
class LiveModule:
    """A line of `/proc/modules`: bytes of all core regions, and where text begins."""

    name: str
    size: int
    address: int


@attrs.frozen
class Run:
    """One boot with every module that was recorded in it."""

    folder: Path
    arch_name: str
    name: str
    recordings: tuple[Recording, ...]

    @cached_property
    def boot(self) -> Boot:
        """What the boot said about itself."""
        folder = self.folder / "boot" / self.name
        first = self.recordings[0]
        try:
            vulnerabilities = json.loads(_text(folder / "vuln.json") or "{}")
        except ValueError as error:
            raise BadModule("vuln.json", "recording", f"not readable: {error}") from None
        return Boot(
            command_line=_text(folder / "cmdline").strip() or first.append,
            cpuinfo=_text(folder / "cpuinfo"),
            vulnerabilities=vulnerabilities,
            model=first.cpu,
            possible_cpus=first.cpus,
            symbols=self.kernel_symbols,
            console=_text(folder / "console.log.xz"),
        )

    @cached_property
    def environment(self) -> Environment:
        """What the boot means for modules, as its kernel would find out."""
        decide = archs.arch(self.arch_name).environment
        if decide is None:
            return Environment(possible_cpus=self.boot.possible_cpus, symbols=self.kernel_symbols)
        found = decide(self.boot)
        return attrs.evolve(found, static_calls={**self._provided, **found.static_calls})

    @property
    def _provided(self) -> Mapping[str, int]:
        """What the static calls of modules call that other modules use."""
        wanted = {at for r in self.recordings for n, at in r.symbols.items() if n.startswith(KEY)}
        found: dict[str, int] = {}
        for recording in self.recordings:
            data = recording.regions.get(MemType.DATA, (0, 0))
            if any(data[0] <= at < data[0] + data[1] for at in wanted):
                image = image_of(recording)
                if image is not None:
                    found |= defaults(parse(image, recording.name), recording.addresses)
        return found

    @cached_property
    def live(self) -> tuple[LiveModule, ...]:
        """`/proc/modules` after the last load, in the order of loads; empty if not kept."""
        lines = _text(self.folder / "boot" / self.name / "modules").splitlines()
        try:
            # name size users used-by state address taints
            words = [line.split() for line in reversed(lines)]
            return tuple(LiveModule(w[0], int(w[1]), int(w[5], 16)) for w in words)
        except (IndexError, ValueError) as error:
            raise BadModule("modules", "recording", f"not readable: {error}") from None

    @cached_property
    def kernel_symbols(self) -> Mapping[str, int]:
        """The kernel's own symbols in this boot: those of the plain boot, moved by KASLR.

        The kernel moves as a whole, so any symbol of the kernel that a module refers to says
        how far.
        """
        known = _kallsyms(self.folder / "boot" / BASE / "kallsyms.end.xz")
        seen = {name: at for r in self.recordings for name, at in r.symbols.items()}
        # A static function may have an imported one's name; it moves as the others do, if at all.
        slides = Counter(at - known[n] for n, at in seen.items() if known.get(n, 0) >> 63)
        slide, count = next(iter(slides.most_common(1)), (0, 0))
        if slide and 2 * count > slides.total():
            known = {name: at + slide if at >> 63 else at for name, at in known.items()}
        elif known and 2 * count <= slides.total():
            known = {}  # another kernel
        return {**known, **seen}


def runs(folder: str | Path, names: tuple[str, ...] = ()) -> Iterator[Run]:
    """Yield the recorded boots under a folder: of every architecture, or of one.

    Parameters
    ----------
    folder
        Holds one folder per architecture, or is one.
    names
        Only these runs.

    Raises
    ------
    BadModule
        When a record cannot be read.
    """
    top = Path(folder)
    for place in [top, *sorted(path for path in top.glob("*") if path.is_dir())]:
        if not (place / BASE).is_dir():
            continue
        try:
            arch_name = archs.arch(place.name).name
        except ValueError:
            continue
        files = [(BASE, sorted((place / BASE).glob("*.json")))]
        files += [
            (path.name.split(".")[0], [path]) for path in sorted((place / "runs").glob("*.json*"))
        ]
        for run, paths in files:
            if paths and (not names or run in names):
                facts = [fact for path in paths for fact in _facts(path, run)]
                recordings = tuple(_recording(place, arch_name, run, fact) for fact in facts)
                if recordings:
                    yield Run(place, arch_name, run, recordings)


def image_of(recording: Recording, trees: tuple[Path, ...] = ()) -> bytes | None:
    """Return the image that a recording was made from, or None where nobody has it.

    Parameters
    ----------
    trees
        Folders to look in, at any depth, for a file of the same name and hash, where the
        recording's own folder lacks it.
    """
    path = recording.folder / recording.file
    places = [path] if path.is_file() else []
    places += [found for tree in trees for found in sorted(tree.rglob(path.name))]
    for place in places:
        image = read_module(place)
        if hashlib.sha256(image).hexdigest() == recording.sha256:
            return image
    return None


def _facts(path: Path, run: str) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(_text(path))
        return [found] if run == BASE else list(found.values())
    except (ValueError, AttributeError) as error:
        raise BadModule(path.name, "recording", f"not readable: {error}") from None


def _recording(folder: Path, arch_name: str, run: str, facts: Mapping[str, Any]) -> Recording:
    try:
        sections = tuple(
            RecordedSection(
                s["idx"],
                s["name"],
                int(s["addr"], 16),
                s["size"],
                s["flags"],
                s["align"],
                s["off"],
                s["sha256_reloc"],
                s["sha256_init"],
            )
            for s in facts["section_info"]
        )
        regions = {
            MemType[kind.removeprefix("MOD_")]: (int(place["base"], 16), int(place["size"]))
            for kind, place in facts.get("layout", {}).items()
        }
        percpu = facts.get("percpu")
        return Recording(
            folder,
            arch_name,
            run,
            facts["name"],
            facts["file"],
            facts["ko_sha256"],
            facts.get("cpu", ""),
            facts.get("append", "").strip(),
            facts.get("smp", 1),
            facts.get("init_errno", 0),
            sections,
            {name: int(value, 16) for name, value in facts["symbols"].items()},
            regions,
            None if percpu is None else int(percpu, 16),
            facts.get("plt_used") or 0,
            facts.get("veneers") or 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"run {run}: no or a bad {error}"
        raise BadModule(str(facts.get("name", folder.name)), "recording", what) from None


def _unpacked(path: Path) -> bytes | None:
    """Return a file's bytes, decompressed where its name says so; None where there is none."""
    try:
        raw = read_regular(path)
        return lzma.decompress(raw) if path.suffix == ".xz" else raw
    except OSError:
        return None
    except (lzma.LZMAError, EOFError) as error:
        raise BadModule(path.name, "recording", f"damaged: {error}") from None


def _text(path: Path) -> str:
    return (_unpacked(path) or b"").decode("utf-8", "backslashreplace")


@lru_cache(maxsize=1)  # one kernel per architecture
def _kallsyms(path: Path) -> Mapping[str, int]:
    """Return the kernel's own symbols (no module's); of a repeated name the first counts."""
    found: dict[str, int] = {}
    try:
        for line in _text(path).splitlines():
            address, _, kind_and_name = line.partition(" ")
            if "\t" not in kind_and_name:
                found.setdefault(kind_and_name[2:], int(address, 16))
    except ValueError as error:
        raise BadModule(path.name, "recording", f"not readable: {error}") from None
    return found
