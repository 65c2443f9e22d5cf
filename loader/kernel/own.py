# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's own kernel: the one that its version magic names, where that is at hand.

Kernels lie where packages and distributions put them: in `boot` or `lib/modules/RELEASE` of the
tree that the module is in, in a package beside that tree, or on this machine. A file of the right
name is not enough: its version magic must be the module's, as for the kernel's own loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import attrs

from allocator.errors import ExecmemError
from loader.errors import BadKernel
from loader.files import is_file
from loader.kernel.find import IMAGE, find_kernel, release_of

AUTO = "auto"
_MOST = 10_000  # names of a folder that are looked at
_HERE = ("boot", "lib/modules/{}", "usr/lib/modules/{}", "usr/lib/debug/boot")
_PACKAGES = (("linux-image-", ".deb"), ("kernel-", ".rpm"))
_HELD = 64  # files whose version magic is not read again


@attrs.frozen
class Own:
    """What a search came to.

    Parameters
    ----------
    path
        The kernel's image or package; None: there is none.
    looked
        Where there was one to be expected, and why what was there is not it.
    """

    path: Path | None
    looked: tuple[str, ...]


def own_kernel(magic: str, folders: Iterable[Path] = (), *, here: Path = Path("/")) -> Own:
    """Look for the kernel that a module was built for.

    Parameters
    ----------
    magic
        The module's version magic: its release is the first word.
    folders
        Roots of trees, and folders that packages may lie in or beside.
    here
        The root of this machine.
    """
    magic = magic.strip()
    release = magic.partition(" ")[0]
    looked: list[str] = []
    if not release or "/" in release:
        return Own(None, ("the module does not say which kernel it was built for",))
    for folder in dict.fromkeys((*folders, here)):
        for path in _candidates(folder, release, packages=folder != here):
            wrong = _wrong(path, magic)
            if not wrong:
                return Own(path, tuple(looked))
            looked.append(f"{path} ({wrong})")
        looked += [
            str(folder / place.format(release)) for place in _HERE[: 4 if folder == here else 3]
        ]
        if folder != here:
            looked.append(f"{folder}/*.deb")
    return Own(None, tuple(looked))


def _candidates(folder: Path, release: str, *, packages: bool) -> Iterator[Path]:
    for place in _HERE:
        inside = place.format(release)
        for path in _listed(folder / inside):
            # In the folder of one version the name need not repeat it.
            named = release_of(path.name) == release or place != inside
            if named and IMAGE.fullmatch(path.name):
                yield path
    if not packages:
        return
    for outer in (folder, folder.parent):
        for path in _listed(outer):
            for start, end in _PACKAGES:
                name = path.name
                fits = name.startswith(start) and name.endswith(end) and release in name
                if fits and "dbg" not in name and "debug" not in name:
                    yield path


def _listed(folder: Path) -> list[Path]:
    try:
        found = [path for path, _ in zip(folder.iterdir(), range(_MOST), strict=False)]
    except OSError:
        return []
    return sorted(path for path in found if is_file(path))


def _wrong(path: Path, magic: str) -> str:
    """Return why a file is not the kernel of a version magic; empty: it is."""
    try:
        changed = path.stat().st_mtime_ns
        release, found = _magic(str(path), changed)
    except (OSError, ExecmemError) as error:
        return error.reason if isinstance(error, BadKernel) else str(error)
    if (found or release) == (magic if found else magic.partition(" ")[0]):
        return ""
    return f"its version magic is {found!r}" if found else f"it is Linux {release or 'unknown'}"


@lru_cache(maxsize=_HELD)
def _magic(path: str, _changed: int) -> tuple[str, str]:
    image = find_kernel(path).read()
    return image.release, image.vermagic.strip()


def folders_of(path: Path) -> list[Path]:
    """Return the roots of the tree that a file or folder is in, and its own folder."""
    place = path.resolve()
    found = [place if place.is_dir() else place.parent]
    for folder in place.parents:
        if folder.name == "modules" and folder.parent.name == "lib":
            root = folder.parent.parent
            found.append(root.parent if root.name == "usr" else root)
            break
    return found
