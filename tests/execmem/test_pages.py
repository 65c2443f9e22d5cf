# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines of the README and of the documents, as `test_examples` runs them.

A file of its own, so that another process may take it.
"""

from __future__ import annotations

import pytest

from tests.execmem.test_examples import PAGES, check, of_page


@pytest.mark.parametrize("page", [page for page in PAGES if of_page(page)], ids=lambda p: p.name)
def test_lines_of_a_page_run(shell, tmp_path, page):
    """Every command line of the README and of the documents runs."""
    check(shell, of_page(page), tmp_path)
