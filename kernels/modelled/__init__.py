# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that modules call: a table of entries, and the services behind them."""

from __future__ import annotations
