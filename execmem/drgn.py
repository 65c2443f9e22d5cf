# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn on cores of kernels without debugging information: types by BTF, symbols by kallsyms.

drgn asks finders for types, symbols and objects by name. `register` gives it ours, for any core that
it has opened and whose kernel's image is at hand: a stripped kernel of a distribution is enough.
What BTF does not say is which type a variable has (of per-cpu ones it does): those that drgn's own
helpers ask for are in a table, and `variables` takes more.

    prog = execmem.drgn.open_core("crc16.core", "linux-image.deb")
    [module.name.string_() for module in drgn.helpers.linux.module.for_each_module(prog)]
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from loader import vmcore
from loader.btf import DEPTH, BadBtf, Btf
from loader.btf_records import VOID, Kind, Type
from loader.errors import BadCore, BadKernel
from loader.kernel.find import read_kernel
from loader.kernel.image import KernelImage
from loader.vmcore import facts, symbols_told

NAME = "execmem"
_STEXT = "_stext"
_MIDDLE = 1 << 63
# Variables of the kernel by their types, as its sources declare them: C type -> names.
VARIABLES = {
    "struct task_struct": "init_task",
    "struct mm_struct": "init_mm",
    "struct pid_namespace": "init_pid_ns",
    "struct uts_namespace": "init_uts_ns",
    "struct user_namespace": "init_user_ns",
    "struct ipc_namespace": "init_ipc_ns",
    "struct cgroup_namespace": "init_cgroup_ns",
    "struct nsproxy": "init_nsproxy",
    "struct net": "init_net",
    "struct list_head": "modules net_namespace_list super_blocks slab_caches workqueues"
    " vmap_area_list pci_root_buses crypto_alg_list btf_modules",
    "struct rb_root": "vmap_area_root",
    "struct hlist_head *": "pid_hash",
    "unsigned long []": "__per_cpu_offset",
    "struct cpumask": "__cpu_possible_mask __cpu_online_mask __cpu_present_mask __cpu_active_mask",
    "unsigned int": "nr_cpu_ids nr_node_ids pidhash_shift nr_vmap_nodes vmap_zone_size nr_swapfiles",
    "struct vmap_node *": "vmap_nodes",
    "unsigned long": "max_low_pfn min_low_pfn max_pfn tainted_mask page_offset_base vmalloc_base"
    " vmemmap_base phys_base",
    "atomic_long_t": "_totalram_pages nr_swap_pages",
    "long": "total_swap_pages",
    "unsigned long [3]": "avenrun",
    "volatile unsigned long": "jiffies",
    "u64": "jiffies_64",
    "char *": "saved_command_line",
    "struct printk_ringbuffer *": "prb",
    "struct class": "block_class",
    "struct cgroup_root": "cgrp_dfl_root",
    "struct task_group": "root_task_group",
    "struct kset *": "bus_kset class_kset slab_kset module_kset devices_kset",
    "struct kobj_type": "module_ktype device_ktype driver_ktype class_ktype bus_ktype",
    "struct kernfs_node *": "sysfs_root_kn",
    "struct workqueue_struct *": "system_wq system_highpri_wq system_long_wq system_unbound_wq",
    "struct kmem_cache *": "task_struct_cachep",
    "struct idr": "prog_idr map_idr link_idr btf_idr",
    "struct memblock": "memblock",
    "struct mem_section **": "mem_section",
    "struct resource": "iomem_resource ioport_resource crashk_res",
    "struct device": "platform_bus",
    "struct bus_type": "pci_bus_type platform_bus_type usb_bus_type",
    "struct file_system_type *": "file_systems",
    "struct super_block *": "blockdev_superblock",
    "struct pglist_data": "contig_page_data",
    "struct pglist_data *[]": "node_data",
    "nodemask_t []": "node_states",
    "struct swap_info_struct *[]": "swap_info",
}
_KINDS = {
    "INT": (Kind.INT,),
    "BOOL": (Kind.INT,),
    "FLOAT": (Kind.FLOAT,),
    "STRUCT": (Kind.STRUCT,),
    "UNION": (Kind.UNION,),
    "ENUM": (Kind.ENUM, Kind.ENUM64),
    "TYPEDEF": (Kind.TYPEDEF,),
}
_QUALIFIERS = {
    Kind.CONST: "CONST",
    Kind.VOLATILE: "VOLATILE",
    Kind.RESTRICT: "RESTRICT",
}
_ENUMS = (Kind.ENUM, Kind.ENUM64)
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym


