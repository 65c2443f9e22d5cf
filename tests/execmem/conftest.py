# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the face share: a browser, and what is installed from a wheel."""

from __future__ import annotations

import shutil

import pytest

from tests.support.browsing import PROGRAMS, chromium
from tests.support.installed import newest, shell, wheel

__all__ = ["browser", "newest", "shell", "wheel"]


@pytest.fixture(scope="session")
def browser():
    """Start a headless Chromium; skip where there is none, or nothing to drive it with."""
    pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    if not all(map(shutil.which, PROGRAMS)):
        pytest.skip("no chromium with its chromedriver")
    with chromium() as found:
        yield found
