# SPDX-License-Identifier: GPL-2.0-or-later
"""Device trees, as the reference compiler (dtc) reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import archs
from archs import Arch
from archs.devicetree import Node, flatten, wide
from archs.levels.boot import Plan
from tests.support import tools

MAGIC = bytes.fromhex("d00dfeed")
TREE: Node = {
    "#address-cells": 2,
    "model": "one string",
    "list": ("of", "strings"),
    "cells": (1, 2, 0xFFFF_FFFF),
    "wide": wide(0x1_8000_0000),
    "there": None,
    "bytes": b"\x01\x02\x03",
    "child@1": {"reg": 1, "deeper": {"model": ""}},
}
SOURCE = """/dts-v1/;
/ {
    #address-cells = <2>;
    model = "one string";
    list = "of", "strings";
    cells = <1 2 0xffffffff>;
    wide = <0x1 0x80000000>;
    there;
    bytes = [01 02 03];
    child@1 { reg = <1>; deeper { model = ""; }; };
};
"""


def source(blob: Path) -> str:
    """Return what dtc makes of a blob."""
    return tools.run(tools.tool("dtc"), "-q", "-I", "dtb", "-O", "dts", blob)


def test_a_tree_is_what_dtc_makes_of_its_source(tmp_path: Path) -> None:
    """A tree is what dtc makes of its source."""
    ours, written, theirs = (tmp_path / name for name in ("ours.dtb", "written.dts", "theirs.dtb"))
    ours.write_bytes(flatten(TREE))
    written.write_text(SOURCE)
    tools.run(tools.tool("dtc"), "-q", "-I", "dts", "-O", "dtb", "-o", theirs, written)
    assert source(ours) == source(theirs)


def trees() -> list[Arch]:
    """Return the architectures whose kernels are started with a tree."""
    return [a for a in archs.archs() if a.boot is not None and a.load is not None and blobs(a)]


def blobs(arch: Arch) -> list[bytes]:
    """Return the trees in what a kernel is started with."""
    plan = Plan(
        image={0: b""},
        address=arch.loads.address_map().image.start,
        image_size=0x10_0000,
        entry=0,
        header=bytes(0x1000),
        memory=256 << 20,
        command_line="quiet a=b",
        initrd=b"initial file system",
    )
    contents = arch.boots.start(plan).contents.values()
    return [bytes(data) for data in contents if bytes(data[:4]) == MAGIC]


@pytest.mark.parametrize("arch", trees(), ids=lambda arch: arch.name)
def test_a_kernel_gets_one_tree_with_its_memory_and_command_line(
    arch: Arch, tmp_path: Path
) -> None:
    """A kernel gets one tree, with its memory and command line."""
    (blob,) = blobs(arch)
    assert struct.unpack_from(">I", blob, 4) == (len(blob),)
    path = tmp_path / "tree.dtb"
    path.write_bytes(blob)

    def told(node: str, name: str, kind: str) -> str:
        return tools.run(tools.tool("fdtget"), "-t", kind, path, node, name).strip()

    assert told("/chosen", "bootargs", "s") == "quiet a=b"
    start, end = (
        [int(cell, 16) for cell in told("/chosen", f"linux,initrd-{edge}", "x").split()]
        for edge in ("start", "end")
    )
    assert end[1] - start[1] == len(b"initial file system")
    memory = f"/memory@{arch.boots.ram:x}"
    assert [int(c, 16) for c in told(memory, "reg", "x").split()] == [
        *wide(arch.boots.ram),
        *wide(256 << 20),
    ]
    assert len(told("/chosen", "rng-seed", "bx").split()) >= 32  # bytes that random.c wants
    assert "Warning" not in source(path)
