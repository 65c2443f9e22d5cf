# SPDX-License-Identifier: GPL-2.0-or-later
"""What real kernels made of real modules: the recordings and the files they were made from.

A recording says, for each module of one boot, where every section was placed, the value of
every undefined symbol, and the SHA-256 of every section when the kernel had relocated the
module and done nothing else to it.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from loader.files import read_module

# struct module is running state; the others are not allocated with the module.
NOT_COMPARED = {
    ".gnu.linkonce.this_module",
    ".symtab",
    ".strtab",
    ".modinfo",
    "__versions",
    ".data..percpu",
}


@attrs.frozen
class Recording:
    """One module of one boot."""

    run: str
    image: bytes
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The module, and the boot."""
        return f"{self.run}/{self.facts['name']}"

    @property
    def sections(self) -> list[Mapping[str, Any]]:
        """Every section that has an address."""
        return list(self.facts["section_info"])

    @property
    def addresses(self) -> dict[int, int]:
        """Section index -> address, of sections that are allocated with the module."""
        return {
            s["idx"]: int(s["addr"], 16)
            for s in self.sections
            if s["name"] not in NOT_COMPARED - {".gnu.linkonce.this_module"}
        }

    @property
    def symbols(self) -> dict[str, int]:
        """Undefined name -> value."""
        return {name: int(value, 16) for name, value in self.facts["symbols"].items()}

    @property
    def errata(self) -> tuple[str, ...]:
        """Errata of the CPU that the kernel works around."""
        return ("843419",) if self.facts["cpu"] == "cortex-a53" else ()

    @property
    def percpu(self) -> int | None:
        """Address of the per-cpu section."""
        base = self.facts["percpu"]
        return None if base is None else int(base, 16)


def of_base(oracle: Path, corpus: Path) -> Iterator[Recording]:
    """Yield every module of the boot without special options whose file is there."""
    for path in sorted((oracle / "base").glob("*.json")):
        yield from _recorded("base", json.loads(path.read_text("ascii")), oracle, corpus)


def of_runs(oracle: Path, corpus: Path) -> Iterator[Recording]:
    """Yield every module of the boots with other CPUs, mitigations or KASLR."""
    for path in sorted((oracle / "runs").glob("*.json.xz")):
        run = path.name.split(".")[0]
        for facts in json.loads(lzma.decompress(path.read_bytes())).values():
            yield from _recorded(run, facts, oracle, corpus)


def _recorded(
    run: str, facts: Mapping[str, Any], oracle: Path, corpus: Path
) -> Iterator[Recording]:
    path = oracle / facts["file"]
    for file in [path] if path.is_file() else corpus.glob(f"lib/modules/*/kernel/**/{path.name}"):
        image = _read(file)
        assert hashlib.sha256(image).hexdigest() == facts["ko_sha256"], file
        yield Recording(run, image, facts)


@cache
def _read(path: Path) -> bytes:
    return read_module(path)
