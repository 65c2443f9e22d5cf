# SPDX-License-Identifier: GPL-2.0-or-later
"""The course: four chapters, from how far a call gets to who manages the memory.

The one source of these texts: the command line, the web page and the documentation show them.
"""

from __future__ import annotations

from samples.course.records import Chapter, Lesson, placed

REACH = Chapter(
    "Reach",
    "An instruction has few bits for a distance. That decides where code may live.",
    (
        Lesson(
            name="tour",
            title="one module on every architecture: where it lies, how far it reaches, what it does",
            question="What does a kernel have to do before it can run a file of machine code?",
            idea="A module file does not know its address; the loader picks one and fills in "
            "every distance.",
            try_next="execmem archs",
            tasks=("elsewhere",),
            read="tutorial.md",
            minutes=6,
        ),
        Lesson(
            name="reach",
            title="how far a direct call gets, and what happens one step further",
            question="A call instruction has room for a distance. What if the target is further?",
            idea="A call reaches as far as its bits count; one step further it is refused, or "
            "goes through a stub.",
            try_next="execmem archs",
            tasks=("by-hand",),
            read="explanation.md",
        ),
        Lesson(
            name="veneer",
            title="the 128 MiB wall of arm64, and the PLT entry that leads over it",
            question="An arm64 call gets 128 MiB far. How does it call what is 1 GiB away?",
            idea="The call goes to a PLT entry near it, three instructions that reach 4 GiB.",
            try_next="execmem explain mathuser --html page.html",
            tasks=("one-plt",),
            read="relocations.md",
        ),
        Lesson(
            name="adrp",
            title="why arm64 code may move by pages, and not by less",
            question="May finished code be copied elsewhere if its target moves along?",
            idea="ADRP counts whole pages, so code that moves by whole pages keeps its low bits.",
            try_next="execmem relocs mathuser --arch arm64 --type 'adr*'",
            tasks=("same-bytes",),
            read="relocations.md",
        ),
        Lesson(
            name="hi20",
            title="why RISC-V adds 0x800 before it takes the upper 20 bits",
            question="An address is split into upper 20 and lower 12 bits. Why not simply cut?",
            idea="The lower half is added with its sign, so the upper half must make up for it.",
            try_next="execmem reach --arch riscv64",
            tasks=("one-upper",),
            read="relocations.md",
        ),
        Lesson(
            name="model",
            title="why x86-64 modules live in the top 2 GiB, their data included",
            question="A call spans 2 GiB either way. Then why may data not lie 3 GiB below?",
            idea="The compiler was promised that every address fits 32 bits, sign-extended.",
            try_next="execmem explain tables --html page.html",
            tasks=("first-refusal",),
            read="explanation.md",
        ),
    ),
)

LOADING = Chapter(
    "Loading",
    "What lies where, who may write it, and until when.",
    (
        Lesson(
            name="vmalloc_else",
            title="the #else of the thread, which puts text where no call gets",
            question="Is there harm in taking module memory from wherever there is room?",
            idea="An architecture must name a range that its calls reach, or have no modules.",
            try_next="execmem compare --design vmalloc_else --design default",
            tasks=("repair-else",),
            read="explanation.md",
        ),
        Lesson(
            name="initplt",
            title="why init text has PLT entries of its own",
            question="Init text is thrown away after init. What if a stub lay in it?",
            idea="What lives as long needs stubs that live as long: core and init have their own.",
            try_next="execmem load mathuser --arch arm64 --kaslr 1",
            tasks=("own-entries",),
            read="load-module.md",
        ),
        Lesson(
            name="after_init",
            title="data that init may write and nobody after it",
            question="Some data is written once, by init. Who keeps everybody else from it?",
            idea="It has a region of its own, which is sealed at the moment when init returns.",
            try_next="execmem load sealed --init",
            tasks=("load-order",),
            read="load-module.md",
        ),
        Lesson(
            name="guard",
            title="seven mistakes of a parser, and what finds each without looking at every access",
            question="A parser reads one byte too far and nothing happens. How would you know?",
            idea="Put each object at the end of a page that nobody may touch: hardware looks.",
            try_next="execmem run parser parser_parse hex:505253016b022b31 8 --sanitize all",
            tasks=("three-sizes",),
            read="howto/checks.md",
            minutes=6,
        ),
        Lesson(
            name="fuzz-report",
            title="a device that describes itself, and three bytes that a parser cannot take",
            question="A USB device says what it is. What if it says what nobody expects?",
            idea="Keep what comes to new code and change it a little: that finds what nobody wrote.",
            try_next="execmem run formats formats_report hex:a4a4b4b4 4 --sanitize guard",
            tasks=("byte-by-byte",),
            read="howto/fuzz.md",
        ),
        Lesson(
            name="fuzz-match",
            title="a packet that a netfilter match does not come back from",
            question="A loop adds a length that a packet has brought. When does it end?",
            idea="Who believes a length must see that it is not 0; a fuzzer counts instructions.",
            try_next="execmem disasm formats formats_match",
            tasks=("one-bit",),
            read="howto/targets.md",
        ),
        Lesson(
            name="fuzz-lz4",
            title="an LZ4 block that unpacks to more than there is room for",
            question="Compressed data says how long it will be. Who checks it?",
            idea="Whoever writes, at each copy: behind a guard page the first byte too much stops.",
            try_next="execmem run formats formats_unlz4 hex:1f410100ff0e50 7 512 --kasan",
            tasks=("small-bomb",),
            read="howto/targets.md",
        ),
    ),
)

