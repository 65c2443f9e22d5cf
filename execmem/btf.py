# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF for other people's scripts; see `loader.btf`."""

from loader.btf import BadBtf, Btf
from loader.btf_records import Constant, Kind, Member, Parameter, Place, Type, Variable

__all__ = [
    "BadBtf",
    "Btf",
    "Constant",
    "Kind",
    "Member",
    "Parameter",
    "Place",
    "Type",
    "Variable",
]
