# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs by name, by file and by class, wherever they live.

A design is named as a person names it: one of ours, one that an installed package brings
(entry point `execmem.designs`), a file (`./mine.py`, or `./mine.py:Mine` where it holds
several), or the class itself. What does not come from here is watched (`checked`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isabstract
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import attrs

from allocator.designs.base import Context, Design
from allocator.designs.checked import Checked
from allocator.errors import ExecmemError, NoSuchName, did_you_mean, printable
from allocator.plugins import DESIGNS as GROUP
from allocator.plugins import bring, installed, origin, said

DEFAULT = "strata"


@attrs.frozen
class Chosen:
    """A design that was found; one from outside is watched."""

    name: str
    design: type[Design]
    outside: bool = False

    def make(self, context: Context) -> Design:
        """Return one for a machine's memory; DesignError where it cannot be made."""
        return Checked(context, self.design) if self.outside else self.design(context)


@attrs.define(auto_exc=True, str=False)
class UnknownDesign(NoSuchName):
    """A name that no design has, and those that designs have."""

    name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        near, known = did_you_mean(self.name, self.known), ", ".join(self.known)
        return printable(f"no design {self.name!r}{near}; there are {known}, or a file: ./mine.py")


DesignLike: TypeAlias = "str | os.PathLike[str] | type[Design] | Chosen"


@attrs.frozen
class KnownDesign:
    """A design that can be chosen by name.

    Parameters
    ----------
    summary
        What it does, in a line.
    origin
        The package that brings it; empty for ours.
    error
        Why it cannot be used; empty where it can.
    """

    name: str
    summary: str
    origin: str = ""
    error: str = ""


def find_design(
    wanted: DesignLike,
    ours: Mapping[str, type[Design]],
    hidden: Mapping[str, type[Design]],
) -> Chosen:
    """Return the design that is meant; ExecmemError where there is none.

    Parameters
    ----------
    ours, hidden
        The designs of this package; those that cannot work are not told of.
    """
    if isinstance(wanted, Chosen):
        return wanted
    if isinstance(wanted, type):
        return _outside(wanted, wanted.__name__, ours, hidden)
    if isinstance(wanted, Design):
        name = type(wanted).__name__
        raise ExecmemError(f"design {name}: give the class, not an object: memory makes its own")
    if not isinstance(wanted, str | os.PathLike):
        raise ExecmemError(f"no design {wanted!r}: expected a name, a file or a class")
    text = os.fspath(wanted)
    name = DEFAULT if text == "default" else text
    found = ours.get(name) or hidden.get(name)
    if found is not None:
        return Chosen(name, found)
    if is_path(wanted):
        return _outside(_from_file(text), text, ours, hidden)
    brought = installed(GROUP)
    if name in brought:
        what = f"{name!r} of {origin(brought[name])}"
        return _outside(bring(brought[name]), what, ours, hidden)
    names = [*sorted(ours), *(other for other in sorted(brought) if other not in ours)]
    raise UnknownDesign(name, tuple(names))


def known(ours: Mapping[str, type[Design]]) -> list[KnownDesign]:
    """Return every design that can be chosen by name, ours first; broken ones say why."""
    listed = [KnownDesign(name, _summary(design)) for name, design in ours.items()]
    for name, point in sorted(installed(GROUP).items()):
        if name in ours:
            continue
        try:
            design = _outside(bring(point), name, ours, {}).design
            listed.append(KnownDesign(name, _summary(design), origin(point)))
        except ExecmemError as error:
            listed.append(KnownDesign(name, "", origin(point), str(error)))
    return listed


def is_path(wanted: str | os.PathLike[str]) -> bool:
    """Return whether a design is given as a file, and not by name."""
    text = os.fspath(wanted)
    return not isinstance(wanted, str) or "/" in text or ".py" in text


def absolute(wanted: str) -> str:
    """Return a design so that it means the same in another folder."""
    return str(Path(wanted).absolute()) if is_path(wanted) else wanted


def _summary(design: object) -> str:
    lines = (getattr(design, "__doc__", None) or "").strip().splitlines()
    return printable(lines[0]) if lines else ""


def _outside(
    design: object,
    what: str,
    ours: Mapping[str, type[Design]],
    hidden: Mapping[str, type[Design]],
) -> Chosen:
    """Return a design that comes from elsewhere, to be watched; ExecmemError if it is none."""
    if not (isinstance(design, type) and issubclass(design, Design)):
        raise ExecmemError(printable(f"{what}: {design!r} is not derived from allocator.Design"))
    if design in ours.values() or design in hidden.values():
        return Chosen(design.name, design)
    name = getattr(design, "name", None)
    title = printable(design.__name__)
    if not isinstance(name, str) or not name:
        raise ExecmemError(f'design {title} has no name: write name = "mine" in the class')
    if name in ours or name in hidden or name == "default":
        reason = "as a design of execmem does: give it a name of its own"
        raise ExecmemError(f"design {title} calls itself {name!r}, {reason}")
    if isabstract(design):
        missing = ", ".join(sorted(design.__abstractmethods__))
        raise ExecmemError(printable(f"design {name}: {title} does not define {missing}"))
    return Chosen(printable(name), design, outside=True)


def _from_file(text: str) -> type[Design]:
    """Return the design that a file holds; ExecmemError for none, several, or a broken one."""
    path, colon, wanted = text.rpartition(":")
    if not colon or "/" in wanted or wanted.endswith(".py"):
        path, wanted = text, ""
    module = _import(path)
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Design)
        and value.__module__ == module.__name__
        and (name == wanted or not (wanted or isabstract(value)))
    }
    if not found:
        what = f"no design {wanted!r}" if wanted else "no class derived from allocator.Design"
        abstract = [
            f"{name} does not define {', '.join(sorted(value.__abstractmethods__))}"
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Design)
            and value.__module__ == module.__name__
            and isabstract(value)
        ]
        reason = "; ".join([f"holds {what}", *abstract])
        raise ExecmemError(printable(f"{path}: {reason}"))
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise ExecmemError(printable(f"{path}: holds several designs ({names}); say {path}:NAME"))
    return next(iter(found.values()))


_FILES: dict[tuple[str, int, int], ModuleType] = {}


def _import(path: str) -> ModuleType:
    """Import a file, once as long as it does not change."""
    file = Path(path)
    try:
        state = file.stat()
        key = (str(file.resolve()), state.st_mtime_ns, state.st_size)
        if not file.is_file():
            raise ExecmemError(printable(f"design {path}: is not a file"))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ExecmemError(printable(f"design {path}: {reason}")) from None
    if key not in _FILES:
        name = f"execmem_design_{len(_FILES)}_{file.stem}"
        spec = spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ExecmemError(printable(f"design {path}: is not a Python file (.py)"))
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ExecmemError(printable(f"design {path}: {said(error)}")) from error
        _FILES[key] = module
    return _FILES[key]
