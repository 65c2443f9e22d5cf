# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF bytes -> a module in executable memory, phase by phase, without a CPU."""

from __future__ import annotations
