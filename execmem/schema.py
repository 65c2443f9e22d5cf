# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in each command's JSON document: the keys, and what kind of value each has.

A key is named by its path: `modules[].regions[].address` is in each element of two lists, and
`relocations{}` stands for keys that depend on the input. `docs/json.md` is written from here
(`python -m execmem.reference`), and the tests hold every command's documents to it.
Long because it is every key of every document.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeAlias

import attrs

from execmem.documents import EXACT

_HEX = re.compile(r"-?0x(0|[1-9a-f][0-9a-f]{0,15})")
_BYTES = re.compile(r"(?:[0-9a-f]{2})*")


class ValueKind(enum.Enum):
    """What a value is; the name of each is how the documentation calls it."""

    HEX = "hex"
    COUNT = "number"
    REAL = "fraction"
    TEXT = "text"
    BYTES = "bytes"
    FLAG = "true/false"
    PART = "object"
    ANY = "any"


HEX, COUNT, REAL, TEXT, BYTES, FLAG, PART, ANY = ValueKind
Keys: TypeAlias = Mapping[str, tuple[ValueKind, str]]

NULL = "; null: "  # in a key's meaning, before the reason why it may be null
NO_LOAD = f"{NULL}the architecture has no level load"
REGION = f"size of the aligned region that both count in{NULL}from the instruction"
MODELS = "the kernel that is modelled, and with whose facts"
PACKED = "in base64, little-endian"
SOME = "; only "  # before the reason why it may be missing

ENVELOPE: Keys = {
    "execmem": (TEXT, "the version that wrote the document"),
    "notices[]": (TEXT, "`WHAT: TEXT`: what is assumed about a module or a tree, or not done"),
}

_REGISTERED: Keys = {
    "kind": (TEXT, "`shash`, `pci driver`, `misc device` ..."),
    "name": (TEXT, "what the module calls it"),
    "address": (HEX, "its structure, or a handle"),
    "owner": (TEXT, "the module"),
    "callbacks{}.address": (HEX, "a function that was registered, by member"),
    "callbacks{}.symbol": (TEXT, f"its name{NULL}nobody knows"),
    "{}": (ANY, "what else is known of this kind; 64-bit members are hex"),
}

_REPORT: Keys = {
    "name": (TEXT, "`KASAN: slab-out-of-bounds`, `lockdep: ...`, `WARN` ..."),
    "checker": (TEXT, "who found it: `KASAN`, `UBSAN`, `lockdep`, `CFI`, `list`, `WARN` ..."),
    "text": (TEXT, "the line that says so"),
    "where": (TEXT, "`symbol+0xoffset/0xsize [module]`; empty: not told"),
    "address": (HEX, f"what was accessed{NULL}that is not it"),
    "backtrace[]": (TEXT, "who called it, innermost first"),
    "sources[]": (TEXT, "lines of source of `where` and of each of `backtrace`, where known"),
}

_MODULE: Keys = {
    "name": (TEXT, "the module"),
    "arch": (TEXT, "`x86_64`, `arm64`, `riscv64`, `mips64el`"),
    "design": (TEXT, "of executable memory"),
    "state": (TEXT, "`coming`, `live` ..."),
    "regions[].type": (TEXT, "memory type"),
    "regions[].address": (HEX, "where it begins"),
    "regions[].size": (COUNT, "bytes"),
    "regions[].prot": (TEXT, "`R-X` and the like, or `freed`"),
    "regions[].leaf": (TEXT, "size of the leaf that maps it"),
    "regions[].fallback": (FLAG, "whether it lies in the fallback range"),
    "regions[].area": (HEX, f"where what is allocated with it begins{NULL}it is by itself"),
    "sections[].index": (COUNT, "in the file"),
    "sections[].name": (TEXT, "as the file says"),
    "sections[].type": (TEXT, "memory type, or `PERCPU`"),
    "sections[].address": (HEX, "where it lies"),
    "sections[].size": (COUNT, "bytes"),
    "relocations{}": (COUNT, "by type, how many"),
    "plt_slots": (COUNT, "PLT entries used"),
    "plt_reserved": (COUNT, "PLT entries for which there is room"),
    "depends[]": (TEXT, "modules whose symbols it uses"),
    "exports[]": (TEXT, "symbols that it exports"),
    "parameters[]": (TEXT, "parameters that it takes"),
    **{f"registered[].{path}": key for path, key in _REGISTERED.items()},
    "unknown_symbols[]": (TEXT, "kernel symbols that nobody has"),
    "init_result": (HEX, f"what init returned{NULL}it was not run to its end"),
    "init_fault": (TEXT, f"why init stopped{NULL}it did not"),
    "log[]": (TEXT, "lines of the kernel log"),
    "taints": (TEXT, "letters, as `/sys/module/NAME/taint` has them; empty for none"),
    "notices[]": (TEXT, "what is assumed about it, or not done"),
    "models": (TEXT, MODELS),
    "build.release": (TEXT, "of the kernel that it was built for"),
    "build.version[]": (COUNT, "its first two numbers"),
    "build.flavour": (TEXT, "whose kernel that is: a distribution, or `unknown`"),
    "build.page_size": (COUNT, "bytes of a page there"),
    "build.smp": (FLAG, "CONFIG_SMP"),
    "build.preemption": (TEXT, "`preempt_rt`, `preempt`, or empty"),
    "build.modversions": (FLAG, "CONFIG_MODVERSIONS"),
    "build.module_size": (COUNT, "bytes of struct module"),
    "build.types": (FLAG, "whether its types are known"),
    "build.exports": (FLAG, "whether its exports are known"),
    "build.sources{}": (TEXT, "of each of these, where it is known from; `modelled`: assumed"),
    "build.shown{}.value": (TEXT, "what its own bytes show, by the name of the fact"),
    "build.shown{}.source": (TEXT, "`sections` or `instruction bytes`"),
    "build.conflicts[]": (TEXT, "what two of them say differently"),
}

_BOOTED: Keys = {
    "name": (TEXT, "the module"),
    "arch": (TEXT, "`x86_64`, `arm64`, `riscv64`"),
    "kernel": (TEXT, "release of the kernel that booted"),
    "state": (TEXT, "`live`"),
    "regions[].type": (TEXT, "memory type; areas of kernels before 6.4 are told apart as well"),
    "regions[].address": (HEX, "where the kernel placed it"),
    "regions[].size": (COUNT, "bytes"),
    "regions[].freed": (FLAG, "whether it was only for init"),
    **{path: _MODULE[path] for path in _MODULE if path.startswith(("sections", "relocations"))},
    "depends[]": (TEXT, "modules that it uses, as the kernel has them"),
    "registered": (PART, f"what the kernel lists more than before{NULL}it was not asked"),
    "registered[].kind": (TEXT, "`shash`, `pci driver`, `misc device` ..."),
    "registered[].name": (TEXT, "what the kernel calls it"),
    "registered[].owner": (TEXT, "the module"),
    "registered[].{}": (ANY, "what else the list tells"),
    "init_result": (HEX, "what init returned"),
    "log[]": (TEXT, "lines of the kernel log"),
    **{f"reports[].{path}": key for path, key in _REPORT.items()},
    "taints": _MODULE["taints"],
    "models": (TEXT, MODELS),
}

_CRYPTO: Keys = {
    "algorithm": (TEXT, "its name"),
    "driver": (TEXT, "its driver's name"),
    "kind": (TEXT, "`shash`, `skcipher` ..."),
    "module": (TEXT, "who registered it; `vmlinux`: it is built into the booted kernel"),
    "arch": (TEXT, "architecture"),
    "models": (TEXT, MODELS),
    "result": (BYTES, "what was computed"),
    "log[]": (TEXT, "lines of the kernel log"),
}

_MISSING: Keys = {
    "missing{}": (COUNT, "calls of each kernel symbol that nobody has"),
    "stubbed{}": (COUNT, "calls of each symbol of `--stub`"),
}

_FINDINGS: Keys = {
    "findings[].kind": (TEXT, "`leak`, `lock imbalance` ..., with `--sanitize`"),
    "findings[].where": (TEXT, "the place, or what was called"),
    "findings[].reason": (TEXT, "what was done"),
    "findings[].address": (HEX, f"what it was done to{NULL}there is none"),
    "findings[].object": (PART, f"the heap object that it is about{NULL}it is about none"),
    "findings[].object.address": (HEX, "where it is"),
    "findings[].object.size": (COUNT, "bytes"),
    "findings[].object.allocated[]": (TEXT, "who did it, innermost first"),
    "findings[].object.freed[]": (TEXT, "who did it; empty: nobody did"),
    "findings[].backtrace[]": (TEXT, "who called the place, innermost first"),
}

