# SPDX-License-Identifier: GPL-2.0-or-later
"""Our modules beside a real kernel's, recorded or running here.

`diff` and `differences` compare bytes, `placement` places; `live` has a kernel that runs here do it, with
the static keys that inits turn (`flipped`). `diff_report` prints what was found.
"""
