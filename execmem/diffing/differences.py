# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between our modules and a real kernel's: by range, module and boot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

import archs
from allocator.types import Hex
from archs.versions import version_of
from emulator.disassembly import Disassembler
from loader.elfview import SHF_EXECINSTR, SHF_WRITE
from loader.recording import RecordedSection, Refusal

KINDS = ("text", "rodata", "data")
SHOWN = 32  # bytes of a range that are printed


def kind_of(section: RecordedSection) -> str:
    """Return which of KINDS a section is, by the flags the kernel gave it."""
    if section.flags & SHF_EXECINSTR:
        return "text"
    return "data" if section.flags & SHF_WRITE else "rodata"


@attrs.frozen
class Range:
    """Bytes in a row that differ.

    Parameters
    ----------
    point
        RELOCATED or FINAL.
    where
        Section and offset, and the symbol that contains it.
    mechanism
        Who decides these bytes, at the first point the type of the relocation there; "" where
        nobody claims them.
    ours, kernels
        The bytes; `kernels` is None where only a hash is known, then the range is the section.
    """

    point: str
    section: str
    offset: int
    address: int
    symbol: str
    kind: str
    mechanism: str
    ours: bytes
    kernels: bytes | None

    def as_json(self, disassembler: Disassembler) -> dict[str, Any]:
        """Return the range for people and scripts, as text where it is code."""
        ours, kernels = self.texts(disassembler)
        return {
            "point": self.point,
            "section": self.section,
            "offset": self.offset,
            "address": Hex(self.address),
            "bytes": len(self.ours),
            "symbol": self.symbol,
            "mechanism": self.mechanism,
            "ours": self.ours[:SHOWN].hex(),
            "kernel": None if self.kernels is None else self.kernels[:SHOWN].hex(),
            "ours_text": ours,
            "kernel_text": kernels,
        }

    def texts(self, disassembler: Disassembler) -> tuple[str, str]:
        """Return both sides as instructions; empty for data and for a hash."""
        if self.kind != "text" or self.kernels is None:
            return "", ""
        both = (self.ours[:SHOWN], self.kernels[:SHOWN])
        lines = [
            "; ".join(t for _, _, t in disassembler.all(code, self.address)) or code.hex(" ")
            for code in both
        ]
        return lines[0], lines[1]


@attrs.frozen
class ModuleDiff:
    """One module of one boot, compared.

    Parameters
    ----------
    skipped
        Why it was not compared; else empty.
    refused
        Whether that is because execmem refused the module.
    sections, size, relocations
        What was compared.
    laid_out
        Sections to which the kernel gave another size or another place in their region.
    relocated
        Differing bytes after relocation.
    changed, differing
        Kind and mechanism -> bytes that finalisation changed, and that differ after it.
    hashed
        Sections that differ and of which only the hash is known.
    ranges
        What differs, where it was asked for.
    """

    folder: Path
    arch: str
    run: str
    name: str
    skipped: str = ""
    refused: bool = False
    sections: int = 0
    size: int = 0
    relocations: int = 0
    laid_out: tuple[str, ...] = ()
    relocated: int = 0
    changed: Mapping[tuple[str, str], int] = attrs.field(factory=dict)
    differing: Mapping[tuple[str, str], int] = attrs.field(factory=dict)
    hashed: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()


@attrs.frozen
class RunDiff:
    """One boot: the sum of its modules; `kernel` is the release that booted, where it is known.

    `refusals` are the modules whose load the kernel ended, where it loaded them here.
    """

    arch: str
    run: str
    kernel: str
    modules: tuple[ModuleDiff, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def title(self) -> str:
        """The boot, for people: version of Linux, architecture, name."""
        version = version_of(self.kernel)
        return " ".join((*([".".join(map(str, version))] if version else ()), self.arch, self.run))

    @property
    def compared(self) -> tuple[ModuleDiff, ...]:
        """The modules whose file was found."""
        return tuple(m for m in self.modules if not m.skipped)

    def total(self, field: str) -> int:
        """Return the sum of a number."""
        return sum(getattr(m, field) for m in self.compared)

    def counts(self, field: str) -> Counter[tuple[str, str]]:
        """Return the sum of `changed` or `differing`."""
        found: Counter[tuple[str, str]] = Counter()
        for module in self.compared:
            found.update(getattr(module, field))
        return found

    def differing(self, kind: str) -> int:
        """Return the bytes of a kind that differ after finalisation."""
        return sum(n for (k, _), n in self.counts("differing").items() if k == kind)

    @property
    def unexplained(self) -> int:
        """Bytes that differ after finalisation and that no mechanism claims."""
        return sum(n for (_, m), n in self.counts("differing").items() if not m)

    @property
    def equal(self) -> bool:
        """Whether relocation, text and read-only data are the kernel's, and all sizes."""
        laid_out = any(m.laid_out or m.refused for m in self.modules)
        code = self.differing("text") + self.differing("rodata")
        return not (laid_out or self.total("relocated") or code)

    def as_json(self, *, ranges: bool) -> dict[str, Any]:
        """Return the boot for scripts; with every differing range where `ranges`."""
        names = sorted({m for f in ("changed", "differing") for _, m in self.counts(f)})
        changed, differing = self.counts("changed"), self.counts("differing")
        found: dict[str, Any] = {
            "kernel": self.kernel,
            "arch": self.arch,
            "run": self.run,
            "modules": len(self.compared),
            "sections": self.total("sections"),
            "bytes": self.total("size"),
            "relocations": self.total("relocations"),
            "sections_laid_out_differently": sum(len(m.laid_out) for m in self.compared),
            "reloc_bytes_differing": self.total("relocated"),
            "text_bytes_differing": self.differing("text"),
            "rodata_bytes_differing": self.differing("rodata"),
            "data_bytes_differing": self.differing("data"),
            "unexplained": self.unexplained,
            "mechanisms": {
                name or "unexplained": {
                    kind: {"changed": changed[kind, name], "differing": differing[kind, name]}
                    for kind in KINDS
                    if changed[kind, name] or differing[kind, name]
                }
                for name in names
            },
            "sections_known_by_hash_only": sum(len(m.hashed) for m in self.compared),
            "skipped": [{"module": m.name, "reason": m.skipped} for m in self.modules if m.skipped],
            "refused": [attrs.asdict(refusal) for refusal in self.refusals],
        }
        if ranges:
            engines: dict[str, Disassembler] = {}
            found["differences"] = [
                {"module": m.name} | r.as_json(_disassembler(engines, m.arch))
                for m in self.compared
                for r in m.ranges
            ]
        return found


def _disassembler(engines: dict[str, Disassembler], name: str) -> Disassembler:
    return engines.setdefault(name, Disassembler(archs.arch(name)))