class _Blob:
    """The types of a kernel or a module, as drgn has them.

    Parameters
    ----------
    prog, drgn
        The program, and the package.
    btf
        The types.
    base
        Of a module's: the kernel's, which they go on from.
    """

    def __init__(self, prog: Any, drgn: Any, btf: Btf, base: _Blob | None = None) -> None:
        self._prog, self._drgn, self.btf, self._base = prog, drgn, btf, base
        self._types: dict[int, Any] = {}

    def has(self, name: str, kinds: Sequence[Kind]) -> bool:
        """Return whether there is a type of a name."""
        return self.btf.find(name, *kinds) is not None

    def find(self, name: str, kinds: Sequence[Kind]) -> Any:
        """Return the type of a name, or None."""
        found = self.btf.find(name, *kinds) if kinds else None
        return None if found is None else self.type(found.number)

    def type(self, number: int, depth: int = DEPTH) -> Any:
        """Return a type of BTF as drgn has it."""
        if self._base is not None and number not in self.btf.numbers:
            return self._base.type(number, depth)
        known = self._types.get(number)
        if known is None:
            if not depth:
                raise ValueError(f"BTF type {number}: nests deeper than {DEPTH}")
            known = self._types[number] = self._made(self.btf.type(number), depth - 1)
        return known

    def _made(self, found: Type, depth: int) -> Any:
        prog, kind = self._prog, found.kind
        if kind is Kind.VOID:
            return prog.void_type()
        if kind in _QUALIFIERS:
            inner = self.type(found.target, depth)
            return inner.qualified(inner.qualifiers | self._drgn.Qualifiers[_QUALIFIERS[kind]])
        if kind is Kind.INT:
            if found.name in ("_Bool", "bool"):
                return prog.bool_type(found.name, found.size)
            return prog.int_type(found.name, found.size, found.signed)
        if kind is Kind.FLOAT:
            return prog.float_type(found.name, found.size)
        if kind is Kind.PTR:
            return prog.pointer_type(self.type(found.target, depth))
        if kind is Kind.ARRAY:
            return prog.array_type(self.type(found.target, depth), found.count or None)
        if kind is Kind.TYPEDEF:
            return prog.typedef_type(found.name, self.type(found.target, depth))
        if kind in (Kind.STRUCT, Kind.UNION):
            make = prog.struct_type if kind is Kind.STRUCT else prog.union_type
            members = [
                self._drgn.TypeMember(
                    partial(self._member, member.type, member.bits),
                    member.name or None,
                    member.offset,
                )
                for member in found.members
            ]
            return make(found.name or None, found.size, members)
        if kind in _ENUMS:
            number = prog.int_type(*(_ENUM_NAMES[found.size, found.flag], found.size, found.flag))
            values = [self._drgn.TypeEnumerator(each.name, each.value) for each in found.values]
            return prog.enum_type(found.name or None, number, values)
        if kind is Kind.FWD:
            make = prog.union_type if found.flag else prog.struct_type
            return make(found.name or None)
        if kind is Kind.FUNC_PROTO:
            parameters = [
                self._drgn.TypeParameter(partial(self.type, each.type), each.name or None)
                for each in found.parameters
            ]
            result = self.type(found.target, depth)
            return prog.function_type(result, parameters, is_variadic=found.variadic)
        return self.type(found.target, depth) if found.target != VOID else prog.void_type()

    def _member(self, number: int, bits: int) -> Any:
        kind = self.type(number)
        return self._drgn.Object(self._prog, kind, bit_field_size=bits) if bits else kind


