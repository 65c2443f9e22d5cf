# SPDX-License-Identifier: GPL-2.0-or-later
"""Types out of a kernel's debugging information, where it has no BTF: pahole makes BTF of it.

That takes seconds, so what it made is kept under XDG_CACHE_HOME.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

from loader.errors import BadKernel

KEPT = 16  # kernels whose types are kept
SECONDS = 600  # that pahole may take
PAHOLE = "pahole"
PACKAGE = "pahole (Debian: pahole; Fedora: dwarves)"
_SECTION = b"\0.debug_info\0"
_ELF = b"\x7fELF"


@attrs.frozen(eq=False)
class Debug:
    """Debugging information that types can be made of.

    Parameters
    ----------
    read
        Returns the bytes of the ELF file that has it.
    """

    read: Callable[[], bytes] = attrs.field(repr=False)

    @property
    def tool(self) -> str | None:
        """Where pahole is; None where it is not installed."""
        return shutil.which(PAHOLE)

    def types(self, name: str) -> bytes | None:
        """Return BTF; None where there is nothing to make it with.

        Raises
        ------
        BadKernel
            pahole failed, with what it said.
        """
        tool = self.tool
        if tool is None:
            return None
        data = self.read()
        kept = folder() / f"{hashlib.sha256(data).hexdigest()[:40]}.btf"
        with suppress(OSError):
            found = kept.read_bytes()
            with suppress(OSError):  # who may read it only
                kept.touch()
            return found
        try:
            found = _made(tool, data, name)
        except OSError as error:
            raise BadKernel(name, "debugging information", f"{PAHOLE}: {error}") from None
        _keep(kept, found)
        return found


def has(elf: bytes) -> bool:
    """Return whether an ELF file has debugging information, by the names of its sections."""
    if elf[:4] != _ELF or len(elf) < 64:
        return False
    start = int.from_bytes(elf[40:48], "little")
    number = int.from_bytes(elf[62:64], "little")
    header = elf[start + 64 * number : start + 64 * number + 64]
    at, size = (int.from_bytes(header[i : i + 8], "little") for i in (24, 32))
    return len(header) == 64 and _SECTION in elf[at : at + size]


def folder() -> Path:
    """Return where types are kept: `execmem/types` under XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "execmem" / "types"


def _made(tool: str, data: bytes, name: str) -> bytes:
    """Let pahole make BTF of an ELF file's bytes."""
    with tempfile.TemporaryDirectory(prefix="execmem-") as busy:
        source, result = Path(busy, "vmlinux"), Path(busy, "btf")
        source.write_bytes(data)
        command = [tool, "-J", f"--btf_encode_detached={result}", str(source)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise BadKernel(name, "debugging information", f"{PAHOLE}: {error}") from None
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        if done.returncode or not result.is_file():
            last = said[-1] if said else f"ended with {done.returncode}"
            raise BadKernel(name, "debugging information", f"{PAHOLE}: {last}")
        return result.read_bytes()


def _keep(place: Path, data: bytes) -> None:
    """Keep what was made, and not more than a few; where that fails it is made again."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", delete=False) as file:
            file.write(data)
        Path(file.name).replace(place)
        kept = sorted(place.parent.glob("*.btf"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT]:
            old.unlink(missing_ok=True)
