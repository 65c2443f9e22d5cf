# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace events, as far as a module's own memory says what registering them leaves there.

For each event the kernel notes the owner, fills in the output functions that the module left
out, links the events of the module in reverse order, and rewrites the event's format: a name
of an enumeration means nothing to a program that reads it, so the value takes its place
(kernel/trace/trace_events.c: trace_module_add_events, update_event_printk;
kernel/trace/trace_output.c: register_trace_event).

The rest comes from the running kernel and cannot be known: the event's number, the hash
chain by number, the list of fields on the heap. `running` claims those bytes, and the few
others of their kind, so that a comparison can say what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from archs.passes.subject import U8, U64, Index, Subject
from archs.versions import Since

THIS_MODULE = ".gnu.linkonce.this_module"
POINTER = np.dtype([("pointer", "<u8")])
# Offsets in struct trace_event_call with perf events.
_LIST, _CLASS, _NODE = 0, 16, 32


class _EventCall(NamedTuple):
    """Offsets behind them, which depend on the kernel that a module was built for."""

    chain: int  # of all events in order, a list head; 0: there is none
    type: int
    functions: int
    format: int
    module: int
    flags: int


# Linux 6.12; before 6.2 struct trace_event had a list head more.
_CALLS = (_EventCall(0, 48, 56, 64, 72, 88), _EventCall(48, 64, 72, 80, 96, 112))
# Heads of lists in the kernel, which it names only with CONFIG_KALLSYMS_ALL.
_HEAD, _CHAIN = "ftrace_events", "ftrace_event_list"
# Offsets in struct trace_event_class.
_SYSTEM, _FIELDS_ARRAY, _FIELDS = 0, 32, 48
_FIELD_ENTRY, _FIELD_FLAGS = 40, 24  # struct trace_event_fields
_OUTPUTS = 4  # functions in struct trace_event_functions
# What struct srcu_struct begins with that points at per-cpu memory: offsets of first byte and end.
# Since 6.15 its readers' counters do, too (include/linux/srcutree.h).
_SRCU_PERCPU = Since(((0, 0), (8, 16)), ((6, 15), (0, 16)))
MAX_TEXT = 1 << 24  # bytes of all formats, or of all names; strings may overlap
MAX_WORK = 1 << 30  # bytes of formats times names to look for in them
_CLASS_MAP = 56  # bytes of struct ddebug_class_map, which begins with a list head


def register(subject: Subject) -> None:
    """Register the module's trace events and replace names in their formats."""
    events = _pointers(subject, "_ftrace_events")
    call = _call(subject, events)
    if call is None:
        return
    at = subject.offsets(events, call.module + 8)
    this_module = subject.section(THIS_MODULE)
    if this_module is not None:
        owner = np.array([this_module.address], np.uint64)
        subject.write(at + call.module, owner.view(np.uint8))
    # list_add() puts each event in front: its successor is the one before.
    subject.write(at[1:] + _LIST, _rows(events[:-1]))
    subject.write(at[:-1] + _LIST + 8, _rows(events[1:]))
    head = subject.environment.symbols.get(_HEAD)
    if head is not None:
        subject.write(at[-1:] + _LIST + 8, _rows(np.array([head], np.uint64)))
    if call.chain:  # list_add_tail()
        heads = events + np.uint64(call.chain)
        subject.write(at[:-1] + call.chain, _rows(heads[1:]))
        subject.write(at[1:] + call.chain + 8, _rows(heads[:-1]))
        last = subject.environment.symbols.get(_CHAIN)
        if last is not None:
            subject.write(at[-1:] + call.chain, _rows(np.array([last], np.uint64)))
    _fill_outputs(subject, at + call.functions)
    _replace_names(subject, at, call.format)