_CALL: Keys = {
    "module": (TEXT, "the module"),
    "arch": (TEXT, "its architecture"),
    "models": (TEXT, MODELS),
    "function": (TEXT, "what was called"),
    "result": (HEX, f"what it returned{NULL}it did not"),
    "fault": (TEXT, f"why the guest stopped{NULL}it did not"),
    "outputs[]": (BYTES, "of each `out:` argument"),
    "log[]": (TEXT, "lines of the kernel log"),
}


def _spans(path: str, what: str) -> Keys:
    return {f"{path}.start": (HEX, what), f"{path}.end": (HEX, "the first address behind it")}


_LEAVES: Keys = {
    "leaves{}{}": (COUNT, "leaves that map a memory type, by size; a run is one"),
    "large_share{}": (REAL, "share of a memory type under large leaves, 0 to 1"),
}

_FILM: Keys = {
    "arch": (TEXT, "architecture"),
    "title": (TEXT, "what it is called"),
    "design": (TEXT, "design"),
    "workload": (TEXT, "workload"),
    "kaslr": (TEXT, f"the seed, in decimal{NULL}without `--kaslr`"),
    "text_poke": (FLAG, "whether finished text can be written"),
    "operations": (COUNT, "of the workload"),
    "page": (COUNT, "bytes of a page"),
    "large": (COUNT, "bytes of a large leaf, and of a chunk"),
    "memory": (COUNT, "bytes of physical memory"),
    "areas[].kind": (TEXT, "`module window`, `fallback window`, `vmalloc`"),
    "areas[].start": (HEX, "where it begins"),
    "areas[].end": (HEX, "the first address behind it"),
    "palette[].type": (TEXT, f"the memory type that lives in a page{NULL}none"),
    "palette[].leaf": (COUNT, "bytes of the leaf that maps it; 0: nothing is mapped"),
    "palette[].prot": (TEXT, "`R-X` and the like; empty: nothing is mapped"),
    "chunks[]": (HEX, "where each chunk that is told of begins"),
    "frames[].operation": (COUNT, "operations that are done"),
    "frames[].inside": (FLAG, "whether one more is under way"),
    "frames[].last": (TEXT, "what was done last; empty: nothing"),
    "frames[].measures{}": (ANY, "as in `runs[]`, of all until here; and `refused`"),
    "frames[].events{}": (COUNT, "what was counted since the frame before"),
    "frames[].chunks[].chunk": (COUNT, "number in `chunks` of one that changed"),
    "frames[].chunks[].runs[]": (COUNT, "number in `palette`, how many pages, and so on"),
    "frames[].chunks[].live": (COUNT, "bytes in use"),
    "frames[].direct_map[]": (
        COUNT,
        "of a block that changed: its number times 4, plus 1 where pages map it, 2 large leaves, 3 larger",
    ),
}

_SUMMARY: Keys = {
    "summary.modules": (COUNT, "rows"),
    "summary.outcomes{}": (COUNT, "modules by outcome"),
    "summary.archs{}": (COUNT, "modules by architecture"),
    "summary.relocations": (COUNT, "of all modules"),
    "summary.relocation_types{}": (COUNT, "by type"),
    "summary.plt_slots": (COUNT, "of all modules"),
    "summary.sizes{}": (COUNT, "bytes by memory type"),
    "summary.missing{}": (COUNT, "modules that called a symbol that nobody has"),
    "summary.errors[].error": (TEXT, "what errors have in common"),
    "summary.errors[].count": (COUNT, "how many"),
    "summary.errors[].first": (TEXT, "the first file"),
    "summary.slowest[].file": (TEXT, "the slowest modules"),
    "summary.slowest[].seconds": (REAL, "wall-clock time"),
    "summary.seconds": (REAL, "wall-clock time of all"),
    "summary.options{}": (ANY, f"of the sweep{SOME}in the file of `--output`"),
}

_LESSON: Keys = {
    "name": (TEXT, "the demo"),
    "title": (TEXT, "what it shows"),
    "number": (TEXT, "its place in the course, as `1.2`; empty where a package brings it"),
    "chapter": (TEXT, "the title of its chapter"),
    "question": (TEXT, "what a reader should wonder about first"),
    "idea": (TEXT, "the answer in a sentence"),
    "tasks[]": (TEXT, "tasks that are checked, by name"),
    "next[]": (TEXT, "what to type next"),
    "read": (TEXT, "a page of the documentation"),
    "minutes": (COUNT, "how long it takes in a class room"),
}
_PTDUMP = "page tables as the kernel prints them"
_TABLES: Keys = {"page_tables[]": (TEXT, f"{_PTDUMP}, or changes{SOME}with `--ptdump`")}

_CHAPTER: Keys = {
    "chapters[].number": (TEXT, "of a chapter of the course"),
    "chapters[].title": (TEXT, "what it is called"),
    "chapters[].about": (TEXT, "what it is about"),
}
_SCORE = f"what the answer costs, fewer is better{NULL}nothing that could be counted"
_TASK_ARCH = "tasks[].archs{}"

# Document -> its keys, beside those of the envelope.
_VIEW: Keys = {
    "views[].module": (TEXT, "the module"),
    "views[].arch": (TEXT, "architecture"),
    "views[].design": (TEXT, "design"),
    "views[].count": (COUNT, "relocations"),
}

