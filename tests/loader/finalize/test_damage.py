# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables full of nonsense are refused by an error with fields, whatever the environment."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archs.environment import Environment
from execmem.check.elfwriter import A, Rela, Sec, W
from loader.errors import LoadError, UnresolvedSymbols
from tests.support.finalising import TEXT, finalised, sites

TABLES = (
    "__ex_table .retpoline_sites .return_sites .altinstructions .call_sites .ibt_endbr_seal "
    ".smp_locks .orc_unwind .orc_unwind_ip __mcount_loc __jump_table .static_call_sites "
    "_ftrace_events _ftrace_eval_map ___srcu_struct_ptrs __dyndbg_classes"
).split()
NAMES = ("_text _etext _end pcpu_hot __x86_indirect_call_thunk_array __x86_return_thunk "
         "__x86_indirect_jump_thunk_array its_return_thunk pv_ops BUG_func").split()  # fmt: skip
SYMBOLS = {name: 0xFFFF_FFFF_8100_0000 + 64 * number for number, name in enumerate(NAMES)}
FEATURES = "always popcnt retpoline retpoline_lfence rethunk call_depth".split()


@settings(max_examples=150, deadline=None)
@given(
    text=st.binary(max_size=64),
    tables=st.dictionaries(st.sampled_from(TABLES), st.binary(min_size=1, max_size=64), max_size=4),
    near=st.sampled_from(TABLES),
    offsets=st.lists(st.integers(0, 80), max_size=8),
    features=st.sets(st.sampled_from(FEATURES)),
    thunk=st.sampled_from(["__x86_return_thunk", "its_return_thunk"]),
)
def test_damaged_tables_never_escape_as_another_error(text, tables, near, offsets, features, thunk):
    """Random tables, and tables that point at random code, finalise or are refused as LoadError."""
    sections = [Sec(name, data, A | W, align=8) for name, data in tables.items() if name != near]
    sections.append(sites(near, offsets, A | W))
    environment = Environment(
        features=frozenset(features), options={"return_thunk": thunk}, symbols=SYMBOLS
    )
    with suppress(LoadError):
        finalised(text, sections, environment)


@pytest.mark.parametrize(
    ("table", "features", "needed"),
    [(".return_sites", "rethunk", "__x86_return_thunk"), (".call_sites", "call_depth", "pcpu_hot")],
)
def test_a_symbol_that_features_need_is_named(table, features, needed):
    """An environment without the symbols of its own mitigations is refused, naming the symbol."""
    environment = Environment(features=frozenset(features.split()))
    relas = [Rela(1, 4, TEXT, 0)]
    with pytest.raises(UnresolvedSymbols, match=needed):
        finalised(b"\xe8\0\0\0\0", [sites(table, [0])], environment, relas=relas)
