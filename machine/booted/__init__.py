# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user holds of a booted kernel."""

from __future__ import annotations
