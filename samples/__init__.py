# SPDX-License-Identifier: GPL-2.0-or-later
"""Demos, one idea each, and the sample modules that they load."""

from __future__ import annotations
