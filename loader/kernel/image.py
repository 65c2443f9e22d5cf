# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel image taken apart: bytes at addresses, symbols, exports, types, configuration.

Nothing of it runs. What an image does not hold is None or empty, and `unknown` says by name
what would make it known.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK, MIB, Interval, align_down
from archs import Arch, Order, by_machine, machines
from loader.btf import BadBtf, Btf
from loader.errors import BadKernel
from loader.kernel import dwarf
from loader.kernel.config import embedded_config, page_size_in
from loader.kernel.elfsymbols import has_symbols, symbols_of
from loader.kernel.exports import KernelExport, exports_in
from loader.kernel.segments import Loaded, Segment, address_of, offset_of
from loader.kernel.symbols import NONE, Encoding, Found, ImageSymbols, NoKallsyms, find
from loader.kernel.unpack import unwrap

# Headers of flat images: where a magic stands, and e_machine of those that have it.
_FLAT = ((56, b"ARM\x64", 183), (48, b"RISCV", 243))
_FLAT_SIZE = 16  # where such a header has the image's size in memory
_FLAT_FLAGS = 24
_BANNER = re.compile(rb"Linux version (\S{1,64}) \([^\n\0]{0,900}\n\0")
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_BTF = b"\x9f\xeb\x01\x00"
_BTF_BIG = b"\xeb\x9f\x01\x00"
_BUILD_ID = struct.pack("<III", 4, 20, 3) + b"GNU\0"
_RELATIVE = 0x403  # R_AARCH64_RELATIVE
_GAP = 2 * MIB  # between segments, as far as the linker aligns the second
_LIKELY = 64  # bases that are tried where an image is not linked to the usual one
_ENOUGH = 1000  # pointers to symbols that cannot be chance