class Finders:
    """What answers drgn of one program; made by `register`.

    Parameters
    ----------
    prog
        The program, with a core of a kernel.
    kernel
        Its kernel.
    info
        What it tells of itself (VMCOREINFO).
    variables
        Further variables by their C types.
    """

    def __init__(
        self,
        prog: Any,
        kernel: KernelImage,
        info: Mapping[str, str],
        variables: Mapping[str, str],
    ) -> None:
        self._drgn = _drgn()
        self._prog = prog
        self.kernel = kernel
        self._told = symbols_told(info)
        self.slide = self._told.get(_STEXT, kernel.symbols[_STEXT]) - kernel.symbols[_STEXT]
        self._variables = {
            name: kind for kind, names in VARIABLES.items() for name in names.split()
        } | dict(variables)
        self._btf = kernel.btf
        self._own = _Blob(prog, self._drgn, self.btf)
        self._loaded: list[_Blob] | None = None

    # Types --------------------------------------------------------------------------------------

    @property
    def btf(self) -> Btf:
        """The kernel's types; BadKernel where it has none."""
        if self._btf is None:
            lacks = self.kernel.unknown.get("types", "CONFIG_DEBUG_INFO_BTF")
            raise BadKernel(self.kernel.name, "types", f"it has none; known with {lacks}")
        return self._btf

    def type(self, number: int) -> Any:
        """Return a type of the kernel's BTF as drgn has it."""
        return self._own.type(number)

    @property
    def _blobs(self) -> Sequence[_Blob]:
        """The kernel's types, and those of the modules that are loaded."""
        if self._loaded is None:
            self._loaded = []  # those are looked for by types, of the kernel's own
            self._loaded = list(self._of_loaded())
        return [self._own, *self._loaded]

    def _of_loaded(self) -> Iterator[_Blob]:
        """Yield the types of modules, as the kernel has noted them (kernel/bpf/btf.c)."""
        from drgn.helpers.linux.list import list_for_each_entry

        prog = self._prog
        try:
            head = prog["btf_modules"].address_of_()
            for each in list_for_each_entry("struct btf_module", head, "list"):
                name = each.module.name.string_().decode("utf-8", "replace")
                data = prog.read(each.btf.data.value_(), each.btf.data_size.value_())
                yield _Blob(prog, self._drgn, Btf.parse(data, base=self.btf, name=name), self._own)
        except (LookupError, AttributeError, BadBtf, self._drgn.FaultError):
            return  # the kernel keeps none, or the core lacks them

    def find_type(self, _prog: Any, kinds: Any, name: str, filename: str | None) -> Any:
        """Return the type of a name, or None: nobody knows which file it is of."""
        if filename is not None or self._btf is None:
            return None
        wanted = [each for kind in kinds for each in _KINDS.get(kind.name, ())]
        for blob in [self._own] if not wanted or self._own.has(name, wanted) else self._blobs:
            found = blob.find(name, wanted)
            if found is not None and found.kind in kinds:
                return found
        return None

    # Symbols ------------------------------------------------------------------------------------

    @cached_property
    def symbols(self) -> Mapping[str, int]:
        """The kernel's symbols; what it exports, or tells of, where it lists no data."""
        found = {
            name: export.address + self._moved(export.address)
            for name, export in self.kernel.exports.items()
        }
        own = self.kernel.symbols
        listed = {name: own[name] + self._moved(own[name]) for name in own}
        return found | self._told | listed

    def _moved(self, address: int) -> int:
        return self.slide if address >= _MIDDLE else 0  # below are offsets of per-cpu variables

    @cached_property
    def _order(self) -> tuple[list[int], list[str]]:
        pairs = sorted((at, name) for name, at in self.symbols.items() if at >= _MIDDLE)
        return [at for at, _ in pairs], [name for _, name in pairs]

    def find_symbol(
        self, _prog: Any, name: str | None, address: int | None, one: bool
    ) -> Sequence[Any]:
        """Return the symbols of a name or around an address."""
        addresses, names = self._order
        if name is not None:
            at = self.symbols.get(name)
            if at is None:
                return [s for s in self._of_modules if s.name == name][: 1 if one else None]
            return [self._symbol(name, at)] if address in (None, at) else []
        if address is None:
            return [self._symbol(n, at) for at, n in zip(addresses, names, strict=True)]
        end = bisect_right(addresses, address)
        if not end or end == len(addresses) or address not in self._image:
            found = [s for s in self._of_modules if s.address <= address < s.address + s.size]
            return found[: 1 if one else None]
        start = addresses[end - 1]
        found = [
            self._symbol(names[number], start)
            for number in range(end - 1, -1, -1)
            if addresses[number] == start
        ]
        return found[:1] if one else found

    def _symbol(self, name: str, at: int) -> Any:
        addresses, _ = self._order
        after = bisect_right(addresses, at)
        size = addresses[after] - at if after < len(addresses) and at >= _MIDDLE else 0
        kind = self._drgn.SymbolKind.FUNC if at in self._text else self._drgn.SymbolKind.OBJECT
        return self._drgn.Symbol(name, at, size, self._drgn.SymbolBinding.GLOBAL, kind)

    @cached_property
    def _of_modules(self) -> Sequence[Any]:
        """The symbols of the modules that are loaded, as the kernel itself keeps them (kallsyms)."""
        from drgn.helpers.linux.module import for_each_module

        prog, found = self._prog, []
        try:
            modules = list(for_each_module(prog))
        except (LookupError, self._drgn.FaultError):
            return []
        for module in modules:
            try:
                own = (module.object if hasattr(module, "object") else module).kallsyms
                count, table = own.num_symtab.value_(), own.symtab.value_()
                strings = own.strtab.value_()
                rows = prog.read(table, count * _SYMBOL.size)
                for name, info, _, section, value, size in _SYMBOL.iter_unpack(rows):
                    if section and value and name:
                        text = prog.read_c_string(strings + name).decode("utf-8", "replace")
                        kind = self._drgn.SymbolKind(info & 15)
                        binding = self._drgn.SymbolBinding((info >> 4) + 1)
                        found.append(self._drgn.Symbol(text, value, size, binding, kind))
            except (AttributeError, LookupError, ValueError, self._drgn.FaultError):
                continue  # its symbols are in pages that the core lacks, or not kept at all
        return found

    @cached_property
    def _image(self) -> range:
        ends = (self.symbols.get(name) for name in ("_end", "_etext"))
        return range(self.symbols["_stext"], next((end for end in ends if end is not None), 0))

    @cached_property
    def _text(self) -> range:
        return range(self.symbols.get("_stext", 0), self.symbols.get("_etext", 0))

    # Objects ------------------------------------------------------------------------------------

    @cached_property
    def _constants(self) -> Mapping[str, tuple[int, int]]:
        """Constants of enumerations: name -> type, value."""
        found: dict[str, tuple[int, int]] = {}
        btf = self.btf
        for number in range(1, len(btf)):
            each = btf.type(number)
            if each.kind in _ENUMS:
                for value in each.values:
                    found.setdefault(value.name, (number, value.value))
        return found

    def find_object(self, prog: Any, name: str, flags: Any, filename: str | None) -> Any:
        """Return the variable, function or constant of a name, or None."""
        if filename is not None or self._btf is None:
            return None
        wants = self._drgn.FindObjectFlags
        address = self.symbols.get(name)
        if flags & wants.VARIABLE and address is not None:
            kind = self._kind_of(name)
            if kind is not None:
                return self._drgn.Object(prog, kind, address=address)
        if flags & wants.FUNCTION and address is not None:
            function = self._btf.find(name, Kind.FUNC)
            if function is not None:
                return self._drgn.Object(prog, self.type(function.target), address=address)
        if flags & wants.CONSTANT and name in self._constants:
            number, value = self._constants[name]
            return self._drgn.Object(prog, self.type(number), value)
        return None

    def _kind_of(self, name: str) -> Any:
        """Return the type of a variable; None where nothing says it."""
        stated = self._variables.get(name)
        if stated is None:
            found = self.btf.find(name, Kind.VAR)
            return None if found is None else self.type(found.target)
        try:
            return self._prog.type(stated)
        except LookupError:  # the kernel has no such structure: it means something else by the name
            return None


