# SPDX-License-Identifier: GPL-2.0-or-later
"""What answers modules: a kernel modelled in Python, or a real one that was booted."""

from __future__ import annotations
