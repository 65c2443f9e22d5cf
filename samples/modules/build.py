# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the sample modules for every architecture, as the kernel's build would.

`python -m samples.modules.build [--output FOLDER]` compiles `src` with gcc and its cross compilers, links each
module with `ld -r` and writes `<arch>/lib/modules/VERSION` and `manifest.json`. Nothing of
the place or time of the build gets into a file: no build id, no paths, sorted everywhere; so
the same compilers give the same bytes, and the manifest says which compilers those were.

The flags are the kernel's where they shape the code: no floating point, no red zone, the
kernel code model, and on riscv64 no linker relaxation (its relocations are meant for a
linker that can move code). No unwind tables, which a module of this size would mostly
consist of.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import click

from samples.modules import RELEASE

SOURCE = Path(__file__).parent / "src"

COMMON = (
    "-std=gnu11 -O2 -Wall -Wextra -ffreestanding -fno-builtin -nostdinc -fno-common "
    "-fno-strict-aliasing -fno-pie -fno-ident -fno-asynchronous-unwind-tables "
    "-fno-unwind-tables -frandom-seed=samples"
).split()

# Modules in the order of modules.dep, each with the modules it depends on.
MODULES: Mapping[str, tuple[str, ...]] = {
    "branches": (),
    "checksums": (),
    "failing": (),
    "formats": (),
    "hello": (),
    "logbook": (),
    "mathlib": (),
    "mathuser": ("mathlib",),
    "notes": (),
    "parser": (),
    "parserclean": (),
    "patchable": (),
    "sealed": (),
    "sorting": (),
    "tables": (),
    "workers": (),
}


@attrs.frozen
class Toolchain:
    """A compiler and the flags with which it compiles for one kernel.

    Parameters
    ----------
    prefix
        What stands in front of `gcc`, `ld` and `strip`.
    flags
        Flags for every module.
    guard
        Flags that make the stack protector read its canary where the kernel keeps it:
        at a fixed place of the per-cpu area (x86-64) or of the current task, which
        SP_EL0 (arm64) or tp (riscv64) points to, or in a variable (mips64el).
    traced
        Flags that leave a call site for the tracer at every function's entry.
    """

    prefix: str
    flags: tuple[str, ...]
    guard: tuple[str, ...]
    traced: tuple[str, ...]


TOOLCHAINS: Mapping[str, Toolchain] = {
    "arm64": Toolchain(
        prefix="aarch64-linux-gnu-",
        flags=("-mgeneral-regs-only", "-mno-outline-atomics", "-mbranch-protection=none"),
        guard=(
            "-mstack-protector-guard=sysreg",
            "-mstack-protector-guard-reg=sp_el0",
            "-mstack-protector-guard-offset=1384",
        ),
        traced=("-fpatchable-function-entry=4,2", "-falign-functions=8"),
    ),
    "mips64el": Toolchain(
        prefix="mips64el-linux-gnuabi64-",
        flags=(
            "-mabi=64",
            "-march=mips64r2",
            "-mno-abicalls",
            "-fno-pic",
            "-msym32",
            "-mlong-calls",
            "-G",
            "0",
            "-msoft-float",
            "-mno-check-zero-division",
        ),
        guard=(),
        traced=("-pg", "-mmcount-ra-address"),
    ),
    "riscv64": Toolchain(
        prefix="riscv64-linux-gnu-",
        flags=(
            "-mcmodel=medany",
            "-mno-relax",
            "-mabi=lp64",
            "-march=rv64imac_zicsr_zifencei",
            "-mstrict-align",
            "-mno-riscv-attribute",
            "-Wa,-mno-arch-attr",
        ),
        guard=(
            "-mstack-protector-guard=tls",
            "-mstack-protector-guard-reg=tp",
            "-mstack-protector-guard-offset=1400",
        ),
        traced=("-fpatchable-function-entry=4",),
    ),
    "x86_64": Toolchain(
        prefix="x86_64-linux-gnu-",
        flags=(
            "-m64",
            "-mcmodel=kernel",
            "-mno-red-zone",
            "-mno-sse",
            "-mno-mmx",
            "-mno-sse2",
            "-mno-80387",
            "-fcf-protection=none",
        ),
        guard=(
            "-mstack-protector-guard=tls",
            "-mstack-protector-guard-reg=gs",
            "-mstack-protector-guard-offset=40",
        ),
        traced=("-pg", "-mfentry", "-mrecord-mcount"),
    ),
}


