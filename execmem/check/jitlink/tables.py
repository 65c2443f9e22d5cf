# SPDX-License-Identifier: GPL-2.0-or-later
"""What llvm-jitlink can be told, and which of it no module loader does.

Source: LLVM's llvm/tools/llvm-jitlink/llvm-jitlink.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

# Options with a value, and those without.
VALUED = frozenset(
    (
        *("check", "check-name", "abs", "define-abs", "alias", "entry", "triple", "num-threads"),
        *("slab-allocate", "slab-address", "slab-page-size", "show-graphs", "debug-only", "jd"),
        *("preload", "orc-runtime", "L", "l", "hidden-l", "weak-l", "load_hidden", "weak_library"),
        *("sectcreate", "harness", "oop-executor-connect", "use-memmgr", "symbolicate-with"),
        *("write-symtab", "speculate", "speculate-order", "record-lazy-execs", "args", "archive"),
    )
)
PLAIN = frozenset(
    (
        *("noexec", "phony-externals", "show-addrs", "show-entry-es", "show-init-es", "show-times"),
        *("show-relocated-section-contents", "show-linked-files", "perf-support", "vtune-support"),
        *("debugger-support", "no-process-syms", "all_load", "ObjC", "search-sys-lib", "lazy"),
        *("oop-executor", "add-self-relocations", "show-err-failed-to-materialize", "debug"),
    )
)
# Options that ask for what no module loader has, and what that is.
FOREIGN: Mapping[str, str] = {
    "orc-runtime": "loads the ORC runtime",
    "L": "looks libraries up",
    "l": "looks libraries up",
    "hidden-l": "looks libraries up",
    "weak-l": "looks libraries up",
    "load_hidden": "looks libraries up",
    "weak_library": "looks libraries up",
    "jd": "links into several libraries",
    "sectcreate": "makes sections of files",
    "harness": "lets objects of a test harness take the place of others",
    "oop-executor": "links into another process",
    "oop-executor-connect": "links into another process",
    "symbolicate-with": "explains back traces",
    "speculate": "links while it runs",
    "lazy": "links while it runs",
    "archive": "looks libraries up",
    "all_load": "looks libraries up",
    "add-self-relocations": "adds relocations of its own",
}
# What JITLink prints or does besides linking, which nothing here prints or does.
PRINTED: Mapping[str, str] = {
    "preload": "the libraries that JITLink loads first",
    "debug-only": "the debug output of JITLink",
    "debug": "the debug output of JITLink",
    "show-graphs": "the graphs of JITLink",
    "show-addrs": "the addresses that JITLink prints",
    "show-init-es": "the state that JITLink prints",
    "show-entry-es": "the state that JITLink prints",
    "show-times": "the times that JITLink prints",
    "show-linked-files": "the files that JITLink prints",
    "show-relocated-section-contents": "the contents that JITLink prints",
    "perf-support": "what JITLink writes for perf",
    "vtune-support": "what JITLink writes for VTune",
    "debugger-support": "what JITLink tells debuggers",
    "write-symtab": "the table of symbols that JITLink writes",
}
LOOKS = frozenset(
    ("llvm-objdump", "llvm-readobj", "llvm-readelf", "llvm-nm", "llvm-dwarfdump", "obj2yaml")
)
BAD: Mapping[str, str] = {
    "a module has at most": "more sections than a kernel takes",
    "COMMON": "COMMON symbols, which the kernel refuses (it is built with -fno-common)",
    "is writable and executable": "a section that is writable and executable, which kernels refuse",
}
