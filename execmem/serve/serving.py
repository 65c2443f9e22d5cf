# SPDX-License-Identifier: GPL-2.0-or-later
"""What a server needs of this machine: a socket, desks, and what there is to pick from."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from allocator.types import MIB
from execmem import notices
from execmem.fencing import NOT
from execmem.serve.compiling import targets
from execmem.serve.desks import Desks, Limits


def listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    ExecmemError
        This machine has no such address, or somebody listens there already.
    """
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family)
    except (OSError, OverflowError, TypeError, UnicodeError) as error:  # TypeError: no name at all
        why = getattr(error, "strerror", None) or str(error)
        hint = "; hint: --port 0 takes a free one" if port else ""
        raise ExecmemError(f"{address}:{port}: cannot listen there: {why}{hint}") from None


def desks_of(
    *, pages: int, seconds: float, memory: int, require_sandbox: bool, readable: Iterable[Path]
) -> Desks:
    """Return desks with the limits of a command line; the first one is there.

    Raises
    ------
    NotFenced
        The host keeps something, and must not.
    """
    limits = Limits(desks=pages, seconds=seconds, memory=memory * MIB, whole=require_sandbox)
    desks = Desks(limits, readable)
    for kept in desks.prepare().kept:
        notices.assume(f"{NOT}: {kept}")
    return desks


def offer() -> dict[str, Any]:
    """Return what a page is told first: what it can pick from."""
    from allocator.designs import known_designs
    from allocator.workloads import WORKLOADS
    from archs import archs
    from samples import modules

    return {
        "samples": list(modules.names()),
        "archs": [
            {"name": arch.name, "title": arch.title} for arch in archs() if arch.run is not None
        ],
        "workloads": list(WORKLOADS),
        "compilers": [arch.name for arch in targets()],
        "designs": ["default", *(one.name for one in known_designs() if not one.error)],
    }
