# SPDX-License-Identifier: GPL-2.0-or-later
"""Unicorn bound to the page table: CPUs, their budgets, and why they stop."""

from __future__ import annotations
