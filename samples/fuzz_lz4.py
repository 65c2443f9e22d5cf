# SPDX-License-Identifier: GPL-2.0-or-later
"""fuzz-lz4: a block that unpacks to more than there is room for.

LZ4 is literals, and copies of what came before. Both have lengths that go on in further bytes; a decoder
compares both with the room that is left. `formats_unlz4` compares one.
"""

from __future__ import annotations

from samples.searching import search, told
from samples.story import Story, Text

PACKED = bytes.fromhex("1f410100ff0e504142434445")  # 290 times A, and BCDE
ROOM = 512


def main() -> Story:
    """Look for a block that a decoder writes too much for."""
    story = Story("fuzz-lz4", "A block unpacks")
    found = search("formats_unlz4", [PACKED], ROOM)
    story.parts = [
        Text("A block that unpacks to 295 bytes, where there is room for 512:"),
        *told(story, found),
        Text(
            "One byte more of length, 255, and a copy goes on behind the memory. What is "
            "found depends on what one begins with: from nothing, a fuzzer must first come "
            "upon a token, literals and an offset that fit."
        ),
    ]
    return story
