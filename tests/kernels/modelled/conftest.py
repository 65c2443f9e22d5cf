# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of kernel functions share."""

from __future__ import annotations

import pytest

from tests.support.guest import guest_of


@pytest.fixture
def guest(arch):
    """Return the machine of each architecture that these tests share."""
    return guest_of(arch)