PATCHING = Chapter(
    "Patching",
    "Text that nobody may write still has to change, while others execute it.",
    (
        Lesson(
            name="flow",
            title="alloc, write, finish: with text_poke and without",
            question="Code must be written before it runs. When may it be written AND executed?",
            idea="Never: either it is writable until finish, or it is written through an alias.",
            try_next="execmem compare --no-text-poke",
            tasks=("share-pages",),
            read="text-poke.md",
        ),
        Lesson(
            name="auipc",
            title="a RISC-V instruction that begins two bytes before a page ends",
            question="How many pages does one instruction of four bytes touch?",
            idea="Two, where instructions are aligned to two bytes; a poke must map both.",
            try_next="execmem archs",
            tasks=("one-store",),
            read="text-poke.md",
        ),
        Lesson(
            name="poke",
            title="changing code that another CPU runs, and what goes wrong when a step is left out",
            question="One CPU overwrites an instruction that another executes. What does it meet?",
            idea="A store is whole only up to a granule, and no CPU fetches anew by itself.",
            try_next="execmem trace patchable -- patchable_fib 3",
            tasks=("missing-sync",),
            read="text-poke.md",
            minutes=8,
        ),
        Lesson(
            name="bug-sync",
            title="a patch that was not synchronised: arm64 until 2018, riscv64 in 2024",
            question="The patch is written, the old code is freed. Who may still execute it?",
            idea="Whoever fetched it before: only a synchronisation of every CPU ends that.",
            try_next="execmem race no-sync",
            tasks=("when-to-free",),
            read="race.md",
        ),
        Lesson(
            name="bug-unsorted",
            title="a breakpoint that nobody finds: Linux 6.16-rc1",
            question="A thousand tests pass. Which order of steps did none of them meet?",
            idea="What goes wrong in one order of many is found by trying all of them.",
            try_next="execmem race unsorted",
            tasks=("fewest-batches",),
            read="race.md",
        ),
    ),
)

MANAGING = Chapter(
    "Managing",
    "Whoever hands out the memory decides about leaves, holes, flushes and stubs.",
    (
        Lesson(
            name="holes",
            title="what init leaves behind between the texts that stay",
            question="Init text is freed after a second. What is wrong with where it was?",
            idea="What goes soon and what stays should not lie side by side.",
            try_next="execmem compare --workload churn",
            tasks=("side-by-side",),
            read="compare.md",
        ),
        Lesson(
            name="rox",
            title="the ROX cache, the leaf that splits, and the one that need not",
            question="Text lies under one 2 MiB leaf. How does a new module's text get in?",
            idea="Changing protection splits the leaf; writing through an alias leaves it whole.",
            try_next="execmem compare --design rox_cache --design strata",
            tasks=("fewest-flushes",),
            read="compare.md",
        ),
        Lesson(
            name="bug-wx",
            title="text that could be written and executed at once while it was loaded",
            question="No page table ever says writable and executable. Is that enough?",
            idea="TLBs remember what page tables said: only a flush ends the old right.",
            try_next="execmem compare --design vmalloc --design default",
            tasks=("never-both",),
            read="race.md",
        ),
        Lesson(
            name="bug-rox613",
            title="text with two addresses, and a pass that reads at the wrong one",
            question="Code is built in a copy and runs elsewhere. What must know both places?",
            idea="Everybody who edits it; so text should have one address from the start.",
            try_next="execmem demo rox",
            tasks=("two-addresses",),
            read="race.md",
        ),
        Lesson(
            name="nomodules",
            title="executable memory in a kernel without modules",
            question="Who needs executable memory in a kernel that loads no modules?",
            idea="kprobes, ftrace, BPF and thunks do: the allocator belongs to nobody of them.",
            try_next="execmem compare --workload no-modules",
            tasks=("four-users",),
            read="compare.md",
        ),
        Lesson(
            name="trees",
            title="three blocks against three trees, with a server's modules",
            question="A fixed block for each type, or a tree that grows as it needs?",
            idea="Both make text large; blocks fill up, trees take 2 MiB where they need them.",
            try_next="execmem compare --workload server",
            tasks=("churn",),
            read="explanation.md",
        ),
        Lesson(
            name="fit",
            title="do 4,350 modules fit where arm64's calls reach?",
            question="All modules of a distribution, 91 MiB that calls reach: do they fit?",
            idea="Text alone fits; data and guard pages, which need no reach, fill the window.",
            try_next="execmem compare --workload debian --arch arm64",
            tasks=("window",),
            read="explanation.md",
        ),
    ),
)

CHAPTERS = REACH, LOADING, PATCHING, MANAGING
LESSONS = placed(CHAPTERS)
