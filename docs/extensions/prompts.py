# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells mkdocs which blocks are sessions, so that prompts and output can be left out of a copy.

The sources say neither: a block that begins with `$ ` is a shell's, one with `>>> ` Python's.
"""

from __future__ import annotations

import re
from typing import Any

_SHELL = re.compile(r"^( *)```\n(?=\1\$ )", re.MULTILINE)
_PYTHON = re.compile(r"^( *)```python\n(?=\1>>> )", re.MULTILINE)


def on_page_markdown(markdown: str, **_more: Any) -> str:
    """Return a page whose sessions are named as such."""
    return _PYTHON.sub(r"\1```pycon\n", _SHELL.sub(r"\1```console\n", markdown))
