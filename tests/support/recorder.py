# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes small recordings in the form of real ones, from bytes that the caller knows."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from loader.elf import parse


@attrs.define(kw_only=True)
class Made:
    """A module as a kernel would have recorded it.

    Parameters
    ----------
    relocated, final
        Section index -> bytes at the two points; `final` as `relocated` where it has none.
    regions
        Memory type -> address and size.
    """

    name: str
    image: bytes
    addresses: Mapping[int, int]
    symbols: Mapping[str, int]
    relocated: Mapping[int, bytes]
    final: Mapping[int, bytes] = attrs.field(factory=dict)
    regions: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)
    cpu: str = "max"
    append: str = "nokaslr"
    errno: int = 0

    def facts(self, run: str) -> dict[str, Any]:
        """Return the JSON document."""
        sections, offset = [], 0
        for index in sorted(self.addresses):
            section, before = parse(self.image).sections[index], self.relocated[index]
            after = self.final.get(index, before)
            sections.append(
                {
                    "idx": index,
                    "name": section.name,
                    "addr": hex(self.addresses[index]),
                    "size": len(before),
                    "flags": section.flags,
                    "type": section.type,
                    "align": section.align,
                    "off": offset,
                    "sha256_reloc": hashlib.sha256(before).hexdigest(),
                    "sha256_init": hashlib.sha256(after).hexdigest(),
                }
            )
            offset += len(before)
        return {
            "name": self.name,
            "run": run,
            "cpu": self.cpu,
            "append": self.append,
            "smp": 1,
            "file": f"ko/{self.name}.ko",
            "ko_sha256": hashlib.sha256(self.image).hexdigest(),
            "init_errno": self.errno,
            "section_info": sections,
            "layout": {
                f"MOD_{kind}": {"base": hex(base), "size": size}
                for kind, (base, size) in self.regions.items()
            },
            "percpu": None,
            "symbols": {name: hex(value) for name, value in self.symbols.items()},
        }

    def raw(self) -> tuple[bytes, bytes]:
        """Return all relocated bytes, and what to combine with them for the final ones."""
        order = sorted(self.addresses)
        before = b"".join(self.relocated[index] for index in order)
        after = b"".join(self.final.get(index, self.relocated[index]) for index in order)
        return before, bytes(a ^ b for a, b in zip(before, after, strict=True))


def record(
    folder: Path,
    modules: list[Made],
    *,
    run: str = "base",
    boot: Mapping[str, str] | None = None,
    raw: bool = True,
    files: bool = True,
) -> Path:
    """Write the recording of one boot and return the architecture's folder.

    Parameters
    ----------
    folder
        Named after the architecture.
    boot
        Files of the boot: name -> text.
    raw, files
        Whether to keep the bytes, and the modules' files.
    """
    for name in ("base", "runs", "ko", f"boot/{run}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for made in modules:
        if files:
            (folder / "ko" / f"{made.name}.ko").write_bytes(made.image)
        place = folder / "base" if run == "base" else folder / "runs" / run
        place.mkdir(exist_ok=True)
        if run == "base":
            (place / f"{made.name}.json").write_text(json.dumps(made.facts(run)), "ascii")
        if raw:
            before, change = made.raw()
            (place / f"{made.name}.reloc.bin.xz").write_bytes(lzma.compress(before))
            (place / f"{made.name}.init.xor.xz").write_bytes(lzma.compress(change))
    if run != "base":
        document = json.dumps({made.name: made.facts(run) for made in modules})
        (folder / "runs" / f"{run}.json.xz").write_bytes(lzma.compress(document.encode()))
    for name, text in (boot or {}).items():
        data = text.encode()
        packed = lzma.compress(data) if name.endswith(".xz") else data
        (folder / "boot" / run / name).write_bytes(packed)
    return folder
