# SPDX-License-Identifier: GPL-2.0-or-later
"""What every JSON document has in common: who wrote it, and how numbers are written.

Programs that read JSON (jq, JavaScript, spreadsheets) keep a number as a double: of 64 bits
they lose the lowest. So what may have 64 bits is a `Hex` here and a string there, always, not
only when it is large; counts, sizes, indices and seconds are numbers, and smaller than 2^53.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from allocator.errors import ExecmemError
from allocator.types import Hex

EXACT = 1 << 53  # the first integer that a double may round is beyond it


def envelope(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as it is written: with version and notices, numbers by the rule.

    Raises
    ------
    ExecmemError
        A number is not a `Hex` and too large for those who read it.
    """
    found: dict[str, Any] = plain({"execmem": _version(), "notices": []} | dict(document))
    return found


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("execmem")


def plain(value: Any, where: str = "") -> Any:
    """Return a value as JSON has it; `where` is its place in the document."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Hex):
        return str(value)
    if isinstance(value, int):
        if -EXACT < value < EXACT:
            return value
    elif isinstance(value, float):
        if math.isfinite(value):
            return value
    elif isinstance(value, Mapping):
        return {key: plain(each, f"{where}.{key}") for key, each in value.items()}
    elif isinstance(value, list | tuple):
        return [plain(each, f"{where}[]") for each in value]
    else:
        raise TypeError(f"{where}: JSON has no {type(value).__name__}")
    raise ExecmemError(f"{where.lstrip('.')} is {value}, which programs that read JSON would round")


def line(document: Mapping[str, Any]) -> str:
    """Return a document as one line of a file of them."""
    return json.dumps(envelope(document))


def text(document: Mapping[str, Any]) -> str:
    """Return a document as a file of its own."""
    return json.dumps(envelope(document), indent=2) + "\n"
