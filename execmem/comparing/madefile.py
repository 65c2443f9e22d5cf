# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files of given sizes for a given kernel: what a workload's numbers become for its loader.

They hold zeros and traps, import nothing and have no init, so that what the kernel does for them is what
it does for memory: no site of theirs is patched, and nothing of theirs runs. `python -m execmem.comparing.madefile
KERNEL WORKLOAD FOLDER` writes them, for a machine that runs the kernel, and prints what to do there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import click

from allocator.errors import ExecmemError
from allocator.files import write_file
from allocator.types import MemType
from allocator.workloads import Load, Module, Unload, Workload
from archs import Arch
from execmem.check.elfwriter import NOBITS, PROGBITS, A, Sec, Sym, W, X, write
from kernels.booted.kernel import BootedKernel
from loader.btf import Btf
from loader.kernel.image import KernelImage

_SECTIONS = {
    MemType.TEXT: (".text", A | X),
    MemType.RODATA: (".rodata", A),
    MemType.RO_AFTER_INIT: (".data..ro_after_init", A | W),
    MemType.DATA: (".data", A | W),
    MemType.INIT_TEXT: (".init.text", A | X),
    MemType.INIT_RODATA: (".init.rodata", A),
    MemType.INIT_DATA: (".init.data", A | W),
}
_LONGEST = 55  # bytes of a module's name (MODULE_NAME_LEN) without its NUL
_VERSION_NAME = 56
_OF_MODULES = "CONFIG_MODULE_SECTIONS"  # PLT and GOT, where an architecture leaves the choice
_THIS = ".gnu.linkonce.this_module"


@attrs.frozen
class CannotMake(ExecmemError):
    """Modules of given sizes that cannot be made for a kernel: which, and what it would take."""

    release: str
    reason: str

    def __str__(self) -> str:
        return f"{self.release}: no module files can be made for it: {self.reason}"


@attrs.frozen
class Maker:
    """Makes module files for a kernel.

    Parameters
    ----------
    release
        As `uname -r` prints it.
    machine
        `e_machine` of its modules.
    magic
        Its version magic.
    layout
        The checksum of `module_layout`; None: it checks none.
    size, name
        Bytes of struct module, and where in it the name is.
    trap
        What text is filled with.
    looked_for
        Sections that the kernel's loader refuses a module without, and their flags.
    """

    release: str
    machine: int
    magic: str
    layout: int | None
    size: int
    name: int
    trap: bytes
    looked_for: Mapping[str, int]

    @classmethod
    def of(cls, kernel: BootedKernel, image: KernelImage) -> Maker:
        """Return what makes files for a booted kernel; CannotMake where something is not known."""
        types: Btf | None = kernel.standing.types
        found = None if types is None else types.find("module")
        place = None if types is None or found is None else types.place(found.number, "name")
        if types is None or found is None or place is None:
            reason = "how large its struct module is takes its types (CONFIG_DEBUG_INFO_BTF)"
            raise CannotMake(kernel.release, reason)
        if not image.vermagic:
            raise CannotMake(kernel.release, "its image holds no version magic")
        export = image.exports.get("module_layout")
        return cls(
            release=kernel.release,
            machine=kernel.arch.machine,
            magic=image.vermagic,
            layout=None if export is None else export.crc,
            size=types.size_of(found.number),
            name=place.bytes,
            trap=kernel.arch.loads.trap,
            looked_for=_looked_for(kernel.arch, image),
        )

    def file(self, module: Module) -> bytes:
        """Return a module of these sizes; each region begins with what loaders look for."""
        name = module.name.replace("-", "_")[:_LONGEST]
        sizes = {region.type: region for region in module.regions}
        sections = []
        for kind, (title, flags) in _SECTIONS.items():
            region = sizes.get(kind)
            if region is None:
                continue
            size = region.size - (self.size if kind is MemType.DATA else 0)
            if size <= 0:
                continue
            if kind.is_text:
                sections.append(Sec(title, self._text(size), flags, PROGBITS, region.align))
            elif kind is MemType.DATA:
                sections.append(Sec(title, b"", flags, NOBITS, region.align, size))
            else:
                sections.append(Sec(title, bytes(size), flags, PROGBITS, region.align))
        sections += [Sec(title, b"\0", flags) for title, flags in self.looked_for.items()]
        this = bytearray(self.size)
        this[self.name : self.name + len(name)] = name.encode()
        sections.append(Sec(_THIS, bytes(this), A | W, align=64))
        tags = {"license": "GPL", "name": name, "vermagic": self.magic, "retpoline": "Y"}
        text = b"".join(f"{key}={value}\0".encode() for key, value in tags.items())
        sections.append(Sec(".modinfo", text, A))
        if self.layout is not None:
            row = self.layout.to_bytes(8, "little") + b"module_layout".ljust(_VERSION_NAME, b"\0")
            sections.append(Sec("__versions", row, A, align=32))
        return write(self.machine, sections, [Sym("made", ".modinfo")])

    def _text(self, size: int) -> bytes:
        return (self.trap * (size // len(self.trap) + 1))[:size]


def _looked_for(arch: Arch, image: KernelImage) -> dict[str, int]:
    plt = arch.plt
    if plt is None or not (plt.required or (image.config or {}).get(_OF_MODULES) == "y"):
        return {}
    text = [plt.section, *([plt.init_section] if plt.required else []), *plt.placeholders]
    slots = [] if plt.got_section is None else [plt.got_section, arch.loads.got_section]
    return dict.fromkeys(text, A | X) | dict.fromkeys(filter(None, slots), A | W)


def written(maker: Maker, workload: Workload, folder: Path) -> Iterator[str]:
    """Write the modules of a workload into a folder; yield its operations as commands of a shell."""
    for operation in workload.operations:
        if isinstance(operation, Load):
            file = folder / f"{operation.module.name}.ko"
            write_file(file, maker.file(operation.module))
            yield f"insmod {file}"
        elif isinstance(operation, Unload):
            yield f"rmmod {operation.module}"


@click.command()
@click.argument("kernel")
@click.argument("workload")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(kernel: str, workload: str, folder: Path) -> None:
    """Write the modules of WORKLOAD, made for KERNEL, into FOLDER; print what to do with them."""
    from execmem.booted import open_machine
    from execmem.comparing.compare import workloads
    from execmem.streams import say

    try:
        machine = open_machine("", {"kernel": kernel, "cpu": ""})
        ((_, chosen),) = workloads(workload, (machine.arch,))
        folder.mkdir(parents=True, exist_ok=True)
        for line in written(Maker.of(machine.kernel, machine.image), chosen, folder):
            say(line)
    except (ExecmemError, OSError) as error:
        say(f"execmem: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
