# SPDX-License-Identifier: GPL-2.0-or-later
"""Returns: compiled as jumps to a thunk, and turned into what this boot wants.

Every `ret` is a jump to one thunk, so that one place decides how functions return. Where
no mitigation needs that, the plain instruction takes the jump's place; otherwise the jump
leads to the thunk in force, which for some CPUs only returns in the lower half of a cache
line need (arch/x86/kernel/alternative.c: apply_returns, cpu_wants_rethunk_at).
"""

from __future__ import annotations

from loader.finalize.subject import Subject


def apply(subject: Subject) -> None:
    """Rewrite the jumps to the return thunk."""
    thunks = subject.rules.thunks
    sites = subject.sites(".return_sites")
    if thunks is not None and sites.size:
        code = thunks.returns(sites, subject.environment)
        subject.write(subject.offsets(sites, code.shape[1]), code)