@attrs.frozen(eq=False)
class KernelImage:
    """A kernel, read from its file.

    Parameters
    ----------
    name
        For messages: the file's name.
    arch
        The architecture that it is for.
    data
        The ELF file or flat image inside of all wrappers.
    wrappers
        What was around it, outermost first.
    segments
        The parts with addresses, in ascending order; those of x86-64's per-cpu area begin at 0.
    symbols
        Its kallsyms: name -> address.
    given_config
        The configuration where it came from a file of its own.
    header
        The first bytes of the file that a boot protocol describes, where there was one.
    debug
        Where its debugging information is, which types can be made of.
    behind
        What stands behind an ELF file in the same wrapper.
    """

    name: str
    arch: Arch
    data: bytes = attrs.field(repr=False)
    wrappers: tuple[str, ...]
    segments: tuple[Segment, ...]
    symbols: ImageSymbols = attrs.field(repr=False)
    given_config: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    header: bytes = attrs.field(default=b"", repr=False)
    debug: dwarf.Debug | None = attrs.field(default=None, repr=False)
    behind: bytes = attrs.field(default=b"", repr=False)

    @classmethod
    def parse(
        cls,
        raw: bytes,
        name: str = "vmlinux",
        *,
        config: Mapping[str, str] | None = None,
        vmlinux: Callable[[], bytes] | None = None,
    ) -> KernelImage:
        """Return the kernel in a file's bytes.

        Parameters
        ----------
        raw
            A bzImage, EFI zboot, arm64 or riscv64 Image, or ELF vmlinux, packed or not.
        name
            For messages.
        config
            Its configuration, where that is known from elsewhere.
        vmlinux
            Returns the ELF file that the image was made of, where that is at hand: for symbols
            and types that the image lacks.

        Raises
        ------
        BadKernel
            Naming the place and what is wrong with it.
        """
        payload = unwrap(raw, name)
        data = payload.data
        elf, behind = _same(data, vmlinux), b""
        if data[:4] == b"\x7fELF":
            arch, segments = _elf(data, name)
            if has_symbols(data):
                elf = partial(bytes, data)
            end = max(s.offset + s.stored for s in segments)
            data, behind = data[:end], data[end:] if payload.header else b""
        else:
            arch, size = _flat(data, name)
            found = _kallsyms(data, name)
            if found is not None:
                base = _base(data, found, arch)
            else:  # the ELF file that it was made of says both, or nobody does
                base = _symbols(data, name, (), elf).get("_text")
            if base is None:
                reason = "its address is not known: nothing in the image says where it is linked to"
                raise BadKernel(name, "image", reason)
            segments = (Segment(base, max(size, len(data)), 0, len(data)),)
        symbols = _symbols(data, name, segments, elf)
        debug = None
        if elf is not None and "__start_BTF" not in symbols and dwarf.has(elf()):
            debug = dwarf.Debug(elf)
        return cls(
            *(name, arch, data, payload.wrappers, segments, symbols, config, payload.header, debug),
            behind=behind,
        )

    @property
    def order(self) -> str:
        """Byte order, as numpy spells it."""
        return "<"

    # Bytes ------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Return bytes at an address, zeros where the file has none; BadKernel outside.

        What stands between two segments is in the image, too: the linker only aligns the second.
        """
        parts: list[Segment] = []
        for segment in self.segments:
            at = address - segment.address
            if parts:
                behind = parts[-1].address + parts[-1].size
                if not 0 <= segment.address - behind < _GAP:
                    break
            elif not 0 <= at < segment.size:
                continue
            parts.append(segment)
            if 0 <= at + size <= segment.size:
                return self._joined(parts, address, size)
        raise BadKernel(self.name, f"{address:#x}", f"{size:#x} bytes are not in the image")

    def _joined(self, parts: Iterable[Segment], address: int, size: int) -> bytes:
        found = bytearray(size)
        for segment in parts:
            at = address - segment.address
            low, high = max(at, 0), min(at + size, segment.stored)
            if low < high:
                stored = self.data[segment.offset + low : segment.offset + high]
                found[low - at : high - at] = stored
        return bytes(found)

    def string(self, address: int, limit: int = 4096) -> str:
        """Return the NUL-terminated string at an address; empty where there is none."""
        for segment in self.segments:
            at = address - segment.address
            if 0 <= at < segment.stored:
                start = segment.offset + at
                end = self.data.find(0, start, start + limit)
                return self.data[start:end].decode("utf-8", "backslashreplace") if end >= 0 else ""
        return ""

    # What it is -------------------------------------------------------------------------------

    @cached_property
    def banner(self) -> str:
        """What the kernel says of itself when it starts; empty where it is not found."""
        found = _BANNER.search(self.data)
        return found[0].rstrip(b"\n\0").decode("utf-8", "backslashreplace") if found else ""

    @property
    def release(self) -> str:
        """As `uname -r` prints it; empty where it is not known."""
        return self.banner.split(" ")[2] if self.banner else ""

    @cached_property
    def vermagic(self) -> str:
        """What modules must say that they were built for; empty where it is not found."""
        if not self.release:
            return ""
        # VERMAGIC_STRING stands in the image once; words follow the release, as in no banner.
        words = rb" (?:SMP |preempt|mod_unload )[!-~ ]{0,200}\0"
        found = re.search(b"\0" + re.escape(self.release.encode()) + words, self.data)
        return "" if found is None else found[0].strip(b"\0").decode()

    @property
    def version(self) -> tuple[int, int, int] | None:
        """The three numbers of the release; None where it is not known."""
        found = _VERSION.match(self.release)
        return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))

    @cached_property
    def build_id(self) -> str:
        """The linker's build id, in hex; empty where the image does not say which is its own."""
        notes = self.symbols.get("__start_notes")
        start = 0 if notes is None else offset_of(self.segments, notes)
        if start is None:
            return ""
        places = list(_all(self.data[start:], _BUILD_ID))
        if not places or (notes is None and len(places) > 1):
            return ""
        at = start + places[0] + len(_BUILD_ID)
        return self.data[at : at + 20].hex()

    @cached_property
    def page_size(self) -> int | None:
        """Bytes of a page; None where the architecture has several and the image does not say."""
        if len(self.arch.loads.page_sizes) == 1:
            return self.arch.loads.page_sizes[0]
        if self.data[:4] != b"\x7fELF":
            # Bits 1 and 2 of the header's flags (Documentation/arch/arm64/booting.rst).
            code = self.data[_FLAT_FLAGS] >> 1 & 3
            return 1 << 10 + 2 * code if code else None
        return page_size_in(self.config or {})

    @cached_property
    def interval(self) -> Interval:
        """Where the image lies when it runs without KASLR."""
        own = [s for s in self.segments if s.address >> 63]
        start = self.symbols.get("_text", own[0].address) if len(own) > 1 else own[0].address
        end = self.symbols.get("_end", max(s.address + s.size for s in own))
        return Interval(start, end)

    @cached_property
    def loaded(self) -> Loaded:
        """What a boot loader puts into memory, without KASLR.

        Of an ELF file the segments by their physical addresses, its entry being a physical
        address too; a flat image as it is, entered at its first byte.
        """
        first = self.segments[0]
        if self.data[:4] != b"\x7fELF":
            return Loaded(address=first.address, contents={0: self.data}, size=first.size, entry=0)
        parts = [(s.address if s.physical is None else s.physical, s) for s in self.segments]
        start = min(at for at, _ in parts)
        end = max(at + segment.size for at, segment in parts)
        lowest = next(segment for at, segment in parts if at == start)
        contents = {
            at - start: self.data[s.offset : s.offset + s.stored] for at, s in parts if s.stored
        }
        entry = int.from_bytes(self.data[24:32], "little")
        virtual = entry - lowest.address
        entry = virtual if 0 <= virtual < lowest.size else entry - start
        return Loaded(address=lowest.address, contents=contents, size=end - start, entry=entry)

    @cached_property
    def percpu(self) -> Interval | None:
        """Where symbols of per-cpu variables lie; None where it is not known."""
        ends = (self.symbols.get("__per_cpu_start"), self.symbols.get("__per_cpu_end"))
        return None if ends[0] is None or ends[1] is None else Interval(ends[0], ends[1])

    @cached_property
    def exports(self) -> Mapping[str, KernelExport]:
        """What modules may use, by name."""
        return exports_in(self)

    @cached_property
    def btf(self) -> Btf | None:
        """The kernel's types; None where it has none.

        Raises
        ------
        BadBtf
            They are there and damaged.
        """
        blob = self.btf_blob()
        return None if blob is None else Btf.parse(blob, name=f"{self.name} BTF")

    def btf_blob(self) -> bytes | None:
        """Return the bytes of the kernel's BTF, its own or made of its debugging information."""
        start, end = (self.symbols.get(name) for name in ("__start_BTF", "__stop_BTF"))
        if start is not None and end is not None and end > start:
            return self.read(start, end - start)
        best = b""
        for magic in (_BTF, _BTF_BIG):
            order = "<" if magic is _BTF else ">"
            for at in _all(self.data, magic):
                if at + 24 > len(self.data):
                    continue
                size, types, length, strings, more = struct.unpack_from(
                    f"{order}5I", self.data, at + 4
                )
                whole = size + max(types + length, strings + more)
                if (
                    24 <= size <= 4096
                    and len(best) < whole <= len(self.data) - at
                    and length
                    and more
                ):
                    blob = self.data[at : at + whole]
                    try:
                        Btf.parse(blob)
                    except BadBtf:
                        continue
                    best = blob
        if not best and self.debug is not None:
            return self.debug.types(self.name)
        return best or None

    @cached_property
    def config(self) -> Mapping[str, str] | None:
        """Option -> value, from the file that was given or the image; None: not known."""
        if self.given_config is not None:
            return self.given_config
        return embedded_config(self.data, self.name)

    @cached_property
    def unknown(self) -> Mapping[str, str]:
        """What this image does not say -> what would make it known."""
        image = "an image built with"
        makes = self.debug is not None and self.debug.tool is None
        types = f"{dwarf.PACKAGE}, which makes them of its DWARF, or " if makes else ""
        facts = {
            "release": (self.release, "an image with its banner"),
            "build id": (self.build_id, f"{image} CONFIG_KALLSYMS_ALL, or its vmlinux"),
            "page size": (self.page_size, "its configuration (CONFIG_PAGE_SHIFT)"),
            "configuration": (self.config, f"the config file, or {image} CONFIG_IKCONFIG"),
            "types": (self.btf, f"{types}{image} CONFIG_DEBUG_INFO_BTF"),
            "exports": (self.exports, f"{image} CONFIG_KALLSYMS_ALL"),
            "per-cpu section": (self.percpu, f"{image} CONFIG_KALLSYMS_ALL, and CONFIG_SMP"),
        }
        return {name: how for name, (value, how) in facts.items() if not value}


