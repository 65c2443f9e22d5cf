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

import glob
import hashlib
import io
import json
import lzma
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs

import archs
from allocator.files import read_regular
from allocator.types import CORE_AND_INIT, MemType
from archs import Arch
from archs.environment import Boot, Environment
from archs.passes.static_calls import KEY, TRAMPOLINE
from archs.versions import MODELLED, version_of
from loader.elf import parse
from loader.errors import BadModule
from loader.files import SUFFIXES, read_module
from loader.kernel.config import parse_config
from loader.static_calls import defaults, places

BASE = "base"
# struct module_layout.
_SUMS = ("text_size", "ro_size", "ro_after_init_size", "size")
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
class Contents:
    """A module's file, and the bytes of its sections, where they are at hand and in no file.

    Parameters
    ----------
    image
        The file's bytes.
    relocated, changes
        All sections' bytes after relocation, and their exclusive-or with the final ones.
    """

    image: bytes = attrs.field(repr=False)
    relocated: bytes = attrs.field(repr=False)
    changes: bytes = attrs.field(repr=False)


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
    contents
        The file and the bytes, where they were not stored.
    static_keys, static_calls
        What those that are not the module's own said when it came, as `Environment` has them; of
        keys None: nobody looked.
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
    contents: Contents | None = attrs.field(default=None, repr=False)
    static_keys: Mapping[str, bool] | None = None
    static_calls: Mapping[str, int] = attrs.field(factory=dict)

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
        """Return all sections' bytes after relocation, and their exclusive-or with the final ones.

        None where they were not kept.
        """
        if self.contents is not None:
            return self.contents.relocated, self.contents.changes
        return self._kept("reloc.bin"), self._kept("init.xor")

    @property
    def raw_size(self) -> int:
        """Bytes of all sections together, where they are kept."""
        return max((s.offset + s.size for s in self.sections), default=0)

    def _kept(self, what: str) -> bytes | None:
        """Return the bytes of all sections, if they were kept: in a file, or in a boot's archive."""
        name = f"{self.name}.{what}"
        if self.run == BASE:
            found = _unpacked(self.folder / BASE / f"{name}.xz")
        else:
            runs = self.folder / "runs"
            found = _unpacked(runs / self.run / f"{name}.xz")
            if found is None:
                found = _archived(runs / f"{self.run}.{what}.tar.xz").get(name)
        if found is not None and len(found) != self.raw_size:
            reason = f"has {len(found)} bytes instead of {self.raw_size}"
            raise BadModule(f"{name}.xz", "recording", reason)
        return found


@attrs.frozen
class LiveModule:
    """A line of `/proc/modules`: bytes of all core regions, and where text begins.

    `inside` is the module in whose init it came, where that is known.
    """

    name: str
    size: int
    address: int
    inside: str = ""


@attrs.frozen
class Refusal:
    """A load that the kernel ended; what it had made of the module until then is compared.

    Parameters
    ----------
    at
        `init`, where init returned an error or died, else `load`.
    errno, error
        What the system call returned, and its name; 0 and the kind of fault where it died.
    said
        The kernel's last line meanwhile, or what the fault was.
    log
        All its lines.
    """

    module: str
    at: str
    errno: int
    error: str
    said: str
    log: tuple[str, ...] = attrs.field(default=(), repr=False)


