# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of riscv64 as gdb calls them (riscv cpu, fpu and csr of its manual)."""

from __future__ import annotations

from archs.levels.debug import ZERO, Debug, Feature, Register, Sleeping

_GENERAL = (
    "zero ra sp gp tp t0 t1 t2 fp s1 a0 a1 a2 a3 a4 a5 a6 a7"
    " s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
).split()
_FLOATS = (
    "ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7"
    " fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 fs10 fs11 ft8 ft9 ft10 ft11"
).split()
_TYPES = {"ra": "code_ptr", "sp": "data_ptr", "gp": "data_ptr", "tp": "data_ptr"}

DEBUG = Debug(
    architecture="riscv:rv64",
    features=(
        Feature(
            "org.gnu.gdb.riscv.cpu",
            (
                *(
                    Register(name, 64, f"x{n}" if n else ZERO, _TYPES.get(name, "int"))
                    for n, name in enumerate(_GENERAL)
                ),
                Register("pc", type="code_ptr"),
            ),
        ),
        Feature(
            "org.gnu.gdb.riscv.fpu",
            (
                *(Register(n, source=f"f{k}", type="ieee_double") for k, n in enumerate(_FLOATS)),
                Register("fflags", 32, None, "int"),  # parts of fcsr
                Register("frm", 32, None, "int"),
                Register("fcsr", 32, type="int"),
            ),
        ),
    ),
    system="org.gnu.gdb.riscv.csr",
    counter="pc",
    stack="sp",
    columns=(1, 2),
    firsts=("ret_from_fork", "ret_from_fork_kernel_asm", "ret_from_fork_user_asm"),
    # arch/riscv/include/asm/processor.h: struct thread_struct.
    sleeping=Sleeping(
        registers={
            "pc": "thread.ra",  # where __switch_to() returns to
            "ra": "thread.ra",
            "sp": "thread.sp",
            "fp": "thread.s[0]",
            **{f"s{n}": f"thread.s[{n}]" for n in range(1, 12)},
        }
    ),
)
