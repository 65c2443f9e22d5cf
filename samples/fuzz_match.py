# SPDX-License-Identifier: GPL-2.0-or-later
"""fuzz-match: a packet's options, and one that says that it is no byte long.

A netfilter match goes over the options of TCP: a kind, a length, and so on to the next. Who adds the length
without a look goes nowhere if it is 0 (`?: 1` in net/netfilter/xt_tcpudp.c). `formats_match` does not look.
"""

from __future__ import annotations

from samples.hostile import PACKET, TIMESTAMPS
from samples.searching import search, told
from samples.story import Story, Text


def main() -> Story:
    """Look for a packet that a match does not come back from."""
    story = Story("fuzz-match", "A packet from anywhere")
    found = search("formats_match", [PACKET], TIMESTAMPS)
    story.parts = [
        Text(
            "A packet that is right, then others like it. Nothing is ever wrong with memory "
            "here; so each execution may take a million instructions, and what takes more "
            "counts as endless:"
        ),
        *told(story, found),
        Text(
            "The kind says that a length follows, and the length is 0: from there the parser "
            "goes to where it is. How long something took is the host's doing; instructions "
            "are counted before anything is called endless, so the finding is the same on "
            "every host."
        ),
    ]
    return story
