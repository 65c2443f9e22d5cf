# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of mips64el as gdb calls them (mips cpu, cp0 and fpu of its manual)."""

from __future__ import annotations

from archs.levels.debug import ZERO, Debug, Feature, Register

DEBUG = Debug(
    architecture="mips:isa64r2",
    features=(
        Feature(
            "org.gnu.gdb.mips.cpu",
            (
                *(Register(f"r{n}", source=str(n) if n else ZERO) for n in range(32)),
                Register("lo"),
                Register("hi"),
                Register("pc", type="code_ptr"),
            ),
        ),
        Feature(
            "org.gnu.gdb.mips.cp0",
            (
                Register("status", source="cp0_status"),
                Register("badvaddr", source=None),
                Register("cause", source=None),
            ),
        ),
        Feature(
            "org.gnu.gdb.mips.fpu",
            (
                *(Register(f"f{n}", type="ieee_double") for n in range(32)),
                Register("fcsr", group="float"),
                Register("fir", source=None, group="float"),
            ),
        ),
    ),
    system="org.execmem.mips.system",
    counter="pc",
    stack="r29",
    columns=(31, 29),
)
