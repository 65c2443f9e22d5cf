# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs side by side, and beside a booted kernel: runs of workloads, measured and shown.

`compare` runs a workload under designs, `comparison`, `frontier` and `overtime` show it; `measured` has a
kernel do it (`measures` is what that gives), `beside` asks designs for the same, `measuring` shows both.
`film` has the moments of a run for a page, `madefile` files of a workload's sizes for a kernel.
"""