def _elf(data: bytes, name: str) -> tuple[Arch, tuple[Segment, ...]]:
    """Return architecture and loaded segments of an ELF vmlinux."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(io.BytesIO(data))
        machine, kind = file.header.e_machine, file.header.e_type
        order: Order = "little" if file.little_endian else "big"
        number = int.from_bytes(data[18:20], order)
        segments = [
            Segment(s["p_vaddr"], s["p_memsz"], s["p_offset"], s["p_filesz"], s["p_paddr"])
            for s in file.iter_segments("PT_LOAD")
        ]
    except (ELFError, ValueError, KeyError, struct.error, OverflowError) as error:
        raise BadKernel(name, "ELF file", f"cannot be read: {error}") from None
    found = by_machine(number, file.elfclass, order)
    if found is None:
        reason = f"ELF{file.elfclass} {order}-endian {machine}: known are {machines()}"
        raise BadKernel(name, "ELF header", reason)
    if kind not in ("ET_EXEC", "ET_DYN") or not segments:
        raise BadKernel(
            name, "ELF header", f"{kind} without segments: no kernel, but maybe a module"
        )
    for segment in segments:
        if segment.offset + segment.stored > len(data) or segment.stored > segment.size:
            raise BadKernel(name, "ELF segments", "are cut off")
    return found, tuple(sorted(segments, key=lambda s: s.address))


def _same(data: bytes, vmlinux: Callable[[], bytes] | None) -> Callable[[], bytes] | None:
    """Return what reads the ELF file of an image, if it is that of this one."""
    banner = _BANNER.search(data)
    if vmlinux is None or banner is None or banner[0] not in vmlinux():
        return None
    return vmlinux


def _kallsyms(data: bytes, name: str) -> Found | None:
    """Return the image's own symbol table; None where it has none."""
    try:
        return find(data, name)
    except NoKallsyms:
        return None


