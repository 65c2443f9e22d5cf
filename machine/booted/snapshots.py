# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted machine as it once was."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from emulator.boards.state import Mark, Still
from kernels.guarding import PoolState
from machine.booted.module import BootedModule
from machine.booted.noting import Listed
from machine.booted.sanitizer import BootedSanitizer


@attrs.frozen
class Snapshot:
    """A machine as it once was.

    Parameters
    ----------
    still
        The computer.
    modules
        What was loaded, by name.
    mounted
        Whether /dev and the like were there.
    inside
        Number of the call that it was made inside of; 0: of none.
    listed
        What was registered when somebody last looked; None: nobody notes that.
    checks, guarded
        The checks that it was under, and the objects that these guarded; None: there were none.
    """

    still: Still | Mark = attrs.field(repr=False)
    modules: Mapping[str, BootedModule]
    mounted: bool = False
    inside: int = 0
    listed: Listed | None = attrs.field(default=None, repr=False)
    checks: BootedSanitizer | None = attrs.field(default=None, repr=False)
    guarded: PoolState | None = attrs.field(default=None, repr=False)
