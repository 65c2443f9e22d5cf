# SPDX-License-Identifier: GPL-2.0-or-later
"""struct module in guest memory, kept as the kernel keeps it (kernel/module/main.c).

A module reads its own structure through THIS_MODULE and others' through the `owner` of what
they registered: the state, the name, the links of the list of modules, the kobject in /sys. Its
reference count keeps it loaded, whoever counts. So they stay in guest memory, where inlined
code finds them; what is not known of a module of another build is left alone, and kernel
functions that need it stop the guest by name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress

import attrs

from allocator import AccessError
from allocator.types import ADDRESS_MASK, MemType, align_up
from archs.layouts import NotKnown
from kernels.modelled.services import Services
from kernels.modelled.structs import PREV, offset_of, size_of, view
from kernels.modelled.structs import struct as declare
from loader.gate import TAINTS
from loader.loaded import LoadedModule, State
from loader.this_module import MEMBERS, STRUCTURE

HEAD = "modules"  # the list of all modules
BASE = 1  # MODULE_REF_BASE: what the count is while nobody holds the module
# enum module_state
STATES = {State.LIVE: 0, State.COMING: 1, State.GOING: 2, State.UNFORMED: 3}
declare(STRUCTURE, " ".join(MEMBERS))
declare("module_kobject", "kobj mod")
declare("module_memory", "base size")
declare("module_use", "source_list target_list source target")
_KOBJECT_ADDED = 7  # bits behind the count: that it is initialised, in sysfs and announced
_MEMORY = size_of("module_memory")
_USE_TARGET, _USE_SOURCE = (offset_of("module_use", m) for m in ("target_list", "source_list"))
# Sections, the members that point at them and count their entries, and an entry's structure.
_TABLES = (
    ("__param", "kp", "num_kp", size_of("kernel_param")),
    ("__ex_table", "extable", "num_exentries", size_of("exception_table_entry")),
    ("__ksymtab", "syms", "num_syms", size_of("kernel_symbol")),
    ("__ksymtab_gpl", "gpl_syms", "num_gpl_syms", size_of("kernel_symbol")),
)


@attrs.define(eq=False)
class ModuleStructs:
    """Keeps struct module of every loaded module.

    Parameters
    ----------
    kernel
        Whose memory they are in.
    modules
        The loaded modules, by name.
    """

    kernel: Services
    modules: Mapping[str, LoadedModule]
    _head: int = attrs.field(init=False)
    _objects: dict[str, list[int]] = attrs.field(factory=dict, init=False)
    _uses: dict[tuple[str, str], int] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._head = self.kernel.address(HEAD)

    # A module's life ---------------------------------------------------------------------------

    def coming(self, loaded: LoadedModule) -> None:
        """Fill a module's structure as it is when its init is called."""
        self.kernel.whose.coming(loaded)
        with self.kernel.whose.by(loaded.layouts):
            self._fill(loaded)

    def _fill(self, loaded: LoadedModule) -> None:
        objects = self._objects[loaded.name] = []
        self._put_state(loaded, State.COMING)
        # Its init holds it.
        self._put(loaded, "refcnt", BASE + 1, 4)
        node = loaded.member("list")
        if node is not None:
            self._insert(node, self._head)
        with suppress(NotKnown):
            self._kobject(loaded)
        self._put(loaded, "taints", sum(1 << TAINTS.index(letter) for letter in loaded.taints), 8)
        for name in ("version", "srcversion"):
            text = loaded.view.modinfo.get(name)
            if text is not None and loaded.member(name) is not None:
                data = text.encode() + b"\0"
                found = self.kernel.heap.alloc(len(data))
                if found:
                    objects.append(found)
                    self.kernel.memory.write(found, data)
                self._put(loaded, name, found)
        self._tables(loaded)
        with suppress(NotKnown):
            self._memory(loaded)
        for name in ("source_list", "target_list"):
            head = loaded.member(name)
            if head is not None:
                self._write(head, struct.pack("<QQ", head, head))
        for provider in sorted(loaded.providers):
            with suppress(NotKnown):
                self._use(loaded, self.modules[provider])

    def live(self, loaded: LoadedModule) -> None:
        """Note that a module's init has returned."""
        self._put_state(loaded, State.LIVE)
        with suppress(NotKnown), self.kernel.whose.by(loaded.layouts):
            self._memory(loaded)
        if (count := self._count(loaded)) is not None:
            self._put(loaded, "refcnt", count - 1, 4)

    def going(self, loaded: LoadedModule) -> None:
        """Note that a module's exit is about to be called."""
        self._put_state(loaded, State.GOING)
        if (count := self._count(loaded)) is not None:
            self._put(loaded, "refcnt", count - BASE, 4)

    def gone(self, loaded: LoadedModule) -> None:
        """Take a module's structure out of what others look at."""
        self.kernel.whose.gone(loaded)
        for (user, provider), use in list(self._uses.items()):
            if user == loaded.name:
                del self._uses[user, provider]
                for member in (_USE_SOURCE, _USE_TARGET):
                    self._remove(use + member(self.kernel))
                self.kernel.heap.free(use)
        for name in loaded.providers:
            held = self.modules.get(name)
            count = None if held is None else self._count(held)
            if held is not None and count is not None:
                self._put(held, "refcnt", count - 1, 4)
        linked = loaded.member("list")
        if linked is not None:
            self._remove(linked)
        for found in self._objects.pop(loaded.name, ()):
            self.kernel.heap.free(found)

    # What is asked of it -------------------------------------------------------------------------

    def at(self, address: int) -> LoadedModule | None:
        """Return the module whose structure lies at an address, or None."""
        return next((m for m in self.modules.values() if m.member() == address), None)

    def held(self, loaded: LoadedModule) -> int:
        """Return how many references the guest holds, beside those of other modules."""
        count = self._count(loaded)
        users = sum(loaded.name in other.providers for other in self.modules.values())
        return 0 if count is None else max(0, count - BASE - users)

    def entry(self, loaded: LoadedModule, member: str) -> int:
        """Return what `init` or `exit` points at; 0 for nothing."""
        at = loaded.member(member)
        return 0 if at is None else int.from_bytes(self.kernel.memory.read(at, 8), "little")

    def _count(self, loaded: LoadedModule) -> int | None:
        at = loaded.member("refcnt")
        if at is None:
            return None
        return int.from_bytes(self.kernel.memory.read(at, 4), "little", signed=True)

    # Members -------------------------------------------------------------------------------------

    def _write(self, address: int, data: bytes) -> None:
        self.kernel.memory.write(address, data)

    def _put(self, loaded: LoadedModule, member: str, value: int, size: int = 8) -> None:
        """Store a member, where a module's structure is known to have it."""
        at = loaded.member(member)
        if at is not None:
            self._write(at, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def _put_state(self, loaded: LoadedModule, value: State) -> None:
        self._put(loaded, "state", STATES[value], 4)

    def _kobject(self, loaded: LoadedModule) -> None:
        """Let the kobject be as mod_sysfs_setup() leaves it."""
        at, name, this = (loaded.member(member) for member in ("mkobj", "name", None))
        if at is None or name is None or this is None:
            return
        found = view(self.kernel, "module_kobject", at)
        found.put("kobj.name", name)
        entry, count = found.at("kobj.entry"), found.member("kobj.kref")
        self._write(entry, struct.pack("<QQ", entry, entry))
        self._write(at + count.offset, struct.pack("<II", 1, _KOBJECT_ADDED))
        found.put("mod", this)

    def _tables(self, loaded: LoadedModule) -> None:
        """Let the members that find_module_sections() fills point at the module's tables."""
        sections = {section.name: section for section in loaded.sections.values() if section.size}
        for title, member, count, size in _TABLES:
            found = sections.get(title)
            if found is not None:
                with suppress(NotKnown):
                    self._put(loaded, count, found.size // size(self.kernel), 4)
                    self._put(loaded, member, found.address)
        if loaded.layout.percpu is not None and loaded.percpu is not None:
            self._put(loaded, "percpu", loaded.percpu)
            self._put(loaded, "percpu_size", loaded.layout.percpu.size, 4)

    def _memory(self, loaded: LoadedModule) -> None:
        """Say where the module's memory lies, as far as it has some."""
        at = loaded.member("mem")
        if at is None:
            return
        # All of it at once: every load comes here twice.
        step, layouts = _MEMORY(self.kernel), self.kernel.layouts
        page = self.kernel.memory.page_size
        members = [layouts.member("module_memory", name) for name in ("base", "size")]
        array = bytearray(self.kernel.memory.read(at, step * len(MemType)))
        for kind in MemType:
            region = loaded.regions.get(kind)
            values = (0, 0) if region is None else (region.address, align_up(region.size, page))
            for member, value in zip(members, values, strict=True):
                start = step * kind.value + member.offset
                array[start : start + member.size] = value.to_bytes(member.size, "little")
        self._write(at, bytes(array))

    def _use(self, user: LoadedModule, provider: LoadedModule) -> None:
        """Let a module hold another one whose symbols it uses (ref_module)."""
        if (count := self._count(provider)) is not None:
            self._put(provider, "refcnt", count + 1, 4)
        source, target = provider.member("source_list"), user.member("target_list")
        modules = user.member(), provider.member()
        if source is None or target is None or None in modules:
            return
        use = self.kernel.heap.alloc(self.kernel.layouts.size_of("module_use"), zero=True)
        if use:
            self._uses[user.name, provider.name] = use
            found = view(self.kernel, "module_use", use)
            for member, module in zip(("source", "target"), modules, strict=True):
                found.put(member, module or 0)
            self._insert(found.at("source_list"), source)
            self._insert(found.at("target_list"), target)

    # Lists: the guest may have changed them ------------------------------------------------------

    def _insert(self, node: int, head: int) -> None:
        with suppress(AccessError):
            after = int.from_bytes(self.kernel.memory.read(head, 8), "little")
            self._write(node, struct.pack("<QQ", after, head))
            self._write(after + PREV & ADDRESS_MASK, node.to_bytes(8, "little"))
            self._write(head, node.to_bytes(8, "little"))

    def _remove(self, node: int) -> None:
        """Take a node out of its list, if both neighbours know it (list_del, hardened)."""
        memory = self.kernel.memory
        with suppress(AccessError):
            after, before = struct.unpack("<QQ", memory.read(node, 16))
            here = node.to_bytes(8, "little")
            if memory.read(before, 8) == memory.read(after + PREV & ADDRESS_MASK, 8) == here:
                self._write(before, after.to_bytes(8, "little"))
                self._write(after + PREV & ADDRESS_MASK, before.to_bytes(8, "little"))