def _symbols(
    data: bytes,
    name: str,
    segments: tuple[Segment, ...],
    elf: Callable[[], bytes] | None,
) -> ImageSymbols:
    """Return an image's symbols: kallsyms, or where that lacks variables those of its ELF file."""
    found = _kallsyms(data, name)
    if found is not None:
        if found.encoding is Encoding.BASE and not found.base:
            found = attrs.evolve(found, base=_relocated(data, found, segments[0].address))
        own = ImageSymbols(found, found.addresses(lambda at: address_of(segments, at)))
        if own.has_data or elf is None:
            return own
    table = None if elf is None else symbols_of(elf(), name)
    if table is not None:
        return ImageSymbols(*table)
    if found is None:
        raise NoKallsyms(name, "kallsyms", NONE)
    return own


def _flat(data: bytes, name: str) -> tuple[Arch, int]:
    """Return the architecture that a flat image's header names, and the image's size in memory."""
    for at, magic, machine in _FLAT:
        arch = by_machine(machine)
        if data[at : at + len(magic)] == magic and arch is not None:
            return arch, int.from_bytes(data[_FLAT_SIZE : _FLAT_SIZE + 8], "little")
    reason = "neither bzImage, EFI zboot, Image of arm64 or riscv64, nor ELF vmlinux"
    raise BadKernel(name, "image", reason)


