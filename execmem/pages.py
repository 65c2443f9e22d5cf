# SPDX-License-Identifier: GPL-2.0-or-later
"""The front end, put together: for a server that sends its files, or as one file.

Its files are ES modules that name each other by `execmem/NAME`. What that means says an import
map: on a server, an address of it; in a file that stands alone, the module itself as a `data:`
address. So both run the same text, and nothing is built.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

_KINDS = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
START = "app.js"  # the module that begins
# What a file may do that came by mail: show itself. Nothing is fetched, whatever is inside.
_ALONE = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline';"
    " img-src data:; base-uri 'none'; form-action 'none'"
)


def _read(name: str) -> str:
    return (files("execmem") / "page" / name).read_text("utf-8")


@cache
def modules() -> tuple[str, ...]:
    """Return the names of the front end's modules."""
    return tuple(
        sorted(
            each.name for each in (files("execmem") / "page").iterdir() if each.name.endswith(".js")
        )
    )


def file(name: str) -> tuple[str, str] | None:
    """Return a file of the front end and its media type; None: there is none of this name."""
    known = {*modules(), "page.css"}
    if name not in known:
        return None
    return _read(name), _KINDS[name[name.rindex(".") :]]


@cache
def _import_map() -> str:
    return json.dumps({"imports": {f"execmem/{name}": f"/page/{name}" for name in modules()}})


def import_map_hash() -> str:
    """Return what a content security policy calls the import map of a served page."""
    digest = hashlib.sha256(_import_map().encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def served() -> str:
    """Return the page as a server sends it."""
    return Template(_read("page.html")).substitute(
        title="execmem",
        policy="",
        style='<link rel="stylesheet" href="/page/page.css">',
        imports=_import_map(),
        data="",
        start=f'<script type="module" src="/page/{START}"></script>',
    )


def alone(title: str, document: dict[str, Any]) -> str:
    """Return the page as one file, with a document inside.

    Parameters
    ----------
    title
        Of the page; any text.
    document
        What it shows (`execmem.explain.document`).
    """
    packed = gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0)
    imports = {}
    for name in modules():
        text = base64.b64encode(_read(name).encode()).decode()
        imports[f"execmem/{name}"] = f"data:text/javascript;base64,{text}"
    return Template(_read("page.html")).substitute(
        title=escape(title),
        policy=f'<meta http-equiv="Content-Security-Policy" content="{_ALONE}">',
        style=f"<style>\n{_read('page.css')}\n</style>",
        imports=json.dumps({"imports": imports}),
        data=f'<script id="data" type="application/gzip">{base64.b64encode(packed).decode()}</script>',
        start=f'<script type="module">import "execmem/{START}";</script>',
    )
