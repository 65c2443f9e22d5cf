# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m execmem` is the command line."""

from __future__ import annotations

from execmem.cli import main

main()
