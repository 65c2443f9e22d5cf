# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module asks for beside its symbols, and how its parameters are passed."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from emulator.faults import BadCall
from loader.depends import ModuleTree, depends_of
from loader.errors import MissingDependency
from loader.files import ModuleFile, module_name

# Parameters of the modelled machine, which a booted kernel leaves no room for.
OURS = frozenset(
    "design text_poke unknown checks errata stub_sections cpus kasan heap_limit seed force"
    " constructors".split()
)
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


def words_of(params: Mapping[str, object]) -> str:
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


def needed(file: ModuleFile, tree: ModuleTree | None, loaded: Container[str]) -> list[str]:
    """Return the modules to load first, in order, without those that are loaded."""
    title = module_name(file.name)
    if tree is None:
        missing = [n for n in depends_of(file) if n not in loaded]
        if missing:
            hint = "give the folder that holds lib/modules (--root)"
            raise MissingDependency(file.name, tuple(missing), (), hint)
        return []
    if title in tree.needs:
        order = list(tree.to_load(title)[:-1])
    else:
        order = [n for d in depends_of(file) for n in tree.to_load(d)]
    wanted = [n for n in dict.fromkeys(order) if n not in loaded]
    missing = [n for n in wanted if n not in tree.files]
    if missing:
        raise MissingDependency(file.name, tuple(missing), (), f"not in {tree.folder}")
    return wanted
