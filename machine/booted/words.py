# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module asks for beside its symbols, and how its parameters are passed."""

from __future__ import annotations

import re

from emulator.faults import BadCall
from loader.files import ModuleFile

_SOFT = re.compile(rb"\0softdep=([^\0]{1,1000})\0")


def soft(file: ModuleFile) -> list[str]:
    """Return the modules and aliases that should be there before a module (softdep pre)."""
    names: list[str] = []
    for each in _SOFT.findall(file.image()):
        words = each.decode("ascii", "replace").split()
        takes = False
        for word in words:
            if word.endswith(":"):
                takes = word == "pre:"
            elif takes:
                names.append(word)
    return names


def words_of(params: dict[str, object]) -> str:
    """Return parameters as insmod passes them; BadCall for what cannot be."""
    words = []
    for name, value in params.items():
        if value is True:
            words.append(name)
            continue
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if isinstance(value, list | tuple):
            text = ",".join(map(str, value))
        if any(c in text for c in "\n\0"):
            raise BadCall("load", f"parameter {name}={text!r} cannot be passed")
        words.append(f'{name}="{text}"' if any(c.isspace() for c in text) else f"{name}={text}")
    return " ".join(words)
