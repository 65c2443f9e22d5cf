# SPDX-License-Identifier: GPL-2.0-or-later
"""Sample modules built with debugging information, and linked by GNU ld at given addresses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from archs import Arch
from loader.elf import parse
from samples.modules.build import SOURCE, TOOLCHAINS, commands
from tests.support.tools import run

PLAIN = ("-g", "-gdwarf-5")


def built(arch: Arch, name: str, folder: Path, *flags: str) -> Path:
    """Return a sample module that was built in a folder with flags, not stripped; or skip."""
    chain = TOOLCHAINS.get(arch.name)
    if chain is None or shutil.which(f"{chain.prefix}gcc") is None:
        pytest.skip(f"no gcc for {arch.name}")
    work = folder / "src"
    shutil.copytree(SOURCE, work)
    for step in commands(arch.name, name):
        if step[0].endswith("strip"):
            continue
        words = [word.replace("--build-id=none", "--build-id=sha1") for word in step]
        if words[0].endswith("gcc"):
            words[1:1] = flags or PLAIN
        subprocess.run(words, cwd=work, check=True)
    return work / f"{name}.ko"


def linked(arch: Arch, module: Path) -> tuple[Path, dict[int, int]]:
    """Return a program that GNU ld links of a module, and where its sections lie, by index."""
    chain = TOOLCHAINS[arch.name]
    view = parse(module.read_bytes(), arch=arch)
    rows, addresses, at = [], {}, 0x4000_0000
    for section in view.sections[1:]:
        if section.allocated:
            at = at + 0x1000 & ~0xFFF
            rows.append(f'"{section.name}" {at:#x} : {{ *("{section.name}") }}')
            addresses[section.index] = at
            at += section.size
    rows += [f"PROVIDE({name} = {at + 0x10_0000:#x});" for name in view.undefined]
    script, out = module.with_suffix(".lds"), module.with_suffix(".linked")
    script.write_text("SECTIONS {\n" + "\n".join(rows) + "\n}\n")
    words = ["-e", "0", "--no-relax", "-T", script, "-o", out]
    run(f"{chain.prefix}ld", *words, module)
    return out, addresses
