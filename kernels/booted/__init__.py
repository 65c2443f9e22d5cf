# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels: started from their image, and then called by Python."""

from __future__ import annotations