def running(subject: Subject) -> None:
    """Claim what only the running kernel knows: numbers, chains, memory it allocated."""
    pointers = _pointers(subject, "_ftrace_events")
    call = _call(subject, pointers)
    if call is not None:
        events = subject.offsets(pointers, call.module + 8)
        subject.note(events[:1] + _LIST, 8)
        if _HEAD not in subject.environment.symbols:
            subject.note(events[-1:] + _LIST + 8, 8)
        subject.note(events + _NODE, 16)
        if call.chain:
            subject.note(events[:1] + call.chain + 8, 8)
            if _CHAIN not in subject.environment.symbols:
                subject.note(events[-1:] + call.chain, 8)
        subject.note(events + call.type, 4)
        subject.note(events + call.flags, 4)
        classes = subject.offsets(np.unique(_words(subject, events + _CLASS)), _FIELDS + 16)
        subject.note(classes + _FIELDS, 16)
        # A check of an event's format may set a flag of the event and of a field (needs_test).
        fields = subject.offsets(np.unique(_words(subject, classes + _FIELDS_ARRAY)), 8)
        end = subject.image.size - _FIELD_ENTRY
        while (fields := fields[_words(subject, fields) != 0]).size and fields.max() < end:
            subject.note(fields + _FIELD_FLAGS, 4)
            fields = fields + _FIELD_ENTRY
    srcu = _pointers(subject, "___srcu_struct_ptrs")
    start, end = _SRCU_PERCPU.at(subject.environment.version)
    subject.note(subject.offsets(srcu) + start, end - start)
    # Before 6.4 nothing of it was initialised in the file, so the kernel does it all.
    sizes = [max(subject.size_at(address), 1) for address in srcu.tolist()]
    for at, size in zip(subject.offsets(srcu, np.array(sizes, np.intp)), sizes, strict=True):
        if not subject.image[at : at + size].any():
            subject.note(at.reshape(1), size)
    maps = subject.table("__dyndbg_classes", np.dtype([("map", f"V{_CLASS_MAP}")]))
    if maps is not None:
        steps = np.arange(maps.entries.size, dtype=np.intp) * _CLASS_MAP
        subject.note(maps.at + steps, 16)


def _call(subject: Subject, events: U64) -> _EventCall | None:
    """Return the structure of a module's events, None without any.

    It is told by the format, which every event has, and by its output functions. A module with
    none of the known structures is refused.
    """
    if not events.size:
        return None
    subject.offsets(events, _CALLS[0].module + 8)
    for call in _CALLS:
        if subject.room(events, call.module + 8).all():
            at = subject.offsets(events, call.module + 8)
            formats, functions = (_words(subject, at + n) for n in (call.format, call.functions))
            if (subject.within(formats) & (functions != 0)).all():
                return call
    raise subject.refusal("_ftrace_events", "its events have no structure that is known")


def _pointers(subject: Subject, name: str) -> U64:
    table = subject.table(name, POINTER)
    return np.empty(0, np.uint64) if table is None else table.entries["pointer"].copy()


def _words(subject: Subject, at: Index) -> U64:
    """Return the pointer at each offset of the buffer."""
    return subject.bytes_at(at, 8).view(np.uint64)[:, 0]


def _rows(words: U64) -> U8:
    """Return each word as a row of bytes."""
    return words.reshape(-1, 1).view(np.uint8)


def _fill_outputs(subject: Subject, pointers: Index) -> None:
    nothing = subject.environment.symbols.get("trace_nop_print")
    functions = np.unique(_words(subject, pointers))
    functions = functions[subject.within(functions)]
    if nothing is None or not functions.size:
        return
    at = (subject.offsets(functions, 8 * _OUTPUTS)[:, None] + 8 * np.arange(_OUTPUTS)).ravel()
    missing = at[_words(subject, at) == 0]
    subject.write(missing, np.array([nothing], np.uint64).view(np.uint8))


# Names in formats ------------------------------------------------------------------------------


