# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between versions, and what a text says of its version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archs.versions import Since, version_of

VERSIONS = st.tuples(st.integers(0, 9), st.integers(0, 30))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.1.0-50-amd64 SMP preempt mod_unload modversions ", (6, 1)),
        ("6.12.107+deb13-rt-amd64", (6, 12)),
        ("7.2", (7, 2)),
        ("5.15.94-android13-8-g1234-ab999 SMP preempt", (5, 15)),
        ("Linux version 7.2.13+deb14-amd64 (debian-kernel@lists.debian.org)", (7, 2)),
        ("nonsense", None),
        ("", None),
        ("6", None),
        ("12345.6", None),
        ("6.12345", None),
        ("v6.1", None),
    ],
)
def test_versions_of_texts(text: str, version: tuple[int, int] | None) -> None:
    """A release, a version magic and a banner begin with it; everything else has none."""
    assert version_of(text) == version


@given(st.dictionaries(VERSIONS, st.integers(), max_size=6), VERSIONS, st.integers())
def test_the_last_row_that_is_not_later_counts(rows, version, first) -> None:
    """As a search from the start finds it."""
    rows = {**rows, (0, 0): first}
    found = first
    for since in sorted(rows):
        if since <= version:
            found = rows[since]
    assert Since(*sorted(rows.items())).at(version) == found