def tool_versions() -> dict[str, dict[str, str]]:
    """Return the first line of `--version` of each gcc and ld, by architecture.

    Raises
    ------
    FileNotFoundError
        A compiler or linker is not installed.
    """
    return {
        arch: {
            tool: subprocess.run(
                [chain.prefix + tool, "--version"], check=True, capture_output=True, text=True
            ).stdout.splitlines()[0]
            for tool in ("gcc", "ld")
        }
        for arch, chain in TOOLCHAINS.items()
    }


def commands(arch: str, name: str, source: str = "") -> list[list[str]]:
    """Return the commands that build one module, to be run in a copy of `src`.

    Parameters
    ----------
    source
        Its file, where that is not `NAME.c`.
    """
    chain = TOOLCHAINS[arch]
    guard = ("-fstack-protector-strong", *chain.guard)
    flags = [*COMMON, *chain.flags, *(guard if name == "logbook" else ["-fno-stack-protector"])]
    flags += chain.traced if name == "patchable" else ()
    compiler = [chain.prefix + "gcc", *flags]
    identity = [f"-DNAME={name}", f'-DDEPENDS="{",".join(MODULES.get(name, ()))}"']
    objects = [f"{name}.o", f"{name}.mod.o"]
    steps = [
        [*compiler, "-c", source or f"{name}.c", "-o", f"{name}.o"],
        [*compiler, *identity, f'-DRELEASE="{RELEASE}"', "-c", "module.mod.c", "-o", objects[1]],
        [*compiler, "-E", "-P", "-x", "c", "module.lds", "-o", "module.ld"],
    ]
    assembly = f"{name}_{arch}.S"
    if (SOURCE / assembly).exists():
        steps.append([*compiler, "-c", assembly, "-o", f"{name}.asm.o"])
        objects.append(f"{name}.asm.o")
    link = ["-r", "--build-id=none", "-T", "module.ld", "-o", f"{name}.ko", *objects]
    steps.append([chain.prefix + "ld", *link])
    steps.append([chain.prefix + "strip", "--strip-debug", f"{name}.ko"])
    return steps


def build(output: Path, archs: Sequence[str] = tuple(TOOLCHAINS)) -> None:
    """Build every module for `archs` and write tree and manifest below `output`.

    Raises
    ------
    FileNotFoundError
        A compiler or linker is not installed.
    subprocess.CalledProcessError
        A source did not compile; the compiler has said why on stderr.
    """
    manifest: dict[str, object] = {"release": RELEASE, "tools": tool_versions()}
    files: dict[str, dict[str, object]] = {}
    for arch in sorted(archs):
        tree = output / arch / "lib" / "modules" / RELEASE
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "kernel").mkdir(parents=True)
        for name in MODULES:
            steps = commands(arch, name)
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder) / "src"
                shutil.copytree(SOURCE, work)
                for step in steps:
                    subprocess.run(step, cwd=work, check=True)
                built = tree / "kernel" / f"{name}.ko"
                shutil.copyfile(work / f"{name}.ko", built)
            data = built.read_bytes()
            files[built.relative_to(output).as_posix()] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "commands": [shlex.join(step) for step in steps],
            }
        (tree / "modules.dep").write_text(
            "".join(
                f"kernel/{name}.ko:{''.join(f' kernel/{other}.ko' for other in needed)}\n"
                for name, needed in MODULES.items()
            )
        )
    manifest["files"] = files
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Folder for the trees and the manifest; the package itself by default.",
)
def main(output: Path) -> None:
    """Build the sample modules for every architecture."""
    output.mkdir(parents=True, exist_ok=True)
    build(output)


if __name__ == "__main__":
    main()
