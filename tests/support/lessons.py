# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lessons tell, each run once in a process."""

from __future__ import annotations

import functools
import re

from samples import story_of

told = functools.cache(story_of)
_RULE = re.compile("─+")
# Code in bytes; addresses and numbers with their signs and separators, not those inside names.
_NUMBER = re.compile(
    r"\b[0-9a-f]{2}( [0-9a-f]{2})+\b|(?<![\w.-])#?[-+]{0,2}(0x[0-9a-f]+|\d+(,\d{3})*(\.\d+)?)\b"
)


def prose(text: str) -> str:
    """Return a lesson's words: numbers become #, and columns are as wide as they are."""
    lines = (re.sub(" +", " ", _NUMBER.sub("#", line)) for line in text.splitlines())
    return "".join(f"{_RULE.sub('---', line).strip()}\n" for line in lines)
