# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated computer: Unicorn bound to the page table, and the kernel that modules call."""

from __future__ import annotations
