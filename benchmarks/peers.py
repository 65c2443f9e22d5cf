# SPDX-License-Identifier: GPL-2.0-or-later
"""Other linkers, made to do what ours does: one module, given addresses, given symbols.

Each peer is a function from a job to a command line, or None where it is not installed.
They are not asked for more than the job: no output symbols, no merging of strings, no
relaxation, one thread. What they do beyond it (reading and writing files, checking
arguments) is theirs, and most of it is subtracted with the run on an empty object.

llvm-jitlink does less than the others: it leaves out what no global symbol leads to.
cle chooses section addresses itself, and skips relocation types that it does not know.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
import numpy as np

from archs.dialect import NATIVE, SHT_RELA
from loader.elfview import SHT_SYMTAB, ElfView

SHT_STRTAB = 3
KEPT_FLAGS = ~np.uint64(0x30)  # all but SHF_MERGE and SHF_STRINGS
_TABLES = (0, SHT_SYMTAB, SHT_STRTAB, SHT_RELA)  # the linker reads or makes them itself
NEWEST_LLVM, OLDEST_LLVM = 40, 14

# e_machine -> GNU triple and the machine name of a host whose unprefixed ld serves it
TRIPLES = {
    62: ("x86_64-linux-gnu", "x86_64"),
    183: ("aarch64-linux-gnu", "aarch64"),
    243: ("riscv64-linux-gnu", "riscv64"),
}


@attrs.frozen
class Job:
    """One link that a peer is asked to do.

    Parameters
    ----------
    file
        The object.
    machine
        e_machine.
    start, size
        The window that holds every address, in bytes.
    script
        A linker script with the addresses of sections and undefined symbols.
    symbols
        A response file with the undefined symbols, for llvm-jitlink.
    entry
        A global function of the object.
    out
        Where an output file may be written.
    """

    file: Path
    machine: int
    start: int
    size: int
    script: Path
    symbols: Path
    entry: str
    out: Path


def prepare(
    view: ElfView,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    stem: Path,
) -> Job:
    """Write the files of a job, all named after `stem`, and return it.

    Parameters
    ----------
    view
        The object.
    addresses
        Section index -> address.
    symbols
        Undefined name -> address.
    """
    image = bytearray(view.data)
    offset = int.from_bytes(image[40:48], "little")
    # ld and lld would share equal strings between sections, which a module loader does not.
    words = np.frombuffer(image, np.uint64, len(view.sections) * NATIVE.section.size // 8, offset)
    words[1 :: NATIVE.section.size // 8] &= KEPT_FLAGS  # sh_flags
    file, script, response = (stem.with_suffix(s) for s in (".o", ".lds", ".rsp"))
    file.write_bytes(image)
    first = dict[str, int]()  # sections of one name become one output section
    for index in sorted(addresses, key=lambda i: (addresses[i], view.sections[i].size)):
        first.setdefault(view.sections[index].name, addresses[index])
    lines = [f'"{name}" = {value:#x};' for name, value in symbols.items()]
    lines += ["SECTIONS {"]
    lines += [f'  "{name}" {at:#x} : {{ KEEP(*("{name}")) }}' for name, at in first.items()]
    loose = {s.name for s in view.sections if s.index not in addresses and s.type not in _TABLES}
    lines += [f'  /DISCARD/ : {{ *("{name}") }}' for name in sorted(loose - first.keys())] + ["}"]
    script.write_text("\n".join(lines) + "\n", "utf-8")
    response.write_text("".join(f"--abs={n}={v:#x}\n" for n, v in symbols.items()), "utf-8")
    ends = [at + view.sections[index].size for index, at in addresses.items()]
    start = min(addresses.values())
    functions = (n for n, i in view.global_symbols.items() if view.symbols["info"][i] & 0xF == 2)
    objects = iter(view.global_symbols)
    entry = next(functions, None) or next(objects)
    size = max(ends) - start
    machine = view.arch.machine
    return Job(file, machine, start, size, script, response, entry, stem.with_suffix(".out"))


def _llvm(name: str) -> str | None:
    """Return the path of an LLVM program, the newest where distributions number them."""
    numbered = [f"{name}-{version}" for version in range(NEWEST_LLVM, OLDEST_LLVM - 1, -1)]
    return next(filter(None, map(shutil.which, (*numbered, name))), None)


def _gnu_ld(machine: int) -> str | None:
    triple, host = TRIPLES[machine]
    native = shutil.which("ld") if platform.machine() == host else None
    return native or shutil.which(f"{triple}-ld")


_LD_OPTIONS = "-static -s -e 0 --no-relax --no-gc-sections --build-id=none".split()


def ld(job: Job) -> list[str] | None:
    """Return the command line of GNU ld."""
    program = _gnu_ld(job.machine)
    if program is None:
        return None
    files = ["-T", str(job.script), str(job.file), "-o", str(job.out)]
    return [program, *_LD_OPTIONS, "--nmagic", *files]


def lld(job: Job) -> list[str] | None:
    """Return the command line of LLVM's lld."""
    program = _llvm("ld.lld")
    if program is None:
        return None
    files = ["-T", str(job.script), str(job.file), "-o", str(job.out)]
    return [program, *_LD_OPTIONS, "--nmagic", "-O0", "--threads=1", *files]


def jitlink(job: Job) -> list[str] | None:
    """Return the command line of LLVM's llvm-jitlink."""
    program = _llvm("llvm-jitlink")
    if program is None:
        return None
    slab = 2 * job.size // 1024 + 1024  # its pages, stubs and GOT come on top
    place = [f"--slab-address={job.start:#x}", f"--slab-allocate={slab}Kb"]
    options = ["--noexec", "--no-process-syms", "--slab-page-size=4096", f"--entry={job.entry}"]
    return [program, *options, *place, f"@{job.symbols}", str(job.file)]


_CLE = """
import logging, sys
import cle
logging.disable(logging.CRITICAL)
cle.Loader(sys.argv[1], auto_load_libs=False, main_opts={"base_addr": 0x400000})
"""


def cle(job: Job) -> list[str] | None:
    """Return the command line of cle under the Python that EXECMEM_CLE_PYTHON names."""
    python = os.environ.get("EXECMEM_CLE_PYTHON")
    return [python, "-c", _CLE, str(job.file)] if python else None


PEERS: Mapping[str, Callable[[Job], list[str] | None]] = {
    "jitlink": jitlink,
    "ld": ld,
    "lld": lld,
    "cle": cle,
}
CPP_PEERS = ("jitlink", "ld", "lld")


def version(command: list[str]) -> str:
    """Return the line in which a peer says its version."""
    ask = ["--version"]
    if "-c" in command:
        ask = ["-c", "import cle; print('cle', cle.__version__)"]
    done = subprocess.run([command[0], *ask], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines()]
    return next((line for line in lines if re.search(r"\d\.\d", line)), "unknown version")


class Launcher:
    """Starts peers from a small process; see spawn.py."""

    def __init__(self, log: Path) -> None:
        script = str(Path(__file__).with_name("spawn.py"))
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: list[str]) -> tuple[float, int]:
        """Run a command that must succeed; return CPU seconds and peak bytes.

        Raises
        ------
        RuntimeError
            With the last line that the program printed.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the launcher has no pipes")
        stdin.write(json.dumps([str(self._log), command]) + "\n")
        stdin.flush()
        status, seconds, peak = json.loads(stdout.readline())
        if status:
            lines = self._log.read_text("utf-8", "replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "nothing printed")
            raise RuntimeError(f"{Path(command[0]).name}: status {status}: {last}")
        return seconds, peak

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()
