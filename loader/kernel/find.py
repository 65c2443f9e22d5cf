# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel's image and configuration lie: in a file, a package, a tree, this machine.

* a file: an image, in any wrapper; `config-RELEASE` or `config` beside it is its configuration
* a package (`.deb`, `.rpm`, a tarball): the same places in it as in a tree
* a folder: a tree (`boot/`, `lib/modules/VERSION/`), its `boot` folder, or that of one version;
  or where a kernel was built (`vmlinux`, `.config`)
* `running`: the kernel that runs on this machine
"""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

import attrs

from allocator.files import open_regular, read_regular, reason_of
from loader.archives import MAX_MEMBER, files_in, is_archive
from loader.errors import BadKernel
from loader.kernel.config import MAX_CONFIG, parse_config
from loader.kernel.image import KernelImage
from loader.kernel.unpack import MAX_IMAGE

RUNNING = "running"
_DEEP = 4  # folders above an image in arch/*/boot
KEPT = 2  # kernels that are not read again
_SUFFIX = r"(\.(gz|xz|zst|lz4|lzo|bz2|lzma|efi|signed|unsigned))*"
IMAGE = re.compile(r"(vmlinu[xz]|b?zImage|Image)(-.+?)?" + _SUFFIX)
_CONFIG = re.compile(r"config(-[^/]*)?|\.config")
_VERSION = re.compile(r"(?:.*/)?lib/modules/([^/]+)/(?:build/)?[^/]+")


@attrs.frozen
class KernelFiles:
    """A kernel's files, as they were found.

    Parameters
    ----------
    image
        The image's bytes, and where they are from.
    config
        The text of its configuration and where that is from; None: no file of it was found.
    vmlinux
        The ELF file that the image was made of, where it lies in a folder where a kernel was
        built; None: not there.
    """

    image: tuple[str, bytes] = attrs.field(repr=False)
    config: tuple[str, str] | None = attrs.field(default=None, repr=False)
    vmlinux: Path | None = None

    @property
    def sources(self) -> Mapping[str, str]:
        """What was found -> where."""
        found = {"image": self.image[0]}
        return found if self.config is None else {**found, "config": self.config[0]}

    def read(self) -> KernelImage:
        """Return the kernel; BadKernel."""
        config = None if self.config is None else parse_config(self.config[1])
        name = self.image[0].rpartition("/")[2] or self.image[0]
        elf = None if self.vmlinux is None else self._elf
        return KernelImage.parse(self.image[1], name, config=config, vmlinux=elf)

    def _elf(self) -> bytes:
        """Return the bytes of the ELF file that the image was made of."""
        assert self.vmlinux is not None
        try:
            with open_regular(self.vmlinux) as file:
                return file.read(MAX_IMAGE)
        except OSError as error:
            raise BadKernel(str(self.vmlinux), "file", reason_of(error)) from None


def find_kernel(path: str | Path) -> KernelFiles:
    """Return the files of the kernel at a path.

    Parameters
    ----------
    path
        An image, a package, a folder, or `running`.

    Raises
    ------
    BadKernel, BadModule
        There is none, or there are several to choose from.
    """
    if str(path) == RUNNING:
        return _running()
    place = Path(path)
    try:
        if place.is_dir():
            return _in_folder(place)
        if is_archive(place):
            return _in_archive(place)
        return _at(place, _configs_beside(place))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadKernel(str(path), "file", reason_of(error)) from None


def read_kernel(path: str | Path) -> KernelImage:
    """Return the kernel at a path; of those that were read last, what was read then.

    Raises
    ------
    BadKernel, BadModule
        As `find_kernel`, and for a damaged image.
    """
    try:
        changed = Path(path).stat().st_mtime_ns
    except (OSError, ValueError):  # `running`, or what is refused below
        changed = 0
    return _read(str(path), changed)


@lru_cache(maxsize=KEPT)
def _read(path: str, _changed: int) -> KernelImage:
    return find_kernel(path).read()


def _running() -> KernelFiles:
    release = os.uname().release
    places = (
        Path("/boot") / f"vmlinuz-{release}",
        Path("/lib/modules") / release / "vmlinuz",
        Path("/usr/lib/modules") / release / "vmlinuz",
        Path("/lib/modules") / release / "build" / "vmlinux",
        Path("/usr/lib/debug/boot") / f"vmlinux-{release}",
    )
    image = next((place for place in places if _readable(place)), None)
    if image is None:
        listed = ", ".join(map(str, places))
        raise BadKernel(RUNNING, "image", f"Linux {release}: none that can be read in {listed}")
    return _at(image, [*_configs_beside(image), Path("/proc/config.gz")])


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def _at(image: Path, configs: Iterable[Path]) -> KernelFiles:
    with open_regular(image) as file:
        raw = file.read(MAX_IMAGE + 1)
    if len(raw) > MAX_IMAGE:
        raise BadKernel(str(image), "file", f"is larger than {MAX_IMAGE:#x} bytes")
    built, config = built_in(image), None
    for path in (*configs, *(() if built is None else (built / ".config",))):
        if _readable(path):
            config = str(path), _text(read_regular(path))
            break
    vmlinux = None if built is None or built / "vmlinux" == image else built / "vmlinux"
    return KernelFiles((str(image), raw), config, vmlinux)


def built_in(image: Path) -> Path | None:
    """Return the folder that an image was built in, and lies in; None: it lies elsewhere."""
    for folder in list(image.absolute().parents)[:_DEEP]:
        if all(_readable(folder / name) for name in ("vmlinux", ".config")):
            return folder
    return None


def _text(raw: bytes) -> str:
    if raw[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            raw = file.read(MAX_CONFIG)
    return raw[:MAX_CONFIG].decode("utf-8", "replace")


def _configs_beside(image: Path) -> list[Path]:
    """Return where the configuration of an image may lie."""
    folder, (_, dash, release) = image.parent, image.name.partition("-")
    named = [folder / f"config-{_bare(release)}"] if dash else []
    return [*named, folder / "config", folder / ".config"]


def _in_folder(folder: Path) -> KernelFiles:
    """Return the one kernel in a tree, a boot folder, or the folder of one version."""
    patterns = ("", "boot", "lib/modules/*", "usr/lib/modules/*", "build", "lib/modules/*/build")
    found: dict[str, Path] = {}
    for pattern in patterns:
        for place in sorted(folder.glob(pattern)) if pattern else [folder]:
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if IMAGE.fullmatch(path.name) and path.is_file():
                    found.setdefault(release_of(str(path.relative_to(folder.parent))), path)
    image = found[_only(found, str(folder))]
    configs = _configs_beside(image)
    release = release_of(str(image))
    roots = [folder, *folder.parents][:4]
    configs += [root / "boot" / f"config-{release}" for root in roots if release]
    configs += [root / "lib/modules" / release / "config" for root in roots if release]
    return _at(image, configs)


def release_of(path: str) -> str:
    """Return the release that an image's or configuration's path names; empty for none."""
    folder = _VERSION.fullmatch(path)
    if folder is not None:
        return folder[1]
    _, _, release = PurePosixPath(path).name.partition("-")
    return _bare(release)


def _bare(name: str) -> str:
    return re.sub(_SUFFIX + "$", "", name)


def _only(found: Mapping[str, object], where: str) -> str:
    if not found:
        raise BadKernel(where, "kernel", "holds no image (vmlinuz, vmlinux, Image)")
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise BadKernel(where, "kernel", f"holds several ({names}); name one's file")
    return next(iter(found))


def _in_archive(path: Path) -> KernelFiles:
    """Return the one kernel in a package; it is read once, from front to back, as far as needed."""
    images: dict[str, tuple[str, bytes]] = {}
    configs: dict[str, tuple[str, str]] = {}
    for member in files_in(path, _wanted):
        source = f"{path}:{member.path}"
        if member.file is None:
            size = f"{member.size:#x} bytes, more than {MAX_MEMBER:#x}"
            raise BadKernel(source, "file", size)
        release = release_of(member.path)
        if _CONFIG.fullmatch(member.file.name):
            configs[release] = (source, _text(member.file.data))
        else:
            images.setdefault(release, (source, member.file.data))
        if path.suffix in (".deb", ".rpm") and images.keys() & configs.keys():
            break  # a package has one kernel, and most of it are modules
    release = _only(images, str(path))
    return KernelFiles(images[release], configs.get(release))


def _wanted(name: str) -> bool:
    folder, _, base = name.rpartition("/")
    usual = re.fullmatch(r"(usr/lib/debug/)?(usr/)?(boot|lib/modules/[^/]+)", folder)
    return bool(usual and (IMAGE.fullmatch(base) or _CONFIG.fullmatch(base)))
