# SPDX-License-Identifier: GPL-2.0-or-later
"""What is registered with a booted kernel, by its own lists in /proc and /sys.

A list says what is there now; what a module registered is what its load added. The lists differ
in what they tell: /proc/crypto names the module, /proc/misc only the device. Drivers are seen where
all of them go through, driver_register(). What no list of a kernel has (notifiers, text searches,
hooks of netfilter) cannot be seen this way.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import attrs

from kernels.registry import Field, Record
from machine.booted.files import File, FileError

_KERNEL = "kernel"  # as /proc/crypto and /proc/net/protocols call the owner of what is built in
_COMING = "larval"  # stands in for what the kernel still tests
_MINORBITS = 20
# What /proc/crypto calls a kind -> as records have it; what is not here has the same name.
_KINDS = {"compression": "compress"}
# Line of /proc/crypto -> as the structure's member is called.
_FIELDS = {
    "driver": "cra_driver_name",
    "priority": "cra_priority",
    "blocksize": "cra_blocksize",
    "digestsize": "digestsize",
    "min keysize": "min_keysize",
    "max keysize": "max_keysize",
    "ivsize": "ivsize",
    "maxauthsize": "maxauthsize",
    "seedsize": "seedsize",
    "selftest": "selftest",
}
_TEXTS = ("driver", "selftest")


class Files(Protocol):
    """Whose files are read."""

    def open(self, path: str, flags: int = ...) -> File:
        """Open a file."""
        ...


def algorithms(text: str) -> Iterator[Record]:
    """Yield the algorithms of /proc/crypto (crypto/proc.c, c_show(), and each kind's show())."""
    for block in text.split("\n\n"):
        lines = (line.partition(":") for line in block.splitlines())
        said = {key.strip(): value.strip() for key, colon, value in lines if colon}
        if "name" not in said:
            continue
        fields: dict[str, Field] = {}
        for key, name in _FIELDS.items():
            value = said.get(key, "")
            if key in _TEXTS:
                fields[name] = value
            elif value.isdecimal():
                fields[name] = int(value)
        kind = said.get("type", "algorithm")
        if kind == _COMING:
            continue
        module = said.get("module", "")
        yield Record(
            kind=_KINDS.get(kind, kind),
            name=said["name"],
            address=0,
            owner="" if module == _KERNEL else module,
            fields=fields,
        )


def misc_devices(text: str) -> Iterator[Record]:
    """Yield what /proc/misc has: minor number and name."""
    for minor, name in _pairs(text):
        yield _record("misc device", name, fields={"minor": int(minor)})


def devices(text: str) -> Iterator[Record]:
    """Yield what /proc/devices has: majors of character devices, then of block devices."""
    kind = "char device"
    for line in text.splitlines():
        if line.startswith("Block"):
            kind = "block major"
        for major, name in _pairs(line):
            number = int(major)
            address = number << _MINORBITS if kind == "char device" else number
            yield _record(kind, name, address=address, fields={"major": number})


def filesystems(text: str) -> Iterator[Record]:
    """Yield what /proc/filesystems has."""
    for line in text.splitlines():
        if name := line.rpartition("\t")[2].strip():
            yield _record("filesystem", name)


def protocols(text: str) -> Iterator[Record]:
    """Yield what /proc/net/protocols has (net/core/sock.c): name first, the module by its title."""
    titles, *rows = [line.split() for line in text.splitlines()] or [[]]
    if "module" not in titles:
        return
    # A title to the left has one word in each row; to the right they are many.
    at = titles.index("module")
    for row in rows:
        if len(row) > at:
            yield _record("network protocol", row[0], owner="" if row[at] == _KERNEL else row[at])


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        number, _, name = line.strip().partition(" ")
        if number.isdecimal() and name:
            yield number, name


def _record(
    kind: str,
    name: str,
    *,
    address: int = 0,
    owner: str = "",
    fields: dict[str, Field] | None = None,
) -> Record:
    return Record(kind=kind, name=name, address=address, owner=owner, fields=fields or {})


_LISTS: dict[str, Callable[[str], Iterable[Record]]] = {
    "/proc/crypto": algorithms,
    "/proc/misc": misc_devices,
    "/proc/devices": devices,
    "/proc/filesystems": filesystems,
    "/proc/net/protocols": protocols,
}
# Folders that have an entry for each of a kind.
_FOLDERS = {
    "/sys/bus": "bus",
    "/sys/class": "class",
    "/sys/block": "disk",
    "/sys/class/net": "network device",
}


def every_algorithm(process: Files) -> list[Record]:
    """Return the algorithms that the kernel lists now."""
    return list(algorithms(text_of(process, "/proc/crypto")))


def everything(process: Files) -> list[Record]:
    """Return all that the kernel lists now, without drivers: a folder for each bus takes long."""
    found: list[Record] = []
    for path, parse in _LISTS.items():
        found += parse(text_of(process, path))
    for folder, kind in _FOLDERS.items():
        found += (_record(kind, name) for name in _names(process, folder))
    return found


def gained(
    process: Files, module: str, before: Iterable[Record]
) -> tuple[tuple[Record, ...], list[Record]]:
    """Return what is registered since `before` and is not another module's, and all that is now.

    Parameters
    ----------
    module
        What was loaded meanwhile, which owns what has no owner by the kernel's own lists.
    """
    now = everything(process)
    earlier = Counter(map(_key, before))
    added = []
    for record in now:
        if earlier[_key(record)]:
            earlier[_key(record)] -= 1
        elif record.owner in ("", module):
            added.append(attrs.evolve(record, owner=module))
    return tuple(added), now


def driver(bus: str, name: str, address: int, module: str) -> Record:
    """Return the record of a driver that a load has registered with a bus."""
    return _record(f"{bus} driver" if bus else "driver", name, address=address, owner=module)


def _key(record: Record) -> tuple[object, ...]:
    return record.kind, record.name, record.address, record.fields.get("cra_driver_name")


def text_of(process: Files, path: str) -> str:
    """Return what a file says; nothing where the kernel has none of the name."""
    try:
        with process.open(path, os.O_RDONLY) as file:
            return file.read_all().decode("utf-8", "backslashreplace")
    except FileError as error:
        if error.error != errno.ENOENT:
            raise
        return ""  # this kernel has none of these


def _names(process: Files, folder: str) -> list[str]:
    try:
        with process.open(folder, os.O_RDONLY) as file:
            return file.names()
    except FileError as error:
        if error.error != errno.ENOENT:
            raise
        return []