DOCUMENTS: Mapping[str, Keys] = {
    "load": {**{f"modules[].{path}": key for path, key in _MODULE.items()}, **_TABLES},
    "load --kernel": {**{f"modules[].{path}": key for path, key in _BOOTED.items()}, **_TABLES},
    "load --all": {
        "runs[].arch": (TEXT, "architecture"),
        "runs[].design": (TEXT, "design"),
        "runs[].modules": (COUNT, "modules that were loaded"),
        "runs[].refused": (COUNT, "modules that were not"),
        "runs[].errors[].error": (TEXT, "what errors have in common"),
        "runs[].errors[].count": (COUNT, "how many"),
        "runs[].seconds": (REAL, "wall-clock time"),
        "runs[].guest_bytes": (COUNT, "guest memory in use"),
        "runs[].resident_bytes": (COUNT, "by which the process grew"),
        "runs[].bytes{}": (COUNT, "by memory type"),
        **{f"runs[].{path}": key for path, key in _LEAVES.items()},
        "runs[].padding_bytes": (COUNT, "held beyond what was asked for"),
        "runs[].fallbacks": (COUNT, "allocations from the fallback range"),
        "runs[].text[]": (HEX, "start and end of all text"),
        "runs[].plt_slots": (COUNT, "PLT entries used"),
        "runs[].modules_before_first_plt": (
            COUNT,
            f"modules loaded before the first PLT entry{NULL}there is none",
        ),
        "runs[].relocations{}.count": (COUNT, "by type, how many"),
        "runs[].relocations{}.lo": (HEX, "the lowest displacement"),
        "runs[].relocations{}.hi": (HEX, "the highest displacement"),
        "runs[].relocations{}.share": (REAL, "of its reach that is used, 0 to 1"),
    },
    "run": {
        **_MODULE,
        "function": (TEXT, f"what was called{NULL}init only"),
        "result": (HEX, f"what it returned{NULL}init only"),
        "outputs[]": (BYTES, "of each `out:` argument"),
        **_MISSING,
        "leaks[]": (TEXT, "memory not freed, with `--kasan`"),
        **_FINDINGS,
    },
    "run --kernel": {
        **_BOOTED,
        "function": (TEXT, f"what was called{NULL}init only"),
        "result": (HEX, f"what it returned{NULL}init only"),
        **_FINDINGS,
        "outputs[]": (BYTES, "of each `out:` argument"),
        "tainted": (
            TEXT,
            "how the kernel is tainted, in its words: `Not tainted`, `Tainted: G OE`",
        ),
    },
    "run --core": {
        "module": (TEXT, "whose function was called: a module, or `vmlinux`"),
        "arch": (TEXT, "`x86_64`, `arm64`, `riscv64`"),
        "kernel": (TEXT, "release of the kernel in the dump"),
        "modules[]": (TEXT, "that were loaded"),
        "function": (TEXT, "what was called"),
        "result": (HEX, "what it returned"),
        "outputs[]": (BYTES, "of each `out:` argument"),
    },
    "crypto": {
        **_CRYPTO,
        **_MISSING,
    },
    "crypto --kernel": {
        **_CRYPTO,
        "selftest": (TEXT, "what became of the kernel's own test of it: `passed`"),
    },
    "trace": {
        **_CALL,
        "sites": (COUNT, "call sites that were patched, or functions watched"),
        "calls[].depth": (COUNT, "0 for the outermost"),
        "calls[].module": (TEXT, "of the function; `vmlinux`: the booted kernel's"),
        "calls[].function": (TEXT, "its name"),
        "calls[].arguments[]": (HEX, "argument registers"),
        "calls[].text": (
            TEXT,
            "with arguments and result as C declares them, where types are known",
        ),
        "calls[].caller": (TEXT, "`function+0xoffset/0xsize [module]`, or `outside`"),
        "calls[].result": (HEX, f"result register{NULL}it did not return"),
        "calls[].instructions": (
            COUNT,
            f"from entry to return{NULL}it did not return, or the kernel is booted",
        ),
        "dropped": (COUNT, "calls beyond `--limit`"),
        "accesses[].pc": (HEX, "with `--memory`: an instruction that loaded or stored"),
        "accesses[].where": (TEXT, "its place"),
        "accesses[].kind": (TEXT, "`read` or `write`"),
        "accesses[].address": (HEX, "what was accessed"),
        "accesses[].named": (
            TEXT,
            "what it lies in: `stack`, `module:section+0xoffset`, or nothing",
        ),
        "accesses[].size": (COUNT, "bytes"),
        "accesses[].value": (HEX, "what was loaded or stored"),
        "accesses_dropped": (COUNT, "with `--memory`: accesses beyond `--limit`"),
        "restored": (FLAG, "text is as it was"),
    },
    "coverage": {
        **{name: what for name, what in _CALL.items() if name != "log[]"},
        "files[].file": (TEXT, "that was written"),
        "files[].count": (COUNT, "of what is in it"),
        "files[].what": (TEXT, "`blocks` or `lines`"),
        "files[].without[]": (TEXT, "module that is not in it"),
        "modules[].name": (TEXT, "of a module that was executed; `vmlinux`: the booted kernel"),
        "modules[].path": (TEXT, "its file's name"),
        "modules[].sha256": (TEXT, "of its file; empty for the kernel"),
        "modules[].sections[].index": (COUNT, "of a section of code"),
        "modules[].sections[].name": (TEXT, "its name"),
        "modules[].sections[].address": (HEX, "where it was"),
        "modules[].sections[].size": (COUNT, "bytes"),
        "modules[].functions[].name": (TEXT, "symbol of a function that was executed"),
        "modules[].functions[].section": (COUNT, "index of its section"),
        "modules[].functions[].offset": (COUNT, "in that"),
        "modules[].functions[].size": (COUNT, "bytes"),
        "modules[].functions[].begun": (COUNT, "times that its first instruction was executed"),
        "modules[].functions[].blocks": (COUNT, "blocks of it that were executed"),
        "modules[].functions[].executed": (COUNT, "bytes of it that were executed"),
        "modules[].blocks[].section": (COUNT, "index of a block's section"),
        "modules[].blocks[].offset": (COUNT, "in that"),
        "modules[].blocks[].size": (COUNT, "bytes"),
        "modules[].blocks[].instructions": (COUNT, "in it"),
        "modules[].blocks[].count": (COUNT, "times that it was begun"),
        "edges[].from.module": (TEXT, "whose instruction it was that sent control elsewhere"),
        "edges[].from.section": (COUNT, "index of its section"),
        "edges[].from.offset": (COUNT, "in that"),
        "edges[].to.module": (TEXT, "where it went on"),
        "edges[].to.section": (COUNT, "index of the section"),
        "edges[].to.offset": (COUNT, "in that"),
        "edges[].count": (COUNT, "times"),
        "elsewhere": (COUNT, "instructions that belong to none of the modules"),
    },
    "probe": {
        **_CALL,
        "address": (HEX, "of the instruction"),
        "where": (TEXT, "`function+0xoffset [module]`"),
        "instruction": (TEXT, "disassembled"),
        "hits[]{}": (HEX, "each register that was asked for, at each hit"),
        "restored": (FLAG, "text is as it was"),
    },
    "gdb": {
        **_CALL,
        "function": (TEXT, f"what was called{NULL}its init"),
        "address": (TEXT, "where a debugger was waited for"),
        "connected": (FLAG, "whether one came"),
        "ended": (FLAG, "whether it has ended the call"),
        "debugger[]": (TEXT, "lines that it printed, with `--batch`"),
    },
    "relocs": {
        "module": (TEXT, "the module"),
        "arch": (TEXT, "its architecture"),
        "models": (TEXT, MODELS),
        "relocations[].section": (TEXT, "section of the place"),
        "relocations[].offset": (COUNT, "in the section"),
        "relocations[].containing": (TEXT, "`function+0xoffset`"),
        "relocations[].place": (HEX, "P"),
        "relocations[].type": (TEXT, "the psABI's name"),
        "relocations[].formula": (TEXT, "what is computed"),
        "relocations[].computation": (TEXT, "with its numbers"),
        "relocations[].symbol": (TEXT, "name of the symbol"),
        "relocations[].symbol_value": (HEX, "S"),
        "relocations[].addend": (HEX, "A, signed"),
        "relocations[].target": (HEX, "S+A"),
        "relocations[].value": (HEX, f"the result: an address, or signed{NULL}there is none"),
        "relocations[].before": (BYTES, "at the place, in the file"),
        "relocations[].after": (BYTES, "at the place, in memory"),
        "relocations[].before_text": (TEXT, "as instructions or words"),
        "relocations[].after_text": (TEXT, "as instructions or words"),
        "relocations[].via": (PART, f"the entry below{NULL}the bytes lead to S+A"),
        "relocations[].via.section": (TEXT, "PLT or GOT section"),
        "relocations[].via.offset": (COUNT, "in it"),
        "relocations[].via.address": (HEX, "of the entry"),
        "relocations[].reason": (TEXT, "why it is not supported; empty for none"),
        "matching": (COUNT, "that the filters match"),
        "total": (COUNT, "in the module"),
        "counts{}": (COUNT, "of those that match, by type"),
    },
    "reach": {
        "rows[].arch": (TEXT, "architecture"),
        "rows[].instruction": (TEXT, "mnemonic"),
        "rows[].what": (TEXT, "`call`, `data` ..."),
        "rows[].lo": (HEX, "lowest displacement, as the psABI says"),
        "rows[].hi": (HEX, "first displacement that is too far"),
        "rows[].region": (HEX, REGION),
        "rows[].measured[]": (HEX, f"the same two, found by executing{NULL}not measured"),
        "rows[].step": (COUNT, "bytes between two displacements"),
        "rows[].example": (TEXT, "disassembled at its farthest"),
        "rows[].lands_past_lo": (HEX, f"where one step below leads{NULL}nowhere"),
        "rows[].lands_past_hi": (HEX, f"where one step above leads{NULL}nowhere"),
    },
    "race": {
        "runs[].arch": (TEXT, "architecture"),
        "runs[].mistake": (TEXT, f"that is planted{NULL}none is"),
        "runs[].title": (TEXT, "what is replaced"),
        "runs[].way": (
            TEXT,
            "`nosync`, `breakpoint` or `stop_machine`; `load`: of a text; `memory`",
        ),
        "runs[].cpus": (COUNT, "that patch or execute"),
        "runs[].visits": (COUNT, "how often each comes by that executes"),
        "runs[].limit": (COUNT, "states after which the search gives up"),
        "runs[].states": (COUNT, "that were met"),
        "runs[].steps": (COUNT, "between them that were taken"),
        "runs[].complete": (FLAG, "whether every interleaving was covered"),
        "runs[].expected[]": (TEXT, "outcomes that count, all if empty; a mistake must show one"),
        "runs[].as_expected": (FLAG, "the mistake was found, or all covered and nothing found"),
        "runs[].outcome": (TEXT, f"what goes wrong: `torn`, `stray` ...{NULL}nothing does"),
        "runs[].meaning": (TEXT, f"that in words{NULL}nothing does"),
        "runs[].text": (TEXT, f"where and how{NULL}nothing does"),
        "runs[].schedule[].cpu": (COUNT, "who does the step; those that patch come first"),
        "runs[].schedule[].step": (TEXT, "what it is"),
    },
    "race --graph": {
        "arch": (TEXT, "architecture"),
        "title": (TEXT, "what it is called"),
        "why": (TEXT, "why there is nothing to tell; empty: there is"),
        "kinds{}": (TEXT, "what goes wrong, by its short name"),
        "mechanism": (PART, f"how it writes finished text{NULL}it does not"),
        "mechanism.name": (TEXT, "the kernel's function"),
        "mechanism.granule": (COUNT, "bytes that are stored as a whole"),
        "mechanism.pages": (COUNT, "that the alias maps at a time"),
        "mechanism.private": (FLAG, "whether the alias has an address space of its own"),
        "mechanism.window": (HEX, "where the alias lies"),
        "mechanism.broadcast": (FLAG, "whether all CPUs are told when it goes"),
        "mechanism.sync": (TEXT, "what makes CPUs fetch anew"),
        "mechanism.live": (TEXT, "the functions that patch what is executed"),
        "mechanism.rule": (TEXT, "what may be written under other CPUs"),
        "mechanism.breakpoint": (BYTES, f"that stands meanwhile{NULL}CPUs are stopped instead"),
        "scenarios[].name": (TEXT, "the mistake; empty: there is none"),
        "scenarios[].title": (TEXT, "what is replaced, and how"),
        "scenarios[].patching": (COUNT, "CPUs that patch; their numbers come first"),
        "scenarios[].executing": (COUNT, "CPUs that execute"),
        "scenarios[].programs[][].does": (TEXT, "of each that patches: `Put`, `Sync` ..."),
        "scenarios[].programs[][].text": (TEXT, "the same in words"),
        "scenarios[].places[].address": (HEX, "a site"),
        "scenarios[].places[].cells[]": (COUNT, "numbers of its granules"),
        "scenarios[].places[].old": (BYTES, "what stands there"),
        "scenarios[].places[].new": (BYTES, "what replaces it"),
        "scenarios[].places[].others[]": (BYTES, "what else may stand there in the end"),
        "scenarios[].places[].old_text[][]": (ANY, "of each instruction its size and text"),
        "scenarios[].places[].new_text[][]": (ANY, "the same"),
        "scenarios[].granule": (COUNT, "bytes of a granule"),
        "scenarios[].frames[]": (HEX, "by granule: where it lies"),
        "scenarios[].states[].at[]": (COUNT, "by CPU that patches: its next step"),
        "scenarios[].states[].memory[]": (BYTES, "by granule: what stands there"),
        "scenarios[].states[].views[][][]": (
            BYTES,
            "by CPU that executes and granule: what else it may still see",
        ),
        "scenarios[].states[].aliases[].frame": (HEX, f"what it is mapped to{NULL}nothing"),
        "scenarios[].states[].aliases[].kept[][]": (HEX, "by CPU: what its TLB may still have"),
        "scenarios[].states[].rights.now": (TEXT, "what page tables allow: letters of `RWX`"),
        "scenarios[].states[].rights.kept[][]": (TEXT, "by CPU: what its TLB may still allow"),
        "scenarios[].states[].handler[]": (HEX, "sites that the trap handler knows"),
        "scenarios[].states[].done[]": (FLAG, "by site: whether only the new may be executed"),
        "scenarios[].states[].owner": (COUNT, f"who has text_mutex{NULL}nobody"),
        "scenarios[].states[].cpus[].site": (COUNT, f"where one stands{NULL}elsewhere"),
        "scenarios[].states[].cpus[].offset": (COUNT, "bytes behind the site's beginning"),
        "scenarios[].states[].cpus[].trapped": (FLAG, "whether it is in the trap handler"),
        "scenarios[].states[].cpus[].stopped": (FLAG, "whether it is kept from going on"),
        "scenarios[].states[].wrong[].kind": (TEXT, "what has gone wrong: a key of `kinds`"),
        "scenarios[].states[].wrong[].text": (TEXT, "where, and what"),
        "scenarios[].steps[][][]": (
            ANY,
            "by state: of each step the CPU, words, and the state that follows",
        ),
        "left_out[].name": (TEXT, "a mistake that is not told"),
        "left_out[].title": (TEXT, "what is replaced, and how"),
        "left_out[].states": (COUNT, "it has more than so many"),
    },
    "export": {
        "module": (TEXT, "its name"),
        "arch": (TEXT, "architecture"),
        "models": (TEXT, "which kernel is modelled, or has booted"),
        "files[].file": (TEXT, "that was written"),
        "files[].format": (TEXT, "`elf`, `bin`, `map` or `core`"),
        "files[].size": (COUNT, "bytes"),
    },
    "disasm": {
        "module": (TEXT, "its name"),
        "arch": (TEXT, "architecture"),
        "models": (TEXT, "which kernel is modelled"),
        "debug": (TEXT, f"file that says which lines of source{NULL}none does"),
        "no_debug": (TEXT, f"why none does{NULL}one does"),
        "functions[].name": (TEXT, "its symbol"),
        "functions[].section": (TEXT, "that it lies in"),
        "functions[].address": (HEX, "where it begins"),
        "functions[].size": (COUNT, "bytes"),
        "functions[].instructions[].address": (HEX, "where it is"),
        "functions[].instructions[].bytes": (BYTES, "in memory"),
        "functions[].instructions[].text": (TEXT, "empty for what is no instruction"),
        "functions[].instructions[].target": (TEXT, "name of an address in it; empty for none"),
        "functions[].instructions[].lines[].file": (TEXT, "as the compiler was given it"),
        "functions[].instructions[].lines[].line": (COUNT, f"from 1{NULL}code of no line"),
        "functions[].instructions[].lines[].column": (COUNT, f"from 1{NULL}not said"),
        "functions[].instructions[].lines[].function": (
            TEXT,
            "innermost first, then who called it",
        ),
        "functions[].instructions[].relocations[].place": (HEX, "first byte that it fills"),
        "functions[].instructions[].relocations[].type": (TEXT, "its type"),
        "functions[].instructions[].relocations[].symbol": (TEXT, "against what"),
        "functions[].instructions[].relocations[].addend": (HEX, "A"),
        "functions[].instructions[].relocations[].via": (TEXT, f"PLT or GOT entry{NULL}none"),
    },
    "functions": {
        "of": (TEXT, "the kernel's release, or the module's file"),
        "arch": (TEXT, "architecture"),
        "functions[].name": (TEXT, "its symbol"),
        "functions[].address": (HEX, f"of a kernel's{NULL}it is a module's"),
        "functions[].section": (TEXT, f"of a module's{NULL}it is a kernel's"),
        "functions[].offset": (HEX, f"in that section{NULL}it is a kernel's"),
        "functions[].size": (COUNT, f"bytes{NULL}not known"),
        "functions[].prototype": (TEXT, f"as C declares it{NULL}not known"),
        "types_unknown": (TEXT, f"what would make prototypes known{NULL}they are"),
    },
    "types": {
        "of": (TEXT, "the kernel's release, or the module's file"),
        "arch": (TEXT, "architecture"),
        "types[].name": (TEXT, "its name"),
        "types[].kind": (TEXT, "`struct`, `union`, `enum`, or what a typedef stands for"),
        "types[].size": (COUNT, "bytes"),
        "types[].definition": (TEXT, "as C defines it"),
        "types[].members[].depth": (COUNT, "unnamed structures that it lies in"),
        "types[].members[].text": (TEXT, "as C declares it; of an unnamed structure an end"),
        "types[].members[].offset": (COUNT, f"bytes from the start{NULL}a line without one"),
        "types[].members[].size": (COUNT, f"bytes{NULL}a line without one"),
        "types[].members[].bits": (COUNT, f"of a bit field{NULL}it is none"),
        "types[].members[].shift": (COUNT, f"its first bit at `offset`{NULL}it is none"),
        "types[].members[].hole": (COUNT, "unused bytes before it"),
        "names[]": (TEXT, "that a GLOB matches"),
    },
    "check": {
        "outcomes[].path": (TEXT, "file"),
        "outcomes[].arch": (TEXT, "architecture; empty where the file is no case"),
        "outcomes[].placement": (TEXT, "which link of the case; empty where there is one"),
        "outcomes[].outcome": (TEXT, "`passed`, `failed`, `skipped`, `foreign` (not a module's)"),
        "outcomes[].findings[].outcome": (
            TEXT,
            "the same, of one directive; `noted`: a linker is not asked, or differs as is known",
        ),
        "outcomes[].findings[].line": (COUNT, "where that stands; 0: the whole file"),
        "outcomes[].findings[].text": (TEXT, "the directive where it holds, else what is wrong"),
    },
    "check --random": {
        "random[].arch": (TEXT, "architecture"),
        "random[].cases": (COUNT, "cases that were made"),
        "random[].records": (COUNT, "relocations in them"),
        "random[].linked": (COUNT, "cases that were linked here"),
        "random[].refused": (COUNT, "cases of which a relocation was refused"),
        "random[].executed": (COUNT, "cases that the guest executed"),
        "random[].same{}": (COUNT, "by linker, cases that it sees alike"),
        "random[].unasked{}": (COUNT, "by linker, cases with a type that it does not know"),
        "random[].known[].linker": (TEXT, "linker"),
        "random[].known[].why": (TEXT, "why it is known to differ"),
        "random[].known[].cases": (COUNT, "where it does"),
        "random[].different[].linker": (TEXT, "linker; `here`: the guest, or nobody else"),
        "random[].different[].kind": (
            TEXT,
            "`bytes`, `links`, `refuses`, `executes` or `fails`: how it differs, which nobody explains",
        ),
        "random[].different[].reloc": (TEXT, "relocation"),
        "random[].different[].cases": (COUNT, "where it does"),
        "random[].found[].name": (TEXT, "name of the case file"),
        "random[].found[].text": (TEXT, "what differs"),
        "random[].found[].why": (TEXT, "why, where that is known; else empty"),
        "random[].found[].case": (TEXT, "the case file"),
    },
    "check --matrix": {
        "rows[].arch": (TEXT, "architecture"),
        "rows[].reloc": (TEXT, "relocation"),
        "rows[].in": (FLAG, "whether a case has it inside its reach"),
        "rows[].lo": (FLAG, f"at the lower end{NULL}there is none"),
        "rows[].hi": (FLAG, f"at the upper end{NULL}there is none"),
        "rows[].<lo": (FLAG, f"refused below{NULL}there is no below"),
        "rows[].>hi": (FLAG, f"refused above{NULL}there is no above"),
        "rows[].off": (FLAG, f"refused off its grid{NULL}it has none"),
        "rows[].plt": (FLAG, f"through a PLT entry{NULL}it has none"),
        "rows[].run": (FLAG, f"executed{NULL}it is data"),
        "rows[].linkers[].column": (TEXT, "a column that there is"),
        "rows[].linkers[].names[]": (TEXT, "the linkers that made the same there, or refused it"),
        "rows[].not_run": (
            TEXT,
            f"why no instruction of it is executed{NULL}nothing is against it",
        ),
        "rows[].holes[]": (TEXT, "columns that nobody has tried"),
        "outcomes[]": (PART, "of the cases that failed, as above"),
    },
    "archs": {
        "archs[].name": (TEXT, "architecture"),
        "archs[].aliases[]": (TEXT, "other names"),
        "archs[].machine": (COUNT, "e_machine"),
        "archs[].image": (PART, f"what stands below{NO_LOAD}"),
        **_spans("archs[].image", "the kernel image"),
        "archs[].direct_map": (HEX, f"where it begins{NO_LOAD}"),
        "archs[].vmalloc": (PART, f"what stands below{NO_LOAD}"),
        **_spans("archs[].vmalloc", "the vmalloc area"),
        **_spans("archs[].ranges{}", "by use, where executable memory may lie"),
        "archs[].ranges{}.fallback[]": (HEX, f"start and end of where else{NULL}nowhere"),
        "archs[].branches[].mnemonic": (TEXT, "instruction"),
        "archs[].branches[].what": (TEXT, "`call`, `data` ..."),
        "archs[].branches[].lo": (HEX, "lowest displacement"),
        "archs[].branches[].hi": (HEX, "first displacement that is too far"),
        "archs[].branches[].region": (HEX, REGION),
        "archs[].code_model": (TEXT, "of modules"),
        "archs[].plt_entry_bytes": (COUNT, f"size{NULL}no PLT"),
        "archs[].text_poke": (PART, f"what stands below{NULL}none"),
        "archs[].text_poke.name": (TEXT, "the kernel's name"),
        "archs[].text_poke.pages": (COUNT, "mapped at once"),
        "archs[].text_poke.granule": (COUNT, "bytes written at once"),
        "archs[].text_poke.window": (HEX, "where the alias is mapped"),
        "archs[].text_poke.private": (FLAG, "in an address space of its own"),
        "archs[].text_poke.flushes_all_cpus": (FLAG, "or only its own CPU"),
        "archs[].text_poke.sync": (TEXT, "how other CPUs learn of it"),
        "archs[].live_patch": (PART, f"what stands below{NULL}none"),
        "archs[].live_patch.name": (TEXT, "the kernel's name"),
        "archs[].live_patch.breakpoint": (BYTES, f"instruction{NULL}none is used"),
        "archs[].live_patch.rule": (TEXT, "what may be written under other CPUs"),
        "archs[].trap": (BYTES, f"instruction that fills unused text{NO_LOAD}"),
        "archs[].relocations": (COUNT, "types that are applied"),
        "archs[].relocations_refused": (COUNT, "types that are refused by name"),
    },
    "kernel": {
        "release": (TEXT, f"as `uname -r` prints it{NULL}not known"),
        "banner": (TEXT, f"what it says of itself{NULL}not known"),
        "build_id": (TEXT, f"the linker's, in hex digits{NULL}not known"),
        "arch": (TEXT, "`x86_64`, `arm64`, `riscv64`, `mips64el`"),
        "page_size": (COUNT, f"bytes{NULL}not known"),
        "wrappers[]": (TEXT, "what was around it, outermost first"),
        "image[]": (HEX, "start and end where it is linked to"),
        "percpu": (PART, f"start and end of per-cpu variables{NULL}not known"),
        "percpu[]": (HEX, "the same"),
        "symbols": (COUNT, "entries of its symbol table"),
        "exports": (COUNT, "symbols that modules may use"),
        "exports_gpl": (COUNT, "of these, GPL-only"),
        "exports_with_crc": (COUNT, "of these, with a checksum"),
        "namespaces[]": (TEXT, "of exports"),
        "types": (COUNT, "records of its BTF"),
        "type_kinds{}": (COUNT, "by kind, how many"),
        "config": (COUNT, f"options of its configuration{NULL}not known"),
        "sources{}": (TEXT, "what was found, and where"),
        "unknown{}": (TEXT, "what is not known, and what would make it known"),
        "options{}": (TEXT, f"what --config asked for{NULL}not set"),
        "definitions{}": (TEXT, f"what --type asked for, as C{NULL}no such type"),
        "places{}.address": (HEX, f"what --symbol asked for{NULL}no such symbol"),
        "places{}.exported": (FLAG, "whether modules may use it"),
        "places{}.gpl": (FLAG, f"whether only GPL modules may{NULL}not exported"),
        "places{}.crc": (HEX, f"its checksum{NULL}not known"),
        "places{}.namespace": (TEXT, f"that must be imported, empty for none{NULL}not exported"),
        "places{}.prototype": (TEXT, f"as C{NULL}its types are not known"),
    },
    "kernel --ptdump": {
        "release": (TEXT, "as `uname -r` prints it"),
        "arch": (TEXT, "`x86_64`, `arm64`, `riscv64`"),
        "lines[].start": (HEX, "the first address of entries that are alike"),
        "lines[].end": (HEX, "behind the last one; 0 behind the last of all"),
        "lines[].level": (TEXT, "as the kernel calls it"),
        "lines[].page": (COUNT, "bytes that an entry maps"),
        "lines[].physical": (HEX, f"where the first entry leads{NULL}a hole"),
        "lines[].flags": (TEXT, "as the kernel prints them"),
        "lines[].under": (TEXT, "the marker that it stands under"),
        "runs[].address": (
            HEX,
            "of memory in a row by both addresses; tables that are shared once",
        ),
        "runs[].physical": (HEX, "where it lies"),
        "runs[].size": (COUNT, "bytes"),
        "changes": (PART, f"lines of one only, behind `-` or `+`{NULL}no `--since`"),
        "changes[]": (TEXT, "the same"),
    },
    "explain": {
        "file": (TEXT, "the page"),
        **_VIEW,
    },
    "explain, without --html": {
        **_VIEW,
        "views[].title": (TEXT, "the architecture, as people write it"),
        "views[].kaslr": (TEXT, f"by what seed addresses are random{NULL}they are not"),
        "views[].bands[].kind": (TEXT, "a large area: `kernel image`, `module window` ..."),
        "views[].bands[].start": (HEX, "where it begins"),
        "views[].bands[].end": (HEX, "its end"),
        "views[].bands[].size": (TEXT, "its size"),
        "views[].branches[].mnemonic": (TEXT, "an instruction that branches"),
        "views[].branches[].lo": (HEX, "the least displacement of it"),
        "views[].branches[].hi": (HEX, "the end of its displacements"),
        "views[].branches[].what": (TEXT, "what for"),
        "views[].code_model": (TEXT, "of the architecture's modules"),
        "views[].plt": (ANY, f"size, order and reach of a PLT entry{NULL}it has none"),
        "views[].rows{}": (ANY, "by number of a type: name, formula, terms, reach, fields"),
        "views[].regions[].type": (TEXT, "memory type"),
        "views[].regions[].group": (COUNT, "1: moves with text; 2: with data"),
        "views[].regions[].start": (HEX, "where it begins"),
        "views[].regions[].size": (COUNT, "bytes"),
        "views[].regions[].prot": (TEXT, "its final protection"),
        "views[].regions[].freed": (FLAG, "whether it was only for init"),
        "views[].sections[].index": (COUNT, "in the file"),
        "views[].sections[].name": (TEXT, "as the file says"),
        "views[].sections[].type": (TEXT, "memory type, or `PERCPU`"),
        "views[].sections[].group": (COUNT, "0: stays; 1: moves with text; 2: with data"),
        "views[].sections[].start": (HEX, "where it lies"),
        "views[].sections[].size": (COUNT, "bytes"),
        "views[].sections[].exec": (FLAG, "whether it is code"),
        "views[].functions[]": (ANY, "section, offset, size and name of a function"),
        "views[].names[]": (TEXT, "symbols that relocations refer to"),
        **{
            f"views[].{name}": (TEXT, f"of each relocation, {PACKED}: {what}")
            for name, what in {
                "section": "its section's index, 16 bits",
                "offset": "where in it, 32 bits",
                "type": "its type's number, 16 bits",
                "symbol": "index of `names`, 32 bits",
                "addend": "64 bits, signed",
                "target": "S+A, 64 bits",
                "place_group": "what its place moves with, 8 bits",
                "target_group": "what its target moves with, 8 bits",
                "x": "X, 64 bits",
                "high": "which one has its high part, or -1; 32 bits",
                "a": "what X gains by a byte that text moves, 8 bits, signed",
                "b": "and by a byte that data moves",
                "code_start": "offset of the instruction, 32 bits",
                "code_size": "its bytes, 0: data; 8 bits",
                "before": "index of `texts` before, or -1; 32 bits",
                "after": "index of `texts` after",
                "order": "those that are checked, by class and X; 32 bits",
            }.items()
        },
        "views[].classes[].row": (COUNT, "type of relocations that move alike"),
        "views[].classes[].a": (COUNT, "as `a`"),
        "views[].classes[].b": (COUNT, "as `b`"),
        "views[].classes[].start": (COUNT, "first of `order`"),
        "views[].classes[].end": (COUNT, "behind the last"),
        "views[].entries[].init": (FLAG, "whether a PLT is for init's branches"),
        "views[].entries[].name": (TEXT, "its section"),
        "views[].entries[].section": (COUNT, "its index"),
        "views[].entries[].start": (HEX, "where entries begin"),
        "views[].entries[].reserved": (COUNT, "entries for which there is room"),
        "views[].entries[].visits": (TEXT, f"branches in the loader's order, {PACKED}: 32 bits"),
        "views[].entries[].slots": (HEX, f"words that entries read{NULL}they hold their target"),
        "views[].entries[].slots_group": (COUNT, "what those move with"),
        "views[].contents{}": (TEXT, f"by section, its bytes before relocation, {PACKED}"),
        "views[].texts[]": (TEXT, "disassembly of instructions"),
        "views[].steps[].name": (TEXT, "a phase of the load"),
        "views[].steps[].what": (TEXT, "what it does"),
        "views[].steps[].spans[].start": (HEX, "where a run of equal leaves begins"),
        "views[].steps[].spans[].end": (HEX, "its end"),
        "views[].steps[].spans[].leaf": (TEXT, "size of its leaves"),
        "views[].steps[].spans[].prot": (TEXT, "`R-X` and the like"),
        "views[].steps[].spans[].own": (FLAG, "whether it holds some of the module"),
        "views[].steps[].events{}": (COUNT, "what was counted during it"),
    },
    "serve": {
        "url": (TEXT, "where it listens"),
        "sandbox[]": (TEXT, "what processes that answer gave up"),
    },
    "diff": {
        "runs[].kernel": (TEXT, "release of the kernel that booted"),
        "runs[].arch": (TEXT, "architecture"),
        "runs[].run": (TEXT, "the boot"),
        "runs[].modules": (COUNT, "modules that were compared"),
        "runs[].sections": (COUNT, "sections that were compared"),
        "runs[].bytes": (COUNT, "bytes that were compared"),
        "runs[].relocations": (COUNT, "relocations that were applied"),
        "runs[].sections_laid_out_differently": (COUNT, "other size or place"),
        "runs[].reloc_bytes_differing": (COUNT, "after relocation"),
        "runs[].text_bytes_differing": (COUNT, "in the end"),
        "runs[].rodata_bytes_differing": (COUNT, "in the end"),
        "runs[].data_bytes_differing": (COUNT, "in the end"),
        "runs[].unexplained": (COUNT, "bytes that no mechanism decides"),
        "runs[].mechanisms{}{}.changed": (COUNT, "bytes that a mechanism changed, by kind"),
        "runs[].mechanisms{}{}.differing": (COUNT, "bytes of it that differ, by kind"),
        "runs[].sections_known_by_hash_only": (COUNT, "that differ"),
        "runs[].skipped[].module": (TEXT, "not compared"),
        "runs[].skipped[].reason": (TEXT, "why"),
        "runs[].refused[].module": (TEXT, f"whose load the kernel ended{SOME}with `--kernel`"),
        "runs[].refused[].at": (TEXT, "`load`, or `init`: until then it is compared"),
        "runs[].refused[].errno": (COUNT, "what the system call returned; 0: it died"),
        "runs[].refused[].error": (TEXT, "its name, or the kind of fault"),
        "runs[].refused[].said": (TEXT, "the kernel's last line meanwhile, or the fault"),
        "runs[].refused[].log[]": (TEXT, "all its lines"),
        "runs[].differences[].module": (TEXT, f"of each range{SOME}for modules that are named"),
        "runs[].differences[].point": (TEXT, "`relocated` or `final`"),
        "runs[].differences[].section": (TEXT, "where"),
        "runs[].differences[].offset": (COUNT, "in the section"),
        "runs[].differences[].address": (HEX, "in the kernel"),
        "runs[].differences[].bytes": (COUNT, "how many differ"),
        "runs[].differences[].symbol": (TEXT, "`symbol+0xoffset`"),
        "runs[].differences[].mechanism": (TEXT, "who decides; empty for nobody"),
        "runs[].differences[].ours": (BYTES, "the first 32"),
        "runs[].differences[].kernel": (BYTES, f"the first 32{NULL}only a hash is known"),
        "runs[].differences[].ours_text": (TEXT, "as instructions"),
        "runs[].differences[].kernel_text": (TEXT, "as instructions"),
        "placement[].arch": (TEXT, f"architecture{SOME}with `--placement`"),
        "placement[].run": (TEXT, "the boot"),
        "placement[].modules": (COUNT, "modules that were recorded"),
        "placement[].modules_not_recorded": (COUNT, "of which there is a file"),
        "placement[].modules_unknown": (COUNT, "of which address and size are known"),
        "placement[].regions": (COUNT, "recorded"),
        "placement[].regions_equal": (COUNT, "predicted"),
        "placement[].slide": (
            HEX,
            f"how far KASLR moved the range, by its first module{NULL}it did not",
        ),
        "placement[].deviations[].module": (TEXT, "whose region it is"),
        "placement[].deviations[].type": (TEXT, "memory type"),
        "placement[].deviations[].predicted[]": (ANY, "address (hex) and size (number)"),
        "placement[].deviations[].recorded[]": (ANY, "address (hex) and size (number)"),
        "placement[].deviations[].reason": (TEXT, "why"),
        "placement[].deviations[].because_of[]": (TEXT, "modules that it is about"),
    },
    "compare --list": {
        "designs[].name": (TEXT, "design"),
        "designs[].summary": (TEXT, "what it does"),
        "designs[].origin": (TEXT, "the package that brings it; empty: execmem"),
        "designs[].error": (TEXT, "why it cannot be used; empty: it can"),
        "designs[].default": (FLAG, "whether machines use it where none is named"),
        "workloads[].name": (TEXT, "workload"),
        "workloads[].summary": (TEXT, "what happens"),
    },
    "compare": {
        "errors[].arch": (TEXT, "architecture of a run that a design ended"),
        "errors[].design": (TEXT, "design"),
        "errors[].workload": (TEXT, "workload"),
        "errors[].error": (TEXT, "what the design did, at which operation"),
        "frontier[].arch": (TEXT, "architecture"),
        "frontier[].workload": (TEXT, "workload"),
        "frontier[].design": (TEXT, "a design that loaded everything"),
        "frontier[].values{}": (COUNT, "by column of the comparison; less is better"),
        "frontier[].best[]": (TEXT, "columns in which no design has less"),
        "frontier[].beaten_by[]": (TEXT, "designs that have no more of anything, and less of one"),
        "runs[].arch": (TEXT, "architecture"),
        "runs[].design": (TEXT, "design"),
        "runs[].workload": (TEXT, "workload"),
        "runs[].page_size": (COUNT, "bytes of a page"),
        "runs[].page_tables[]": (TEXT, f"{_PTDUMP}{SOME}with `--ptdump`"),
        "runs[].modules": (COUNT, "modules that were loaded"),
        "runs[].modules_before_first_plt": (COUNT, "before the first that needs a PLT entry"),
        "runs[].plt_modules": (COUNT, "modules that need PLT entries"),
        "runs[].plt_slots": (COUNT, "entries that they reserve"),
        "runs[].out_of_reach": (COUNT, "trampolines that do not reach all of the image"),
        **{f"runs[].{path}": key for path, key in _LEAVES.items()},
        "runs[].leaf_entries{}": (COUNT, "entries of page tables that the leaves of a type are"),
        "runs[].run_share{}": (REAL, "share of a memory type under runs of pages, 0 to 1"),
        "runs[].direct_map_splits": (COUNT, "direct-map leaves that were split"),
        "runs[].direct_map_before{}": (COUNT, "its leaves by size"),
        "runs[].direct_map_after{}": (COUNT, "its leaves by size"),
        "runs[].run_splits": (COUNT, "runs that were split, outside the direct map"),
        "runs[].direct_map_run_splits": (COUNT, "runs of the direct map that were split"),
        "runs[].run_entries": (COUNT, "entries that were written again to split or make runs"),
        "runs[].tlb_flushes": (COUNT, "all"),
        "runs[].tlb_flushes_local": (COUNT, "of one CPU"),
        "runs[].tlb_flushes_all": (COUNT, "of all CPUs"),
        "runs[].flushes.steps{}.local": (COUNT, "flushes of one CPU, by step"),
        "runs[].flushes.steps{}.all": (COUNT, "flushes of all CPUs, by step"),
        "runs[].flushes.full": (COUNT, "of all CPUs, and of so many pages that whole TLBs go"),
        "runs[].flushes.instructions": (COUNT, "invalidations that one CPU executes"),
        "runs[].flushes.rounds": (COUNT, "flushes that interrupt every other CPU"),
        "runs[].flushes.targets": (COUNT, "CPUs that are interrupted, over all rounds"),
        "runs[].cpus": (COUNT, "online CPUs"),
        "runs[].icache_syncs": (COUNT, "times that all CPUs were to fetch what was written"),
        "runs[].entries_made": (COUNT, "entries of page tables that became valid"),
        "runs[].entries_cleared": (COUNT, "entries of page tables that became invalid"),
        "runs[].entries_changed": (COUNT, "entries of page tables whose rights changed"),
        "runs[].leaves_resized": (COUNT, "leaves that were split or made large while mapped"),
        "runs[].pokes": (COUNT, "pokes"),
        "runs[].poked_bytes": (COUNT, "bytes poked"),
        "runs[].padding_bytes": (COUNT, "held beyond what was asked for"),
        "runs[].free_mapped_bytes": (COUNT, "mapped and unused"),
        "runs[].largest_free_share": (REAL, "largest free run, 0 to 1"),
        "runs[].chunks_pinned": (COUNT, "chunks (2 MiB) held by something tiny"),
        "runs[].window_used": (COUNT, "bytes of the module window"),
        "runs[].fallback_used": (COUNT, "bytes of the fallback window"),
        "runs[].fallbacks": (COUNT, "allocations from the fallback window"),
        "runs[].refills": (COUNT, "chunks that were taken"),
        "runs[].chunks_returned": (COUNT, "chunks that were given back"),
        "runs[].guard_pages": (COUNT, "guard pages"),
        "runs[].live_bytes": (COUNT, "in use at the end"),
        "runs[].itlb_misses{}": (REAL, "of the first level, by core, per million calls"),
        "runs[].itlb_walks{}": (REAL, "misses of the last level, by core, per million calls"),
        "runs[].walk_reads{}[]": (REAL, "what these read of page tables, at least and at most"),
        "runs[].failures[].operation": (COUNT, "place in the workload"),
        "runs[].failures[].who": (TEXT, "module or consumer"),
        "runs[].failures[].what": (TEXT, "memory type"),
        "runs[].failures[].size": (COUNT, "bytes"),
        "runs[].failures[].reason": (TEXT, "why it was refused"),
        "runs[].operations": (COUNT, "calls of alloc and free"),
        "runs[].seconds": (REAL, "wall-clock time"),
        "runs[].microseconds_per_operation": (REAL, "wall-clock time"),
        "runs[].film": (PART, f"the run as a film{SOME}with `--film`"),
        **{f"runs[].film.{path}": key for path, key in _FILM.items()},
    },
    "kunit": {
        "passed": (FLAG, "whether the exit code is 0"),
        "counts{}": (COUNT, "tests of all modules, by status"),
        "modules[].name": (TEXT, "the module, or `built-in`"),
        "modules[].outcome": (
            TEXT,
            "`passed`, `failed`, `crashed`, `skipped`, `refused` (it did not load), `no tests`",
        ),
        "modules[].error": (TEXT, f"why it was refused, crashed or skipped{NULL}none of them"),
        "modules[].seconds": (REAL, "wall-clock time"),
        "modules[].counts{}": (COUNT, "its tests, by status"),
        "modules[].problems[]": (TEXT, "where what it printed is not as KTAP has it"),
        "modules[].tests[].name": (TEXT, "`SUITE.TEST`, and parameters behind another dot"),
        "modules[].tests[].status": (TEXT, "`passed`, `failed`, `skipped`, `crashed`"),
        "modules[].tests[].directive": (TEXT, "`SKIP`, `TIMEOUT` ...; empty for none"),
        "modules[].tests[].diagnostic": (TEXT, "what follows it"),
        "modules[].tests[].problems[]": (TEXT, "where it is not as KTAP has it"),
        "modules[].tests[].log[]": (TEXT, "lines before its result"),
        **{f"modules[].reports[].{path}": key for path, key in _REPORT.items()},
        "modules[].log[]": (TEXT, "the kernel's log meanwhile, where something is wrong"),
    },
    "fuzz": {
        "target": (TEXT, "what was fuzzed"),
        "models": (TEXT, MODELS),
        "seed": (COUNT, "what all that is random followed from"),
        "executions": (COUNT, "inputs that were run, in earlier runs into the same folder, too"),
        "seconds": (REAL, "wall-clock time of this run"),
        "coverage": (TEXT, "what is told apart: `blocks`, or `edges` with how often"),
        "covered": (COUNT, "how many of them were come to"),
        "corpus[]": (BYTES, "inputs that came to new code, in the order in which they were found"),
        "crashes[].kind": (TEXT, "`read`, `write`, `hang`, `out-of-bounds access` ..."),
        "crashes[].key": (TEXT, "what makes it the same as another: kind, functions, modules"),
        "crashes[].where": (TEXT, "`symbol+0xoffset [module]`"),
        "crashes[].backtrace[]": (TEXT, "who called it, innermost first, where the kernel says so"),
        "crashes[].text": (TEXT, "what was said of it"),
        "crashes[].input": (BYTES, "the smallest input that was found"),
        "crashes[].folder": (TEXT, f"where it is kept{NULL}nowhere: without --out"),
        "spoiled": (TEXT, f"why a machine had to be set up anew{NULL}none had"),
    },
    "fuzz replay": {
        "call": (TEXT, "what was called"),
        "same": (FLAG, "whether it goes wrong as it did"),
        "key": (TEXT, f"what goes wrong{NULL}nothing"),
        "text": (TEXT, f"what is said of it{NULL}nothing goes wrong"),
    },
    "fuzz report": {
        "replay.execmem": (TEXT, "the version that found it"),
        "replay.setting{}": (ANY, "what was fuzzed"),
        "replay.module_sha256": (TEXT, "of the module's file, where it was given as one"),
        "replay.machine": (TEXT, "the kernel, and the architecture"),
        "replay.kind": (TEXT, "as in `fuzz`"),
        "replay.key": (TEXT, "as in `fuzz`"),
        "replay.where": (TEXT, "as in `fuzz`"),
        "replay.backtrace[]": (TEXT, "as in `fuzz`"),
        "replay.sources[]": (TEXT, "lines of source of `where` and of each of `backtrace`"),
        "replay.text": (TEXT, "as in `fuzz`"),
        "replay.input": (BYTES, "the input"),
    },
    "sweep": {
        "arch": (TEXT, f"architecture{NULL}unknown"),
        "module": (TEXT, "name"),
        "file": (TEXT, "path, or `ARCHIVE:PATH`"),
        "outcome": (TEXT, "`ok`, `init-ok`, `init-error`, `fault`, `refused`"),
        "error": (TEXT, f"why{NULL}nothing is wrong"),
        "relocations": (COUNT, "how many"),
        "relocation_types{}": (COUNT, "by type"),
        "plt_slots": (COUNT, "PLT entries used"),
        "sizes{}": (COUNT, "bytes by memory type"),
        "missing[]": (TEXT, "symbols that were called and that nobody has"),
        "registered[].kind": (TEXT, "of what its init registered: `shash`, `misc device` ..."),
        "registered[].name": (TEXT, "what that is called"),
        "log[]": (TEXT, f"lines of the kernel log{SOME}of booted kernels"),
        "models": (TEXT, f"{MODELS}{NULL}no machine was made"),
        "sandbox": (
            TEXT,
            f"of its process: `whole`, or `partial` as notices say{NULL}there was none",
        ),
        "seconds": (REAL, "wall-clock time"),
        "options{}": (ANY, "of the sweep"),
    },
    "sweep, last line": _SUMMARY,
    "demo": {
        **_CHAPTER,
        **{f"demos[].{key}": each for key, each in _LESSON.items()},
    },
    "demo NAME": {
        **_LESSON,
        "facts": (ANY, "the numbers that the story rests on"),
        "parts[].kind": (TEXT, "`heading`, `text`, `lines` or `grid`"),
        "parts[].lines[]": (TEXT, "what it says, line by line"),
        "parts[].columns[]": (TEXT, f"of a table: names{SOME}of `grid`"),
        "parts[].rows[]": (ANY, f"of a table: a list of texts{SOME}of `grid`"),
        "picture": (TEXT, f"a slide, as SVG{NULL}it is no lesson of the course"),
    },
    "course": {
        **_CHAPTER,
        **{f"lessons[].{key}": each for key, each in _LESSON.items()},
        "tasks[].name": (TEXT, "the task"),
        "tasks[].title": (TEXT, "what to do, in a line"),
        "tasks[].lesson": (TEXT, "the lesson before it"),
        "tasks[].number": (TEXT, "of that lesson"),
        "tasks[].chapter": (TEXT, "of that lesson"),
        "tasks[].unit": (TEXT, "what the score counts"),
        "tasks[].file": (TEXT, "how an answer's file is called"),
        "tasks[].hints[]": (TEXT, "from a nudge to nearly all of it"),
        f"{_TASK_ARCH}.text": (TEXT, "all that one needs to know"),
        f"{_TASK_ARCH}.template": (TEXT, "the file before anything is answered"),
        f"{_TASK_ARCH}.best": (COUNT, "the best score that is known"),
        f"{_TASK_ARCH}.passed": (FLAG, "whether it was passed here"),
        f"{_TASK_ARCH}.score": (COUNT, f"the best that was reached here{NULL}none was"),
    },
    "course, new": {
        "file": (TEXT, "what was written"),
        "task": (TEXT, "the task"),
        "arch": (TEXT, "for which architecture"),
    },
    "course, hint": {
        "task": (TEXT, "the task"),
        "number": (COUNT, "of the hint"),
        "hints": (COUNT, "how many there are"),
        "text": (TEXT, "the hint"),
    },
    "course, check": {
        "verdicts[].file": (TEXT, "the answer's name"),
        "verdicts[].task": (TEXT, "the task"),
        "verdicts[].arch": (TEXT, "for which architecture"),
        "verdicts[].passed": (FLAG, "whether all that is asked was found"),
        "verdicts[].checks[].what": (TEXT, "what is asked"),
        "verdicts[].checks[].found": (TEXT, "what was found"),
        "verdicts[].checks[].wanted": (TEXT, "what is wanted"),
        "verdicts[].checks[].passed": (FLAG, "whether that is enough"),
        "verdicts[].score": (COUNT, _SCORE),
        "verdicts[].best": (COUNT, "the best score that is known"),
        "verdicts[].unit": (TEXT, "what the score counts"),
    },
}


