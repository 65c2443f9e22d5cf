# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user holds: the machine, its modules and devices, tracing and probing."""

from __future__ import annotations
