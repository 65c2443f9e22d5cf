# SPDX-License-Identifier: GPL-2.0-or-later
"""fuzz-report: what a HID device says of itself, and a stack that is not looked at.

A report descriptor is a program of small items; Push stores what holds now, Pop brings it back. A kernel
must look how often (HID_GLOBAL_STACK_SIZE in drivers/hid/hid-core.c). `formats_report` does not.
"""

from __future__ import annotations

from samples.searching import search, told
from samples.story import Story, Text

# Push, a size of 8 bits, Push, 2 of them, an input, Pop, Pop (HID 1.11, 6.2.2).
DESCRIPTOR = bytes.fromhex("a47508a495028102b4b4")


def main() -> Story:
    """Look for a descriptor that a parser cannot take."""
    story = Story("fuzz-report", "A device describes itself")
    found = search("formats_report", [DESCRIPTOR])
    story.parts = [
        Text(
            "A fuzzer begins with a descriptor that is right, of ten bytes, and changes it a "
            "little: bytes set, inserted, taken out, repeated. What comes to code where "
            "nothing came before is kept, and changed further:"
        ),
        *told(story, found),
        Text(
            "Three bytes are enough: Push, Push, Push. The parser has room for two, and "
            "stores the third behind it, where a guard page stops it. Without a guard nobody "
            "would know until something else broke. The same with the kernel's own parser: "
            "docs/howto/targets.md."
        ),
    ]
    return story