# A kernel beside designs, which are measured as in other runs.
_BESIDE: Keys = {
    "workload": (TEXT, "what was done"),
    "errors[]": (TEXT, "what a design did, at which operation"),
    "measured.kernel": (TEXT, "release of the kernel that booted"),
    "measured.arch": (TEXT, "architecture"),
    "measured.modules": (COUNT, "modules that were loaded"),
    "measured.refused{}": (TEXT, "modules that were not, and what the kernel said"),
    "measured.passed_over": (
        COUNT,
        "operations that were not done: thunks, or what the kernel lacks",
    ),
    "measured.operations": (COUNT, "operations of the workload"),
    "measured.done": (COUNT, "operations that were gone through"),
    "measured.interrupted": (FLAG, "whether an interrupt ended it before all were"),
    "measured.ended": (TEXT, "what the kernel did not come back from, where that ended it"),
    "measured.leaves{}{}": (COUNT, "leaves that map a memory type, by size"),
    "measured.large_share{}": (REAL, "share of a memory type under large leaves, 0 to 1"),
    "measured.direct_map_before{}": (COUNT, "leaves of the direct map by size, before"),
    "measured.direct_map_after{}": (COUNT, "the same at the end"),
    "measured.direct_map_splits": (COUNT, "large ones that are gone"),
    "measured.page": (COUNT, "bytes of a page"),
    "measured.flushes{}.pages": (COUNT, "by step: pages dropped one by one, of modules' memory"),
    "measured.flushes{}.whole": (REAL, "times that everything was dropped for it"),
    "measured.flushes{}.elsewhere": (COUNT, "flushes of other memory"),
    "measured.flushes{}.instructions{}": (COUNT, "by step, what was executed, by kind"),
    "measured.flushes{}.functions{}": (COUNT, "by step, calls of functions that flush"),
    "measured.regions{}{}[]": (ANY, "by module and type: address in hex, and bytes"),
    "measured.programs{}": (COUNT, "BPF programs at the end, bytes of code, leaves by size"),
    "measured.attached{}.held": (COUNT, "by consumer (kprobes, ftrace): registered at the end"),
    "measured.attached{}.areas": (COUNT, "areas that the kernel took for them and has still"),
    "measured.attached{}.bytes": (COUNT, "their bytes"),
    "measured.attached{}{}": (COUNT, "leaves that map them, by size"),
    "measured.areas{}": (HEX, "where each area is"),
    "measured.unmapped[]": (TEXT, "live memory that page tables do not map: module and type"),
    "measured.notes[]": (TEXT, "what the measures do not show"),
    "runs[].design": (TEXT, "design"),
    "runs[].same_frames": (FLAG, "whether it had the frames that the kernel took"),
    "runs[].pages": (COUNT, "pages that the kernel would drop one by one for what it does"),
    "runs[].whole": (COUNT, "times that the kernel would drop everything"),
    "runs[].consumers{}{}": (COUNT, "by consumer: `areas` it holds, and leaves that map them"),
    "runs[].same_areas": (COUNT, "areas of kprobes and ftrace at the kernel's address"),
    "runs[].same_place": (COUNT, "live regions at the address that the kernel gave them"),
    "runs[].same_order": (FLAG, "whether all follow each other by address as there"),
    "runs[].regions": (COUNT, "live regions"),
}
_OTHER_RUNS = ("arch", "design", "workload", "page_size", "page_tables", "film")
_MEASURED: Keys = {
    path: key
    for path, key in DOCUMENTS["compare"].items()
    if path.startswith("runs[].") and re.split(r"\W+", path)[1] not in _OTHER_RUNS
}
DOCUMENTS = {**DOCUMENTS, "compare --kernel": {**_BESIDE, **_MEASURED}}

