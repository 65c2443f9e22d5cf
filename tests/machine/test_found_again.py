# SPDX-License-Identifier: GPL-2.0-or-later
"""A published mistake in a real driver is found again in a kernel that has it, and not in others.

CVE-2024-46747: cougar_report_fixup() of hid-cougar looks at bytes 115 and 116 of a HID report
descriptor, however short that is. The fix (a6e9c391d45b, "HID: cougar: fix slab-out-of-bounds Read in
cougar_report_fixup", 5.10.226 in the line that Debian 11 has) asks for its size first. Needs
EXECMEM_KERNELS with modules; to see the mistake, with Debian's linux-image-5.10.0-32-amd64
(5.10.223-1), unpacked as `5.10-amd64`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from emulator.faults import Fault, FaultKind
from kernels.findings import FindingKind
from tests.support import booted

MODULE, FUNCTION = "hid-cougar", "cougar_report_fixup"
FIXED = (5, 10, 226)
LONG_FIXED = (6, 11)
# A mouse: usage page, usage, an empty collection (HID 1.11, 6.2.2).
MOUSE = bytes((0x05, 0x01, 0x09, 0x02, 0xA1, 0x01, 0xC0, 0xC0))


def _having() -> list[tuple[str, Path]]:
    """Return the kernels that bring the module, those of Debian 11 or one of each architecture."""
    chosen = {name: path for name, path, _ in booted.some()}
    chosen |= {name: path for name, path, _ in booted.releases() if name.startswith("5.10")}
    found = sorted(chosen.items())
    return [(name, path) for name, path in found if any(path.rglob(f"{MODULE}.ko*"))]


def _has_it(machine: Any) -> bool:
    """Return whether a kernel is from before the fix."""
    found = re.findall(r"Debian (\d+)\.(\d+)\.(\d+)", machine.image.banner)
    major, minor, third = map(int, found[-1])  # behind the compiler's
    if (major, minor) == FIXED[:2]:
        return third < FIXED[2]
    if (major, minor) == (6, 1) and third >= 112:  # all of Debian 12 from 12.8 on
        return False
    if (major, minor) >= LONG_FIXED:
        return False
    pytest.skip(f"whether {major}.{minor}.{third} has the fix is not written here")


@pytest.mark.skipif(not _having(), reason=f"EXECMEM_KERNELS has no kernel with {MODULE}")
@pytest.mark.parametrize(("name", "folder"), _having(), ids=[name for name, _ in _having()])
def test_a_descriptor_that_is_too_short(name: str, folder: Path) -> None:
    """The read behind a mouse's descriptor is found in the kernels that have it, and only there."""
    del name
    with booted.fresh(folder, folder) as machine:
        checks = machine.sanitize("guard")
        module = machine.load(MODULE)
        size = machine.alloc(len(MOUSE).to_bytes(4, "little"))
        if not _has_it(machine):
            at = machine.alloc(MOUSE)
            assert module.call(FUNCTION, 0, at, size) == at
            assert checks.findings == []
            return
        with pytest.raises(Fault) as caught:
            module.call(FUNCTION, 0, MOUSE, size)
        assert caught.value.kind is FaultKind.OUT_OF_BOUNDS
        (found,) = checks.findings
        assert found.kind is FindingKind.OUT_OF_BOUNDS
        assert found.where.startswith(f"{FUNCTION}+0x")
        assert found.object is not None
        assert found.object.size == len(MOUSE)
        assert found.address == found.object.address + 115
