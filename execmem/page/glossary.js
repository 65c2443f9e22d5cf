// SPDX-License-Identifier: GPL-2.0-or-later
// Written from docs/glossary.md by `python -m execmem.reference`: word -> what it means.

export default {
  "abandon": "give a pending allocation back instead of finishing it.",
  "anchor": "a register that must hold a kernel address while code runs (per-cpu offset, current task).",
  "chunk": "2 MiB (a large leaf) of mapped memory of one type that serves many areas.",
  "collapse": "turn 512 equal 4 KiB leaves back into one of 2 MiB (or 2,048 of 16 KiB into 32 MiB).",
  "direct map": "the mapping of all physical memory at a fixed offset; its splits stay for ever.",
  "execmem": "the kernel's allocator of executable memory (mm/execmem.c).",
  "fallback range": "where an allocation may go when its own range is full (arm64: 2 GiB with PLTs).",
  "leaf": "one page-table entry that maps memory: 4 KiB, 2 MiB or 1 GiB; 16 KiB or 32 MiB; 64 KiB or 512 MiB, by what a page has.",
  "live patch": "replace an instruction that another CPU may be executing.",
  "PLT": "stubs within branch reach that jump further; arm64's module loader builds them.",
  "poke": "write to finished memory through a short-lived writable alias (text_poke).",
  "reach": "the half-open interval of displacements that an instruction can encode.",
  "ro_after_init": "data that may be written until init has returned, and never again.",
  "S, A, P, X": "symbol value, addend, place, and what a relocation computes from them.",
  "seal": "make ro_after_init memory read-only.",
  "slot": "one PLT entry; also the place of one function in the emulated kernel's image.",
  "sync": "make CPUs fetch again what they may have fetched or translated before.",
  "trap": "the instruction that fills unused text (INT3, BRK, C.EBREAK)."
};