def _replace_names(subject: Subject, events: Index, at_format: int) -> None:
    """Replace the names that the module defined a value for, in the formats of its system."""
    maps = subject.offsets(_pointers(subject, "_ftrace_eval_map"), 24)
    systems, names, values = subject.bytes_at(maps, 24).view(np.int64).T
    by_system: dict[int, dict[bytes, bytes]] = {}
    strings = _strings(subject, names.view(np.uint64))
    for system, name, value in zip(systems.tolist(), strings, values.tolist(), strict=True):
        by_system.setdefault(system, {}).setdefault(name, str(value).encode())
    patterns = {system: _pattern(names) for system, names in by_system.items()}
    classes = subject.offsets(_words(subject, events + _CLASS), _FIELDS + 16)
    systems = _words(subject, classes + _SYSTEM).view(np.int64)
    formats, first = np.unique(_words(subject, events + at_format), return_index=True)
    chosen = np.isin(systems[first], np.array(list(by_system), np.int64))
    formats, systems = formats[chosen], systems[first][chosen]
    texts = _strings(subject, formats)
    names_of = {system: sum(map(len, found)) for system, found in by_system.items()}
    if (
        sum(len(text) * names_of[s] for text, s in zip(texts, systems.tolist(), strict=True))
        > MAX_WORK
    ):
        raise subject.refusal("trace events", "too many names in too long formats")
    for at, system, old in zip(subject.offsets(formats), systems.tolist(), texts, strict=True):
        new = replace_names(old, by_system[system], patterns[system])
        if new != old + b"\0":
            subject.write(at.reshape(1), np.frombuffer(new, np.uint8))


def replace_names(
    text: bytes, names: Mapping[bytes, bytes], pattern: re.Pattern[bytes] | None = None
) -> bytes:
    """Return what stands in a format's memory when names are replaced by values in place.

    Names in strings and behind members stay; what follows a word or a number is passed
    over unseen, be it a quote. The kernel looks for one name after the other, and whenever
    the text becomes shorter, what was behind its new end stays there.
    """
    rank = {name: n for n, name in enumerate(names)}
    steps = (pattern or _pattern(names)).finditer(text)
    found = [
        step for step in steps if step["name"] and len(names[step["name"]]) <= len(step["name"])
    ]
    memory, size = bytearray(text + b"\0"), len(text)
    moves: list[tuple[int, int]] = []
    for step in sorted(found, key=lambda step: (rank[step["name"]], step.start())):
        name, value = step["name"], names[step["name"]]
        at = step.start() - sum(shift for place, shift in moves if place < step.start())
        memory[at : at + len(value)] = value
        rest = memory[at + len(name) : size]
        size -= len(name) - len(value)
        memory[at + len(value) : size] = rest
        memory[size] = 0
        moves.append((step.start(), len(name) - len(value)))
    return bytes(memory)


def _pattern(names: Mapping[bytes, bytes]) -> re.Pattern[bytes]:
    """Return what the kernel's scanner takes in one step."""
    known = b"|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    steps = (
        rb"\\.",
        rb'"(?:\\.|[^"\\])*"?',
        rb"[0-9][0-9A-Za-z]*.?",
        rb"(?P<name>" + known + rb")(?![0-9A-Za-z_])(?P<after>.?)",
        rb"[A-Za-z_][0-9A-Za-z_]*(?:(?:\.|->).[0-9A-Za-z_]*)*.?",
    )
    return re.compile(b"|".join(steps), re.DOTALL)


def _strings(subject: Subject, addresses: U64) -> list[bytes]:
    """Return the NUL-terminated strings at addresses; refuse them where they are too much."""
    image = subject.image.tobytes() if addresses.size else b""
    found, left = [], MAX_TEXT
    for at in subject.offsets(addresses).tolist():
        found.append(image[at : max(image.find(0, at), at)])
        left -= len(found[-1])
        if left < 0:
            reason = f"strings of more than {MAX_TEXT:#x} bytes"
            raise subject.refusal("trace events", reason)
    return found
