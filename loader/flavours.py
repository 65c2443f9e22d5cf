# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose kernel a release is: how distributions call their kernels, and their compilers themselves."""

from __future__ import annotations

import re

UNKNOWN = "unknown"

# How distributions call their kernels: flavour, and what is found in a release.
RELEASES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (flavour, re.compile(pattern))
    for flavour, pattern in (
        ("Android", r"-android\d+-|-android\d+$"),
        ("Raspberry Pi OS", r"\+rpt-rpi|-v[78]l?\+$"),
        (
            "Debian",
            r"\+(?:deb|bpo)\d*\b|-\d+-(?:rt-|cloud-|amd64|arm64|armmp|686|5kc|powerpc|s390x|riscv64)",
        ),
        ("Fedora", r"\.fc\d+\b"),
        ("Oracle Linux", r"\.el\d+uek"),
        ("Red Hat Enterprise Linux", r"\.el\d+"),
        ("Amazon Linux", r"\.amzn\d+"),
        ("openSUSE", r"-[\d.]+(?:\.g[0-9a-f]+)?-default$"),
        ("Arch Linux", r"-(?:arch|zen|hardened)\d+-"),
        ("Gentoo", r"-gentoo"),
        ("Windows Subsystem for Linux", r"-microsoft-standard"),
        ("Ubuntu", r"-\d+-(?:generic|lowlatency|aws|azure|gcp|kvm|oem|oracle|raspi|realtime)"),
    )
)
# What their compilers call themselves, in banners and `.comment` sections.
COMPILERS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (flavour, re.compile(pattern))
    for flavour, pattern in (
        ("OpenWrt", r"\(OpenWrt "),
        ("Android", r"Android \(\d+|android-build@"),
        ("Ubuntu", r"\(Ubuntu |~\d\d\.\d\d"),
        ("Debian", r"\(Debian "),
        ("Red Hat", r"\(Red Hat "),
        ("openSUSE", r"\(SUSE "),
        ("Buildroot", r"\(Buildroot "),
    )
)


def flavour_of(release: str, compilers: str = "") -> str:
    """Return whose kernel a release is, or who built the compiler; `unknown` where nothing tells.

    >>> flavour_of("6.11.4-301.fc41.x86_64"), flavour_of("6.6.73", "(OpenWrt GCC 13.3.0 r1) 13.3.0")
    ('Fedora', 'OpenWrt')
    """
    for rows, text in ((RELEASES, release), (COMPILERS, compilers)):
        for flavour, pattern in rows:
            if pattern.search(text):
                return flavour
    return UNKNOWN
