# SPDX-License-Identifier: GPL-2.0-or-later
"""What patches text in a running kernel: static keys, static calls, ftrace and kprobes."""

from __future__ import annotations
