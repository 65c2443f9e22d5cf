# SPDX-License-Identifier: GPL-2.0-or-later
"""What a computer was at some moment: all of it, or all but its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import attrs
import unicorn

from emulator.ram import Frozen


@attrs.frozen
class State:
    """All of a computer but its memory, as plain data.

    Parameters
    ----------
    context
        The CPU's registers as the emulator saves them; they mean something to the same version
        of it only.
    registers
        Registers that it leaves out.
    clock, devices, pending
        Guest time, the parts' state by their place in the list, and interrupts raised.
    console
        Bytes printed so far.
    sites
        Addresses of instructions that are answered here.
    """

    context: bytes = attrs.field(repr=False)
    registers: Mapping[str, int]
    clock: tuple[int, int]
    devices: tuple[Mapping[str, Any], ...]
    pending: tuple[int, ...]
    console: int
    sites: tuple[int, ...]


@attrs.frozen
class Still:
    """A computer as it once was.

    Parameters
    ----------
    frozen, context, state
        Its memory, its CPU as the emulator keeps it, and all else.
    """

    frozen: Frozen = attrs.field(repr=False)
    context: unicorn.unicorn.UcContext = attrs.field(repr=False)
    state: State = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Mark:
    """A computer as it once was, beside frozen memory.

    Parameters
    ----------
    frozen, pages
        Memory that it had frozen, and what it had written since then: offset, bytes.
    context, state
        As of `Still`.
    soon, waited, passing
        What it was about to do: where an interrupt was to come, how often it had waited, which
        breakpoints it was to go on from.
    """

    frozen: Frozen = attrs.field(repr=False)
    pages: tuple[tuple[int, bytes], ...] = attrs.field(repr=False)
    context: unicorn.unicorn.UcContext = attrs.field(repr=False)
    state: State = attrs.field(repr=False)
    soon: int | None
    waited: int
    passing: frozenset[tuple[int, int]]


def context_bytes(context: unicorn.unicorn.UcContext) -> bytes:
    """Return what a saved context holds."""
    return ctypes.string_at(context.context, context.size)
