# SPDX-License-Identifier: GPL-2.0-or-later
"""The hardware of booted kernels: as little as Linux needs, a file for each piece."""

from __future__ import annotations
