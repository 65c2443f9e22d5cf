# SPDX-License-Identifier: GPL-2.0-or-later
"""Case -> the packed form: source, objects and who made them in one text, for machines without tools."""

from __future__ import annotations

import base64
import textwrap
import zlib
from collections.abc import Iterator, Mapping

from execmem.check.case import Case, Form
from execmem.check.reading import FIRST_LINE, PLAIN
from execmem.check.toolchain import Made

WIDTH = 96  # characters of a line of an object


def pack(case: Case, objects: Mapping[str, Made]) -> str:
    """Return the text of a packed case; the same source and objects give the same text.

    Parameters
    ----------
    objects
        By the name of the architecture.
    """
    return "\n".join(_lines(case, objects)) + "\n"


def _lines(case: Case, objects: Mapping[str, Made]) -> Iterator[str]:
    yield FIRST_LINE
    if case.form is Form.PACKED:
        raise ValueError(f"{case.path} is packed already")
    if case.suffix != PLAIN:
        yield f"source {case.suffix}"
    yield from (f"| {line}".rstrip() for line in case.source.splitlines())
    for name, made in objects.items():
        yield f"object {name} {made.tool}".rstrip()
        packed = base64.b64encode(zlib.compress(made.image, 9)).decode("ascii")
        yield from textwrap.wrap(packed, WIDTH)
        yield "end"