_ENUM_NAMES = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "unsigned short",
    (2, True): "short",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "unsigned long",
    (8, True): "long",
}


def _drgn() -> Any:
    """Return the package; ExecmemError where there is none."""
    try:
        return import_module("drgn")
    except ImportError:
        raise ExecmemError("drgn is not installed (pip install 'execmem[drgn]')") from None


def register(
    prog: Any, kernel: str | Path | KernelImage, *, variables: Mapping[str, str] | None = None
) -> Finders:
    """Let drgn find types, symbols and objects of a kernel without debugging information.

    Parameters
    ----------
    prog
        A `drgn.Program` that has opened a core of a kernel.
    kernel
        The kernel: an image, a package or a tree, as `execmem kernel` takes it, or a `KernelImage`.
    variables
        Variables whose types BTF does not say: name -> type as C spells it.

    Raises
    ------
    BadKernel
        It cannot be read, or has no types.
    BadCore
        The program has none of a kernel, or of another kernel.
    """
    image = kernel if isinstance(kernel, KernelImage) else read_kernel(kernel)
    try:
        info = facts(prog["VMCOREINFO"].string_().decode())
    except (KeyError, ValueError):
        reason = "has no VMCOREINFO: open a core with Program.set_core_dump first"
        raise BadCore("drgn", "program", reason) from None
    release = info.get("OSRELEASE", "")
    if release != image.release:
        raise BadCore("drgn", "program", f"is of Linux {release}, {image.name} of {image.release}")
    found = Finders(prog, image, info, variables or {})
    for what in ("type", "object", "symbol"):
        add = getattr(prog, f"register_{what}_finder")
        add(NAME, getattr(found, f"find_{what}"), enable_index=-1)
    return found


def open_core(
    path: str | Path,
    kernel: str | Path | KernelImage,
    *,
    variables: Mapping[str, str] | None = None,
) -> Any:
    """Return a `drgn.Program` of a core, with our finders.

    QEMU's dumps, which lack VMCOREINFO, are opened with the one that the kernel keeps in its memory.

    Parameters
    ----------
    path
        An ELF core of a kernel: our own, QEMU's, /proc/vmcore.
    kernel, variables
        As for `register`.

    Raises
    ------
    BadCore, BadKernel
        One of them cannot be read, or they do not belong together.
    """
    image = kernel if isinstance(kernel, KernelImage) else read_kernel(kernel)
    core = vmcore.read(path)
    info = None if core.info else core.told(image.release)
    if not core.info and info is None:
        reason = f"nothing in it tells of Linux {image.release} (VMCOREINFO): of another kernel?"
        raise BadCore(str(path), "memory", reason)
    module = _drgn()
    prog = module.Program() if info is None else module.Program(vmcoreinfo=info)
    try:
        prog.set_core_dump(str(path))
    except (ValueError, OSError) as error:
        raise BadCore(str(path), "drgn", str(error)) from None
    register(prog, image, variables=variables)
    return prog
