# SPDX-License-Identifier: GPL-2.0-or-later
"""The web application: the page of `explain`, with somebody behind it who answers.

A page asks what a terminal would: the words of a command with `--json` (`questions`), which a
fenced process carries out (`work`) at a desk of the page's own (`desks`), so that what a view says
is what the command says. `app` speaks HTTP and knows nothing of modules; `execmem.pages` has the
front end, which is the same in a file that stands alone.
"""

from __future__ import annotations
