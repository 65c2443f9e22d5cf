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

from allocator.errors import printable

_KINDS = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
START = "app.js"  # the module that begins
# What a file may do that came by mail: show itself. Nothing is fetched, whatever is inside.
_ALONE = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline';"
    " img-src data:; base-uri 'none'; form-action 'none'"
)

_UNPACK = f"""
(async () => {{
  const packed = Uint8Array.from(atob(document.getElementById("front").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const imports = JSON.parse(await new Response(unpacked).text());
  for (const name in imports) imports[name] = `data:text/javascript,${{encodeURIComponent(imports[name])}}`;
  const map = document.createElement("script");
  map.type = "importmap";
  map.textContent = JSON.stringify({{ imports }});
  document.head.append(map);
  await import("execmem/{START}");
}})().catch((error) => {{
  const said = document.getElementById("said");
  said.className = "verdict refused";
  said.textContent = `This page needs a browser of 2023 or later (${{error.message}}).`;
}});
"""


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
        imports=f'<script type="importmap">{_import_map()}</script>',
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
        What it shows (`execmem.explaining.explain.document`).
    """
    front = {f"execmem/{name}": _read(name) for name in modules()}
    return Template(_read("page.html")).substitute(
        title=escape(printable(title)),
        policy=f'<meta http-equiv="Content-Security-Policy" content="{_ALONE}">',
        style=f"<style>\n{_read('page.css')}\n</style>",
        imports="",
        data=_packed("front", front) + _packed("data", document),
        start=f"<script>{_UNPACK.strip()}</script>",
    )


def _packed(name: str, value: Any) -> str:
    """Return a part of a file that the page unpacks: what it weighs least as."""
    found = gzip.compress(json.dumps(value, separators=(",", ":")).encode(), mtime=0)
    return (
        f'<script id="{name}" type="application/gzip">{base64.b64encode(found).decode()}</script>'
    )