@attrs.frozen
class RecordedBoot:
    """One boot with every module that was recorded in it.

    `trees` are folders where files of modules are looked for; `refusals` are the loads that the
    kernel ended, where that was told.
    """

    folder: Path
    arch_name: str
    name: str
    recordings: tuple[Recording, ...]
    trees: tuple[Path, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @cached_property
    def kernel(self) -> str:
        """The release of the kernel that booted; the folder's name where it does not say."""
        banner = _text(self.folder / "boot" / self.name / "version").split()
        return banner[2] if banner[:2] == ["Linux", "version"] and banner[2:] else self.folder.name

    @cached_property
    def boot(self) -> Boot:
        """What the boot said about itself."""
        folder = self.folder / "boot" / self.name
        first = self.recordings[0]
        try:
            vulnerabilities = json.loads(_text(folder / "vuln.json") or "{}")
        except ValueError as error:
            raise BadModule("vuln.json", "recording", f"not readable: {error}") from None
        caps = self._capabilities
        version = version_of(_text(folder / "version"))
        return Boot(
            config=parse_config(self._config),
            version=MODELLED if version is None else version,
            capabilities=_numbers(caps),
            return_thunk=str(caps.get("x86_return_thunk", ("", ""))[1]),
            command_line=_text(folder / "cmdline").strip() or first.append,
            cpuinfo=_text(folder / "cpuinfo"),
            vulnerabilities=vulnerabilities,
            model=first.cpu,
            possible_cpus=first.cpus,
            symbols=self.kernel_symbols,
            console=_text(folder / "console.log.xz"),
        )

    @property
    def _config(self) -> str:
        """The kernel's configuration; empty where nobody kept it."""
        found = sorted((self.folder / "boot").glob("config*"))
        return _text(found[0]) if found else ""

    @property
    def _capabilities(self) -> Mapping[str, Any]:
        """What the kernel kept of the CPU's capabilities; empty where nobody looked."""
        try:
            found = json.loads(_text(self.folder / "boot" / self.name / "caps.json") or "{}")
        except ValueError as error:
            raise BadModule("caps.json", "recording", f"not readable: {error}") from None
        return found if isinstance(found, dict) else {}

    @cached_property
    def environment(self) -> Environment:
        """What the boot means for modules, as its kernel would find out, or says."""
        boot, decide = self.boot, archs.arch(self.arch_name).environment
        if decide is None:
            found = Environment(possible_cpus=boot.possible_cpus, symbols=self.kernel_symbols)
        else:
            found = decide(boot)
        calls, keys = self._provided
        return attrs.evolve(
            found,
            static_calls={**calls, **found.static_calls},
            symbols={**found.symbols, **keys},
            version=boot.version,
            capabilities=boot.capabilities,
        )

    @cached_property
    def _provided(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """What the static calls of modules call that other modules use, and where their keys are."""
        names = [n for r in self.recordings for n in r.symbols if n.startswith((KEY, TRAMPOLINE))]
        kernels = _kallsyms(self.folder / "boot" / BASE / "kallsyms.end.xz")
        wanted = {name[len(KEY) :] for name in names} - {
            name[len(KEY) :] for name in kernels if name.startswith(KEY)
        }
        calls: dict[str, int] = {}
        keys: dict[str, int] = {}
        for recording in self.recordings if wanted else ():
            image = image_of(recording, self.trees)
            if image is None or KEY.encode() not in image:
                continue
            view = parse(image, recording.name)
            calls |= defaults(view, recording.addresses)
            keys |= places(view, recording.addresses)
        return calls, keys

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
    def order(self) -> tuple[str, ...]:
        """Names of modules in the order of loads, those that failed too; empty if not kept."""
        text = _text(self.folder / "boot" / self.name / "load_order.json")
        try:
            found = json.loads(text or "{}")
            return (*map(str, found.get("preloaded", ())), *map(str, found.get("load_order", ())))
        except (ValueError, AttributeError, TypeError) as error:
            raise BadModule("load_order.json", "recording", f"not readable: {error}") from None

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


def runs(folder: str | Path, names: tuple[str, ...] = ()) -> Iterator[RecordedBoot]:
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
        _, dash, name = place.name.rpartition("-")
        try:
            arch_name = archs.arch(name if dash else place.name).name
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
                    yield RecordedBoot(place, arch_name, run, recordings)


def image_of(recording: Recording, trees: tuple[Path, ...] = ()) -> bytes | None:
    """Return the image that a recording was made from, or None where nobody has it.

    Parameters
    ----------
    trees
        Folders to look in, at any depth, for a file of the same name and hash, where the
        recording's own folder lacks it.
    """
    if recording.contents is not None:
        return recording.contents.image
    path = recording.folder / recording.file
    places = [path] if path.is_file() else []
    # Distributions compress modules, or not; what was recorded may have been compressed since.
    bare = path.name[: path.name.find(".ko") + 3]
    places += [
        found
        for tree in trees
        for found in sorted(tree.rglob(f"{glob.escape(bare)}*"))
        if found.name.endswith(SUFFIXES)
    ]
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
        regions = _before_types(facts.get("layout", {})) or {
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


def _before_types(layout: Mapping[str, Any]) -> dict[MemType, tuple[int, int]]:
    """Return the regions of a module before Linux 6.4, which had an area for core and one for init.

    Either is text, read-only data, what becomes read-only, and data in a row; sizes are sums.
    """
    found: dict[MemType, tuple[int, int]] = {}
    for name, kinds in zip(("CORE", "INIT"), CORE_AND_INIT, strict=True):
        place = layout.get(name, {})
        start = 0
        # Nothing of an init area becomes read-only later: that sum is as the one before.
        sums = _SUMS if MemType.RO_AFTER_INIT in kinds else (*_SUMS[:2], _SUMS[3])
        for kind, key in zip(kinds, sums, strict=True):
            end = int(place.get(key, 0))
            if end > start:
                found[kind] = int(place["base"], 16) + start, end - start
            start = max(start, end)
    return found


def _numbers(caps: Mapping[str, Any]) -> frozenset[int] | None:
    """Return the numbers of the capabilities that a kernel kept; x86's are "WORD*32+BIT"."""
    for name in ("x86_capability", "cpucaps", "riscv_isa"):
        if name in caps:
            pairs = (str(one).partition("*32+")[::2] for one in caps[name])
            return frozenset(32 * int(a) + int(b) if b else int(a) for a, b in pairs)
    return None


def _unpacked(path: Path) -> bytes | None:
    """Return a file's bytes, decompressed where its name says so; None where there is none."""
    try:
        raw = read_regular(path)
        return lzma.decompress(raw) if path.suffix == ".xz" else raw
    except OSError:
        return None
    except (lzma.LZMAError, EOFError) as error:
        raise BadModule(path.name, "recording", f"damaged: {error}") from None


@lru_cache(maxsize=2)  # one boot's two
def _archived(path: Path) -> Mapping[str, bytes]:
    """Return the files of an archive by name; none where there is no archive."""
    data = _unpacked(path)
    if data is None:
        return {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = ((m.name, archive.extractfile(m)) for m in archive if m.isfile())
            return {name: file.read() for name, file in files if file is not None}
    except (tarfile.TarError, OSError) as error:
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