def _base(data: bytes, found: Found, arch: Arch) -> int | None:
    """Return the address that a flat image is linked to; None: nothing in it says so.

    The symbol table's base leads to it where there is one; else a pointer of the image to its
    own symbols.
    """
    if found.encoding is not Encoding.PLACE:
        if not found.base:
            return _relocations(data, found)
        addresses = found.addresses(lambda at: at)
        return align_down(int(addresses[addresses >> np.uint64(63) != 0].min()), 2 * MIB)
    symbols = np.unique(found.addresses(lambda at: at))
    words = np.frombuffer(data, "<u8", len(data) // 8)
    pointers = np.unique(words[words >> np.uint64(48) == np.uint64(0xFFFF)])
    usual = arch.loads.address_map(None).image.start
    if _hits(pointers, symbols, usual) > _ENOUGH:
        return usual
    bases, counts = np.unique(pointers >> np.uint64(21) << np.uint64(21), return_counts=True)
    likely = bases[np.argsort(counts)[::-1][:_LIKELY]].tolist()
    hits = {base: _hits(pointers, symbols, base) for base in likely}
    best = max(likely, key=hits.__getitem__, default=None)
    return best if best is not None and hits[best] > _ENOUGH else None


def _hits(pointers: NDArray[np.uint64], symbols: NDArray[np.uint64], base: int) -> int:
    """Return how many of the pointers lead to a symbol, were the image at `base`."""
    end = min(base + int(symbols[-1]), ADDRESS_MASK)
    inside = pointers[(pointers >= base) & (pointers <= end)] - np.uint64(base)
    return int((symbols[np.searchsorted(symbols, inside)] == inside).sum())


def _relocations(data: bytes, found: Found) -> int | None:
    """Return the base by the relocation that fills the symbol table's own base."""
    words = np.frombuffer(data, "<u8", len(data) // 8)
    at = np.flatnonzero(words[1:-1] == _RELATIVE)
    places, low = words[at], np.uint64(2 * MIB - 1)
    chosen = places[places & low == np.uint64(found.base_at) & low]
    places = places[places >> np.uint64(48) == np.uint64(0xFFFF)]
    bases = {int(place) - found.base_at for place in chosen.tolist()}
    good = [
        base for base in bases if base <= int(places.min()) and int(places.max()) < base + len(data)
    ]
    if len(good) < 2:
        return good[0] if good else None
    # Other places are filled at the same offset in their 2 MiB: what most pointers agree with counts.
    pointers, symbols = np.unique(words[at + 2]), np.unique(found.addresses(lambda at: at))
    hits = [_hits(pointers, symbols, _relocated(data, found, base)) for base in good]
    return good[hits.index(max(hits))] if hits.count(max(hits)) == 1 else None


def _relocated(data: bytes, found: Found, start: int) -> int:
    """Return the symbol table's base as the kernel fills it in when it relocates itself."""
    words = np.frombuffer(data, "<u8", len(data) // 8)
    at = np.flatnonzero(words[:-2] == np.uint64(start + found.base_at))
    fit = [int(i) for i in at.tolist() if words[i + 1] == _RELATIVE]
    return int(words[fit[0] + 2]) & ADDRESS_MASK if fit else start


def _all(data: bytes, what: bytes) -> Iterable[int]:
    at = data.find(what)
    while at >= 0:
        yield at
        at = data.find(what, at + 1)