_CHECKS: Mapping[ValueKind, Callable[[Any], bool]] = {
    HEX: lambda value: isinstance(value, str) and bool(_HEX.fullmatch(value)),
    COUNT: lambda value: type(value) is int and abs(value) < EXACT,
    REAL: lambda value: type(value) in (int, float),
    TEXT: lambda value: isinstance(value, str),
    BYTES: lambda value: isinstance(value, str) and bool(_BYTES.fullmatch(value)),
    FLAG: lambda value: isinstance(value, bool),
    PART: lambda _: True,
    ANY: lambda _: True,
}


@attrs.define
class _SchemaNode:
    """What may stand at one place in a document."""

    kind: ValueKind = PART
    null: bool = False
    optional: bool = False
    fields: dict[str, _SchemaNode] = attrs.field(factory=dict)
    each: _SchemaNode | None = None  # of a list
    free: _SchemaNode | None = None  # under keys that depend on the input


@cache
def _tree(name: str) -> _SchemaNode:
    root = _SchemaNode()
    for path, (kind, meaning) in {**ENVELOPE, **DOCUMENTS[name]}.items():
        node = named = whole = outer = root
        for word in re.findall(r"\[]|{}|[^][.{}]+", path):
            outer = node
            if word == "[]":
                node.each = node = node.each or _SchemaNode()
            elif word == "{}":
                node.free = node = node.free or _SchemaNode()
            else:
                named = node = node.fields.setdefault(word, _SchemaNode())
            if word in ("[]", "{}"):
                whole = named
        node.kind = kind
        (outer if path.endswith("[]") else node).null |= NULL in meaning
        if SOME in meaning:
            own = kind is PART or (kind is ANY and node is named)  # and not what it is a part of
            (node if own else whole).optional = True
    return root


def complaints(name: str, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a document is not what `DOCUMENTS` says of it."""
    yield from _complaints(_tree(name), document, name)


def _complaints(node: _SchemaNode, value: Any, path: str) -> Iterator[str]:
    if value is None and not node.null and node.kind is not ANY:
        yield f"{path} is null"
    if value is None or node.kind is ANY:
        return
    if isinstance(value, list) and node.each is not None:
        for each in value:
            yield from _complaints(node.each, each, f"{path}[]")
    elif isinstance(value, dict) and (node.fields or node.free):
        for key, each in value.items():
            below = node.fields.get(key, node.free)
            if below is None:
                yield f"{path}.{key} is not documented"
            else:
                yield from _complaints(below, each, f"{path}.{key}")
        for key, below in node.fields.items():
            if key not in value and not below.optional:
                yield f"{path}.{key} is missing"
    elif node.fields or node.each or node.free or not _CHECKS[node.kind](value):
        yield f"{path} is {value!r}, not {node.kind.value}"
