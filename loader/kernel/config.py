# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's configuration, from its file or from the image (CONFIG_IKCONFIG)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from loader.errors import BadKernel

MAX_CONFIG = 1 << 22  # bytes of text
_LINE = re.compile(r"(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set")
_START, _END = b"IKCFG_ST", b"IKCFG_ED"


def parse_config(text: str) -> Mapping[str, str]:
    r"""Return option -> value: `y`, `m`, `n` (said to be off), a number, or a string unquoted.

    >>> dict(parse_config('CONFIG_SMP=y\n# CONFIG_LTO is not set\nCONFIG_LOCALVERSION="-x"'))
    {'CONFIG_SMP': 'y', 'CONFIG_LTO': 'n', 'CONFIG_LOCALVERSION': '-x'}
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            value = match[2] if match[1] else "n"
            if value[:1] == '"':
                value = re.sub(r"\\(.)", r"\1", value[1:].removesuffix('"'))
            found[match[1] or match[3]] = value
    return found


def page_size_in(config: Mapping[str, str]) -> int | None:
    """Return the bytes of a page; None where a configuration does not say.

    All architectures have CONFIG_PAGE_SHIFT since 6.9 (d3e5bab923d3), arm64 had one of its own
    before, others an option for each size.

    >>> page_size_in({"CONFIG_PAGE_SHIFT": "14"}), page_size_in({"CONFIG_PAGE_SIZE_64KB": "y"})
    (16384, 65536)
    """
    for name in ("CONFIG_PAGE_SHIFT", "CONFIG_ARM64_PAGE_SHIFT"):
        shift = config.get(name, "")
        if shift.isdecimal() and 12 <= int(shift) < 32:
            return 1 << int(shift)
    sizes = (4, 8, 16, 32, 64)
    return next((n << 10 for n in sizes if config.get(f"CONFIG_PAGE_SIZE_{n}KB") == "y"), None)


def embedded_config(image: bytes, name: str) -> Mapping[str, str] | None:
    """Return the configuration that an image carries; None: it carries none.

    Raises
    ------
    BadKernel
        It is there and damaged.
    """
    start = image.find(_START + b"\x1f\x8b")
    if start < 0:
        return None
    end = image.find(_END, start)
    stream = zlib.decompressobj(wbits=31)
    try:
        text = stream.decompress(image[start + len(_START) : end if end > 0 else None], MAX_CONFIG)
    except zlib.error as error:
        raise BadKernel(name, "IKCONFIG", f"damaged: {error}") from None
    return parse_config(text.decode("utf-8", "replace"))
