# SPDX-License-Identifier: GPL-2.0-or-later
"""What load_module() checks: refused with the kernel's errno and line, tainted, or noticed.

Long because each of the kernel's checks has its case, and all share one way to make a module.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

import archs
from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.types import MIB
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import A, Sec, Sym, W, X
from loader import admission
from loader.build import is_modelled
from loader.checks import CHECKS, LIST, Here, Refused
from loader.depends import open_tree
from loader.errors import LoadError, SymbolClash, UnresolvedSymbols
from loader.gate import TAINTS, taints_text
from loader.loaded import LoadedModule
from loader.module import Loader
from loader.symbols import SymbolTable
from loader.versions import facts_of
from tests.support.checked import (
    SIGNATURE,
    THIS,
    Offer,
    debian,
    extended,
    made,
    signed,
    this_module,
    tree_magic,
    version_table,
)
from tests.support.kernel import FakeKernel, FakePercpu

LAYOUT = {"module_layout": 0x1234}


@attrs.frozen
class Kernel:
    """A loader, and what it says to the log."""

    arch: archs.Arch
    loader: Loader
    lines: list[tuple[int, str]]

    def load(self, image: bytes, name: str = "some.ko") -> LoadedModule:
        """Form a module."""
        return self.loader.form(image, name)

    def refuses(self, image: bytes) -> Refused:
        """Return why a module is refused; the lines of that are in the log, and nothing is left."""
        gate = self.loader.gate
        before = set(self.loader.modules), set(gate.taints), set(gate.said), list(gate.notices)
        with pytest.raises(Refused) as caught:
            self.load(image)
        after = set(self.loader.modules), gate.taints, gate.said, gate.notices
        assert after == before
        error = caught.value
        told = [text for _, text in self.lines]
        assert all(line in told for one in error.violations for line in one.line.splitlines())
        return error

    @property
    def said(self) -> list[str]:
        """What the kernel logged."""
        return [text for _, text in self.lines]


@pytest.fixture
def kernel(arch: archs.Arch) -> Kernel:
    """Return a kernel of each architecture."""
    return build(arch)


def build(arch: archs.Arch, **gate: Any) -> Kernel:
    """Return a kernel."""
    there = arch.loads.address_map()
    memory = KernelMemory(PhysicalMemory(64 * MIB), there)
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke)
    percpu, table = FakePercpu(), SymbolTable(FakeKernel("_printk", base=there.image.start))
    loader = Loader(arch, execmem, table, percpu.alloc, percpu.free, percpu.write)
    lines: list[tuple[int, str]] = []
    loader.gate.log = lambda level, text: lines.append((level, text))
    for name, value in gate.items():
        setattr(loader.gate, name, value)
    return Kernel(arch, loader, lines)


def test_a_module_that_passes_every_check(kernel: Kernel) -> None:
    """Signed, in the tree, free and of the modelled kernel: no taint, no line, no notice."""
    versions = version_table({**LAYOUT, "_printk": 5})
    loaded = kernel.load(made(kernel.arch.machine, uses=["_printk"], extra=[versions]))
    assert (loaded.taints, loaded.notices, kernel.lines) == ("", (), [])


# What the file is ------------------------------------------------------------------------------


OTHER_SIZE = {"small": -64, "large": 64, "empty": None}
FILES: Mapping[str, tuple[str, Callable[[int], bytes]]] = {
    "no this_module": ("this-module-once", lambda m: made(m, this=[])),
    "two this_module": ("this-module-once", lambda m: made(m, this=[this_module(m)] * 2)),
    "a second that is not allocated": (
        "this-module-once",
        lambda m: made(m, this=[this_module(m), this_module(m, flags=0)]),
    ),
    "this_module without contents": (
        "this-module-contents",
        lambda m: elf.section(made(m), THIS, type=elf.NOBITS),
    ),
    "this_module that is not loaded": (
        "this-module-alloc",
        lambda m: made(m, this=[this_module(m, flags=0)]),
    ),
    **{
        f"{what} this_module": (
            "this-module-size",
            lambda m, more=more: elf.section(made(m), THIS, size=0)
            if more is None
            else made(m, this=[this_module(m, size=_size(m) + more)]),
        )
        for what, more in OTHER_SIZE.items()
    },
    "two modinfo": ("modinfo-once", lambda m: made(m, info=2)),
    "two symbol tables": (
        "symtab-once",
        lambda m: elf.section(made(m), ".data", type=elf.SYMTAB),
    ),
    "no symbol table": (
        "symtab-once",
        lambda m: elf.section(made(m), ".symtab", type=elf.PROGBITS),
    ),
    "symbols without strings": ("elf-string-link", lambda m: elf.section(made(m), ".symtab", link=0)),
    "strings beyond": ("elf-string-link", lambda m: elf.section(made(m), ".symtab", link=999)),
    "a type of section 0": ("elf-section-0", lambda m: elf.section(made(m), 0, type=1)),
    "a size of section 0": ("elf-section-0", lambda m: elf.section(made(m), 0, size=1)),
    "an address of section 0": ("elf-section-0", lambda m: elf.section(made(m), 0, addr=1)),
    "a section beyond the file": (
        "elf-section",
        lambda m: elf.section(made(m), ".data", offset=1 << 30, size=8),
    ),
    "a name beyond the names": (
        "elf-section-name",
        lambda m: elf.section(made(m), ".data", name=1 << 20),
    ),
    "no names": ("elf-names", lambda m: elf.header(made(m), shstrndx=0)),
    "names beyond": ("elf-names", lambda m: elf.header(made(m), shstrndx=999)),
    "empty names": ("elf-names-empty", lambda m: elf.section(made(m), ".shstrtab", size=0)),
    "names without an end": ("elf-names-end", lambda m: _without_end(made(m))),
    "no sections": ("elf-names", lambda m: elf.header(made(m), shnum=0)),
    "headers beyond the file": ("elf-table", lambda m: elf.header(made(m), shoff=1 << 40)),
    "headers of another size": ("elf-entry-size", lambda m: elf.header(made(m), shentsize=56)),
    "an executable": ("elf-type", lambda m: elf.header(made(m), type=2)),
    "no magic": ("elf-magic", lambda m: elf.header(made(m), magic=0)),
    "half a header": ("elf-length", lambda m: made(m)[:40]),
    "another machine": ("elf-machine", lambda m: elf.header(made(m), machine=21)),
    "write and execute": (
        "write-exec",
        lambda m: made(m, extra=[Sec(".data.code", b"x", A | W | X)]),
    ),
    "write and execute, not loaded": (
        "write-exec",
        lambda m: made(m, extra=[Sec(".data.code", b"x", W | X)]),
    ),
    "a COMMON symbol": ("common", lambda m: made(m, symbols=[Sym("c", elf.COMMON)])),
    "CRCs without names": ("version-ext-pair", lambda m: made(m, extra=extended(LAYOUT)[:1])),
    "names without CRCs": ("version-ext-pair", lambda m: made(m, extra=extended(LAYOUT)[1:])),
    "more CRCs than names": (
        "version-ext-count",
        lambda m: made(m, extra=[extended({"a": 1, "b": 2})[0], extended({"a": 1})[1]]),
    ),
    "a name without an end": (
        "version-ext-count",
        lambda m: made(m, extra=[extended({"a": 1})[0], Sec("__version_ext_names", b"a", A)]),
    ),
    "both kinds of constructors": (
        "constructors-both",
        lambda m: made(m, extra=[Sec(".ctors", b"", A | W), Sec(".init_array", b"", A | W)]),
    ),
    "a signature longer than the file": (
        "signature-format",
        lambda m: signed(made(m, sign=False), length=1 << 20),
    ),
    "a signature with parameters": (
        "signature-format",
        lambda m: signed(made(m, sign=False), odd=1),
    ),
}  # fmt: skip


def _size(machine: int) -> int:
    found = archs.by_machine(machine)
    assert found is not None
    return found.loads.layouts.size_of("module")


def _without_end(image: bytes) -> bytes:
    return elf.section(image, ".shstrtab", size=5)


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_modules(kernel: Kernel, what: str) -> None:
    """What the kernel does not take for a module is refused, with its errno and line."""
    check, make = FILES[what]
    error = kernel.refuses(make(kernel.arch.machine))
    assert error.check == check
    assert error.errno == CHECKS[check].errno
    assert error.line
    assert CHECKS[check].error in str(error)


def test_the_kernels_words(kernel: Kernel) -> None:
    """A line names the module by its `.modinfo`, as the kernel's does."""
    versions = [version_table(LAYOUT)]
    error = kernel.refuses(made(kernel.arch.machine, "two-face", this=[], extra=versions))
    assert error.line == ("module two-face: Only one .gnu.linkonce.this_module section must exist.")
    assert error.errno == errno.ENOEXEC
    assert kernel.lines == [(3, error.line)]


def test_all_that_is_wrong_at_once(kernel: Kernel) -> None:
    """What can be seen at once is said at once, in the kernel's order; its errno is the first's."""
    machine = kernel.arch.machine
    sections = [
        Sec(".data.code", b"x", A | W | X),
        Sec(".ctors", b"", A),
        Sec(".init_array", b"", A),
    ]
    this = this_module(machine, size=64, flags=0, init=False, leave=False)
    error = kernel.refuses(made(machine, this=[this], extra=sections))
    found = [one.check for one in error.violations]
    assert found == [
        "this-module-alloc", "this-module-size", "write-exec", "constructors-both",
    ]  # fmt: skip
    names = [check.name for check in LIST]
    assert sorted(found, key=names.index) == found
    assert error.errno == errno.ENOEXEC


def test_more_sections_than_sixteen_bits_count(kernel: Kernel) -> None:
    """Extended section numbering, which counts in section 0, is refused for what it is."""
    image = made(kernel.arch.machine)
    count = int.from_bytes(image[60:62], "little")
    many = elf.section(elf.header(image, shnum=0, shstrndx=0xFFFF), 0, size=66_014, link=count - 1)
    error = kernel.refuses(many)
    assert [one.check for one in error.violations] == ["elf-names", "elf-section-0"]
    assert "66014" in str(error)
    assert "65279" in str(error)
    assert "there are none" not in str(error)
    assert error.errno == errno.ENOEXEC


def test_debug_information_alone(kernel: Kernel) -> None:
    """A file whose loaded sections have no contents is no module of zeros."""
    image = made(kernel.arch.machine)
    for name in (".text", ".modinfo", ".data", THIS):
        image = elf.section(image, name, type=elf.NOBITS)
    error = kernel.refuses(image)
    assert error.check == "this-module-contents"
    assert "must have a size set" in error.line


@pytest.mark.parametrize("more", [-64, 64])
@pytest.mark.parametrize("magic", ["other", "modelled", "sample", "none"])
def test_size_of_struct_module(kernel: Kernel, magic: str, more: int) -> None:
    """The size counts where the kernel is known; of another kernel's module it is noticed."""
    machine = kernel.arch.machine
    text = {
        "other": tree_magic(machine),
        "modelled": debian(machine),
        "sample": f"6.12.0-samples {debian(machine).partition(' ')[2]}",
        "none": None,
    }[magic]
    this = this_module(machine, size=_size(machine) + more, init=False, leave=False)
    image = made(machine, this=[this], magic=text)
    if magic != "other":
        assert kernel.refuses(image).check == "this-module-size"
        return
    codes = [notice.code for notice in kernel.load(image).notices]
    assert codes == ["this-module-size", "built-for"]


@pytest.mark.parametrize("twice", [False, True])
def test_a_second_per_cpu_section_is_data(kernel: Kernel, twice: bool) -> None:
    """The first `.data..percpu` that is allocated is per CPU; another is data, and noticed."""
    machine = kernel.arch.machine
    name = ".data..percpu"
    sections = [Sec(name, b"", 0), Sec(name, bytes(8), A | W, align=8)]
    sections += [Sec(name, bytes(16), A | W, align=8)] * twice
    loaded = kernel.load(made(machine, extra=sections))
    found = [s for s in loaded.sections.values() if s.name == name]
    assert [s.type is None for s in found].count(True) == 1
    assert [s.size for s in found if s.type is None] == [8]
    assert [n.code for n in loaded.notices] == ["percpu-once"] * twice
    assert len(found) == 1 + twice


def test_per_cpu_data_aligned_beyond_a_page(kernel: Kernel) -> None:
    """The kernel says so, and aligns it to a page."""
    section = Sec(".data..percpu", bytes(8), A | W, align=8192)
    kernel.load(made(kernel.arch.machine, extra=[section, version_table(LAYOUT)]))
    assert kernel.said == ["one: per-cpu alignment 8192 > 4096"]


# PLT sections ------------------------------------------------------------------------------------


def test_plt_sections_that_an_architecture_needs(kernel: Kernel) -> None:
    """Without them a module of the modelled kernel is refused where it must have them."""
    image = made(kernel.arch.machine, plt=False)
    if kernel.arch.plt is None or not kernel.arch.plt.required:
        assert kernel.load(image).notices == ()
        return
    error = kernel.refuses(image)
    assert (error.check, error.errno) == ("plt-missing", errno.ENOEXEC)
    assert error.line == "one: module PLT section(s) missing"
    assert "--with-plt" in str(error)
    kernel.loader.stub_sections = True
    assert kernel.load(image).notices == ()


def test_an_object_by_hand_without_plt_sections(kernel: Kernel) -> None:
    """An object that no kernel's build linked is loaded without, which is noticed."""
    loaded = kernel.load(made(kernel.arch.machine, plt=False, magic=None))
    needs = kernel.arch.plt is not None and kernel.arch.plt.required
    assert [n.code for n in loaded.notices] == ["vermagic-missing", *["plt-missing"] * needs]


def test_plt_sections_may_be_writable_in_the_file(kernel: Kernel) -> None:
    """What the loader makes executable memory of anyway is not held to its flags (5.10's are W+X)."""
    plt = kernel.arch.plt
    if plt is None:
        pytest.skip(f"{kernel.arch.name} has no PLT")
    extra = [Sec(plt.section, b"\0", A | W | X), Sec(plt.init_section, b"\0", A | W | X)]
    image = made(kernel.arch.machine, plt=False, extra=extra)
    if plt.required:
        kernel.load(image)


# Constructors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".ctors", ".init_array", ".init_array.00101", ".ctors.65000"])
@pytest.mark.parametrize("runs", [False, True])
def test_constructors_are_noticed(arch: archs.Arch, name: str, runs: bool) -> None:
    """Those that do not run are named; no kernel looks at sections with a priority."""
    kernel = build(arch, constructors=runs)
    loaded = kernel.load(made(arch.machine, extra=[Sec(name, bytes(8), A | W, align=8)]))
    noticed = not runs or name.count(".") == 2
    assert [n.code for n in loaded.notices] == ["constructors"] * noticed
    assert all(name in n.text for n in loaded.notices)


def test_both_kinds_of_constructors_by_force(arch: archs.Arch) -> None:
    """A kernel that does not look at them loads it; here that takes force."""
    sections = [Sec(n, bytes(8), A | W) for n in (".ctors", ".init_array")]
    image = made(arch.machine, extra=sections)
    error = build(arch).refuses(image)
    assert (error.errno, error.line) == (errno.EINVAL, "one: has both .ctors and .init_array.")
    assert "F" in build(arch, force=True).load(image).taints


# Taints -----------------------------------------------------------------------------------------

UNFREE = [
    "one: module license 'Proprietary' taints kernel.",
    "Disabling lock debugging due to kernel taint",
    "one: module license taints kernel.",
]
TAINTED: Mapping[str, tuple[str, list[str], dict[str, Any]]] = {
    "out of tree": ("O", ["one: loading out-of-tree module taints kernel."], {"tags": ()}),
    "staging": (
        "C",
        [
            "one: module is from the staging directory, the quality is unknown, you have been warned."
        ],
        {"tags": ("intree=Y", "staging=Y")},
    ),
    "test": ("N", ["one: loading test module taints kernel."], {"tags": ("intree=Y", "test=Y")}),
    "unsigned": (
        "E",
        [
            "one: module verification failed: signature and/or required key missing - tainting kernel"
        ],
        {"sign": False},
    ),
    "proprietary": ("P", UNFREE, {"licence": "Proprietary"}),
    "a licence of another spelling": (
        "P",
        [UNFREE[0].replace("Proprietary", "gpl"), *UNFREE[1:]],
        {"licence": "gpl"},
    ),
    "no licence": (
        "P",
        [UNFREE[0].replace("Proprietary", "unspecified"), *UNFREE[1:]],
        {"licence": None},
    ),
    "no vermagic": (
        "F",
        ["one: bad vermagic: kernel tainted.", UNFREE[1]],
        {"magic": None, "extra": [version_table(LAYOUT)]},
    ),
    "no vermagic, no versions": (
        "F",
        ["one: module_layout: kernel tainted.", UNFREE[1]],
        {"magic": None},
    ),
}


@pytest.mark.parametrize("what", TAINTED)
def test_taints(kernel: Kernel, what: str) -> None:
    """A module taints itself and the kernel; the kernel says so, the second time only some."""
    letters, lines, options = TAINTED[what]
    options = {"extra": [version_table(LAYOUT)], **options}
    if what == "no vermagic, no versions":
        options["extra"] = []
    machine = kernel.arch.machine
    assert kernel.load(made(machine, **options)).taints == letters
    assert taints_text(kernel.loader.gate.taints) == letters
    assert kernel.said == lines
    kernel.lines.clear()
    assert kernel.load(made(machine, "next", **options)).taints == letters
    again = [line.replace("one:", "next:") for line in lines] if what == "staging" else []
    assert kernel.said == again


@pytest.mark.parametrize(
    "licence",
    ["GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"],
)
def test_free_licences(kernel: Kernel, licence: str) -> None:
    """The licences that the kernel takes for compatible do not taint."""
    versions = version_table(LAYOUT)
    assert kernel.load(made(kernel.arch.machine, licence=licence, extra=[versions])).taints == ""


def test_taints_in_the_kernels_order(kernel: Kernel) -> None:
    """Letters are in the order of their bits, whatever came first."""
    loaded = kernel.load(
        made(kernel.arch.machine, licence="x", tags=["test=Y", "staging=Y"], sign=False, magic=None)
    )
    assert loaded.taints == "PFCOEN"
    assert [TAINTS.index(letter) for letter in "PFCOEN"] == [0, 1, 10, 12, 13, 18]


def test_livepatches(kernel: Kernel) -> None:
    """A livepatch taints where the kernel has them; elsewhere it is noticed."""
    versions = version_table(LAYOUT)
    tags = ("intree=Y", "livepatch=Y")
    loaded = kernel.load(made(kernel.arch.machine, tags=tags, extra=[versions]))
    assert loaded.taints == ("K" if kernel.arch.loads.livepatching else "")
    assert [n.code for n in loaded.notices] == ["livepatch"] * (not kernel.arch.loads.livepatching)


@pytest.mark.parametrize("name", ["driverloader", "lve", "ndiswrapper"])
def test_modules_that_the_kernel_knows(kernel: Kernel, name: str) -> None:
    """Some count as proprietary by name; ndiswrapper taints the kernel and not itself."""
    loaded = kernel.load(made(kernel.arch.machine, name, extra=[version_table(LAYOUT)]))
    assert kernel.loader.gate.taints == {"P"}
    assert loaded.taints == ("" if name == "ndiswrapper" else "P")
    assert kernel.said[-1] == f"{name}: module license taints kernel."


def test_obsolete_parameters(kernel: Kernel) -> None:
    """Parameters of Linux 2.4 are ignored, and the kernel says so."""
    extra = [version_table(LAYOUT), Sec("__obsparm", b"x", A)]
    kernel.load(made(kernel.arch.machine, extra=extra))
    assert kernel.said == ["one: Ignoring obsolete parameters"]


def test_exports_without_versions(kernel: Kernel) -> None:
    """Where the kernel has CRCs, a module that exports without is loaded by force."""
    image = made(kernel.arch.machine, offers=[Offer("f")], extra=[version_table(LAYOUT)])
    assert kernel.load(image).taints == "F"
    assert kernel.said[0] == "one: no versions for exported symbols: kernel tainted."


def test_another_kind_of_signature_is_none(kernel: Kernel) -> None:
    """What the kernel has no code for counts as unsigned."""
    image = made(kernel.arch.machine, sign=False, extra=[version_table(LAYOUT)])
    assert kernel.load(signed(image, kind=1)).taints == "E"
    assert not image.endswith(SIGNATURE)


# Symbols ------------------------------------------------------------------------------------------


def loaded_with(kernel: Kernel, *offers: Offer, **options: Any) -> LoadedModule:
    """Load the module `lib` that exports something."""
    return kernel.load(made(kernel.arch.machine, "lib", offers=offers, **options), "lib.ko")


@pytest.mark.parametrize("flagged", [False, True])
def test_gpl_only_exports(kernel: Kernel, flagged: bool) -> None:
    """A proprietary module does not see them; in Linux 7 a table of flags says which they are."""
    machine = kernel.arch.machine
    loaded_with(kernel, Offer("free"), Offer("bound", gpl=True), flagged=flagged)
    error = kernel.refuses(made(machine, licence="Proprietary", uses=["free", "bound"]))
    assert [(one.check, one.where) for one in error.violations] == [("gpl-only", "symbol 'bound'")]
    assert error.errno == errno.ENOENT
    assert error.line == "one: Unknown symbol bound (err -2)"
    assert kernel.load(made(machine, "two", licence="GPL v2", uses=["free", "bound"])).name == "two"
    assert kernel.load(made(machine, "three", licence="x", uses=["free"])).name == "three"


def test_a_weak_name_that_is_gpl_only(kernel: Kernel) -> None:
    """A weak name that a proprietary module does not see stays 0, and nobody is held."""
    lib = loaded_with(kernel, Offer("bound", gpl=True))
    loaded = kernel.load(made(kernel.arch.machine, licence="x", weak=["bound"]))
    assert bytes(loaded.linked.sections[kernel_data(loaded)]) == bytes(8)
    assert lib.users == set()


def kernel_data(loaded: LoadedModule) -> int:
    """Return the index of `.data`."""
    section = loaded.view.section(".data")
    assert section is not None
    return section.index


def test_taint_is_inherited(kernel: Kernel) -> None:
    """Who uses a proprietary module's symbols is proprietary, and so are its own users."""
    machine = kernel.arch.machine
    loaded_with(kernel, Offer("secret"), licence="Proprietary")
    kernel.lines.clear()
    user = kernel.load(made(machine, "user", uses=["secret"], offers=[Offer("shim")]))
    assert user.taints == "PF"
    line = "user: module uses symbols secret from proprietary module lib, inheriting taint."
    assert line in kernel.said
    assert "P" in kernel.load(made(machine, "third", uses=["shim"])).taints
    loaded = kernel.load(made(machine, "gpl", offers=[Offer("bound", gpl=True)]))
    assert "P" not in loaded.taints
    error = kernel.refuses(made(machine, "shim2", uses=["secret", "bound"]))
    assert error.line == "shim2: Unknown symbol bound (err -2)"


def test_gpl_only_symbols_and_a_proprietary_module(kernel: Kernel) -> None:
    """Who uses GPL-only symbols gets none of a proprietary module (no GPL condom)."""
    machine = kernel.arch.machine
    loaded_with(kernel, Offer("secret"), licence="Proprietary")
    kernel.load(made(machine, "gpl", offers=[Offer("bound", gpl=True)]))
    error = kernel.refuses(made(machine, uses=["bound", "secret"]))
    assert (error.check, error.errno) == ("proprietary-provider", errno.ENOENT)
    assert error.line.splitlines() == [
        "one: module using GPL-only symbols uses symbols secret from proprietary module lib.",
        "one: Unknown symbol secret (err -2)",
    ]


def test_what_a_kernel_gives_a_proprietary_module(kernel: Kernel) -> None:
    """Which of the kernel's symbols are GPL-only is not known: they are named."""
    machine = kernel.arch.machine
    notices = kernel.load(made(machine, licence="Sold", uses=["_printk"])).notices
    (notice,) = [n for n in notices if n.code == "gpl-unknown"]
    assert "_printk" in notice.text
    assert "'Sold'" in notice.text
    loaded_with(kernel, Offer("secret"), licence="Proprietary")
    # The taint comes with the symbol that brings it, and is about those behind it.
    for names, noticed in ((["secret", "_printk"], True), (["_printk", "secret"], False)):
        loaded = kernel.load(made(machine, f"user{noticed}", uses=names))
        assert "P" in loaded.taints
        assert ("gpl-unknown" in [n.code for n in loaded.notices]) is noticed


IMPORTS = {
    "bare": (("import_ns=SPACE",), True),
    "quoted": (('import_ns="SPACE"',), True),
    "one of two": (("import_ns=OTHER", "import_ns=SPACE"), True),
    "another": (("import_ns=OTHER",), False),
    "longer": (("import_ns=SPACES",), False),
    "none": ((), False),
}


@pytest.mark.parametrize("export", ["SPACE", '"SPACE"'])
@pytest.mark.parametrize("what", IMPORTS)
@pytest.mark.parametrize("gpl", [False, True])
def test_namespaces(kernel: Kernel, what: str, export: str, gpl: bool) -> None:
    """An export in a namespace is for those that import it, in either spelling."""
    tags, given = IMPORTS[what]
    loaded_with(kernel, Offer("deep", gpl, export), Offer("plain", gpl))
    image = made(kernel.arch.machine, tags=("intree=Y", *tags), uses=["plain", "deep"])
    if given:
        kernel.load(image)
        return
    error = kernel.refuses(image)
    assert (error.check, error.errno) == ("namespace", errno.EINVAL)
    assert error.line.splitlines() == [
        f"one: module uses symbol (deep) from namespace {export}, but does not import it.",
        "one: Unknown symbol deep (err -22)",
    ]


@pytest.mark.parametrize(
    ("names", "given"),
    [
        ("one", True),
        ("two,one", True),
        ("on*", True),
        ("two", False),
        ("ones", False),
        ("t*", False),
    ],
)
def test_exports_for_named_modules(kernel: Kernel, names: str, given: bool) -> None:
    """Since Linux 6.16 a namespace can name the modules that may use an export."""
    loaded_with(kernel, Offer("deep", space=f"module:{names}"))
    image = made(kernel.arch.machine, uses=["deep"])
    if given:
        kernel.load(image)
    else:
        assert kernel.refuses(image).check == "namespace"


@pytest.mark.parametrize("form", [version_table, extended])
def test_crcs_of_loaded_modules(kernel: Kernel, form: Callable[[Mapping[str, int]], Any]) -> None:
    """What a module was built against is compared with what its provider exports."""
    machine = kernel.arch.machine
    layout = version_table(LAYOUT)
    loaded_with(kernel, Offer("f", crc=7), Offer("g", gpl=True, crc=0xFFFF_FFFF), extra=[layout])
    assert {e.name: e.crc for e in kernel.loader.modules["lib"].exports} == {
        "f": 7,
        "g": 0xFFFF_FFFF,
    }

    def image(name: str, f: int, g: int = 0xFFFF_FFFF) -> bytes:
        found = form({**LAYOUT, "f": f, "g": g})
        extra = [found] if isinstance(found, Sec) else list(found)
        return made(machine, name, uses=["f", "g"], extra=extra)

    kernel.load(image("good", 7))
    error = kernel.refuses(image("bad", 8, 9))
    assert [(v.check, v.errno) for v in error.violations] == [("symbol-version", errno.EINVAL)] * 2
    assert error.line.splitlines()[:2] == [
        "bad: disagrees about version of symbol f",
        "bad: Unknown symbol f (err -22)",
    ]
    assert kernel.loader.modules.keys() == {"lib", "good"}
    kernel.loader.gate.force = True
    assert "F" in kernel.load(image("bad", 8)).taints


def test_crcs_of_64_bits(kernel: Kernel) -> None:
    """An entry of `__versions` has 64 bits, and all of them count."""
    loaded_with(kernel, Offer("f", crc=7), extra=[version_table(LAYOUT)])
    versions = version_table({**LAYOUT, "f": 7 | 1 << 32})
    error = kernel.refuses(made(kernel.arch.machine, uses=["f"], extra=[versions]))
    assert error.check == "symbol-version"


def test_versions_that_leave_a_symbol_out(kernel: Kernel) -> None:
    """A symbol that the versions do not list is let through; the kernel says so once."""
    loaded_with(kernel, Offer("f", crc=7), extra=[version_table(LAYOUT)])
    for name in ("one", "two"):
        kernel.load(made(kernel.arch.machine, name, uses=["f"], extra=[version_table(LAYOUT)]))
    assert kernel.said == ["one: no symbol version for f"]


def test_errno_of_several_symbols(kernel: Kernel) -> None:
    """The kernel goes on to the last symbol, and returns the last error."""
    loaded_with(kernel, Offer("deep", space="S"), Offer("bound", gpl=True))
    machine = kernel.arch.machine
    error = kernel.refuses(made(machine, licence="x", uses=["bound", "deep"]))
    assert [v.errno for v in error.violations] == [errno.ENOENT, errno.EINVAL]
    assert error.errno == errno.EINVAL
    error = kernel.refuses(made(machine, licence="x", uses=["deep", "bound"]))
    assert error.errno == errno.ENOENT


# A tree ----------------------------------------------------------------------------------------


def in_tree(tmp_path, arch: archs.Arch, magic: str, **options: Any) -> Kernel:
    """Return a kernel that is known by a tree of modules of one version magic."""
    folder = tmp_path / "lib" / "modules" / magic.partition(" ")[0]
    (folder / "kernel").mkdir(parents=True)
    for name in ("aa", "bb", "cc"):
        (folder / "kernel" / f"{name}.ko").write_bytes(
            made(arch.machine, name, magic=magic, **options)
        )
    (folder / "modules.dep").write_text("".join(f"kernel/{n}.ko:\n" for n in ("aa", "bb", "cc")))
    facts = facts_of(open_tree(tmp_path), arch)
    return build(arch, facts=lambda: facts)


def test_a_tree_of_another_release(arch: archs.Arch, tmp_path) -> None:
    """A module for another kernel than the tree's is refused by its version magic."""
    machine = arch.machine
    kernel = in_tree(tmp_path, arch, tree_magic(machine, versions=False))
    error = kernel.refuses(made(machine, magic=tree_magic(machine, "6.5.1-other", versions=False)))
    assert (error.check, error.errno) == ("vermagic", errno.ENOEXEC)
    wanted = tree_magic(machine, versions=False)
    had = wanted.replace("6.5.0", "6.5.1")
    assert error.line == f"one: version magic '{had}' should be '{wanted}'"
    assert "--force" in str(error)
    good = kernel.load(made(machine, "good", magic=wanted))
    assert [n.code for n in good.notices] == ["built-for"]
    assert good.taints == ""
    kernel.loader.gate.force = True
    kernel.lines.clear()
    assert kernel.load(made(machine, magic=had)).taints == "FE"
    assert kernel.said[0] == "one: bad vermagic: kernel tainted."


@pytest.mark.parametrize("form", [version_table, extended])
def test_crcs_vouch_for_another_release(
    arch: archs.Arch, tmp_path, form: Callable[[Mapping[str, int]], Any]
) -> None:
    """With CRCs the release does not count: that of module_layout does."""
    machine, magic = arch.machine, tree_magic(arch.machine)
    kernel = in_tree(tmp_path, arch, magic, extra=[version_table({**LAYOUT, "f": 5})])
    other = magic.replace("6.5.0", "6.5.9")

    def image(crcs: Mapping[str, int], name: str = "one", **options: Any) -> bytes:
        found = form(crcs)
        extra = [found] if isinstance(found, Sec) else list(found)
        return made(machine, name, magic=other, extra=extra, **options)

    error = kernel.refuses(image({"module_layout": 9}))
    assert error.errno == errno.ENOEXEC
    assert error.violations[0].check == "module-layout"
    assert error.line.splitlines()[0] == "one: disagrees about version of symbol module_layout"
    # Only the plain table lets the release be another (same_magic).
    if form is extended:
        assert kernel.refuses(image(LAYOUT)).check == "vermagic"
        return
    assert kernel.load(image(LAYOUT)).taints == ""
    error = kernel.refuses(image({**LAYOUT, "f": 6}, "two", uses=["f"]))
    assert (error.check, error.errno) == ("symbol-version", errno.EINVAL)
    assert kernel.refuses(image({"f": 5}, "three")).check == "vermagic"


def test_versions_without_anything_to_compare(arch: archs.Arch, tmp_path) -> None:
    """Where the tree knows no CRC of module_layout, the release has to be the same."""
    machine, magic = arch.machine, tree_magic(arch.machine)
    kernel = in_tree(tmp_path, arch, magic)
    versions = [version_table(LAYOUT)]
    assert kernel.refuses(
        made(machine, magic=tree_magic(machine, "6.6.6"), extra=versions)
    ).check == ("vermagic")
    kernel.load(made(machine, magic=magic, extra=versions))


def test_size_of_the_trees_struct_module(arch: archs.Arch, tmp_path) -> None:
    """With a tree the size that counts is that of its modules."""
    machine, magic = arch.machine, tree_magic(arch.machine)
    this = [this_module(machine, size=_size(machine) + 64)]
    kernel = in_tree(tmp_path, arch, magic, this=this)
    assert kernel.refuses(made(machine, magic=magic)).check == "this-module-size"
    kernel.load(made(machine, magic=magic, this=this))


def test_exports_of_a_kernel_that_are_listed(arch: archs.Arch, tmp_path) -> None:
    """A symvers says of the kernel's own exports what tables say of a module's."""
    machine, magic = arch.machine, tree_magic(arch.machine)
    kernel = in_tree(tmp_path, arch, magic, extra=[version_table(LAYOUT)])
    (folder,) = (tmp_path / "lib" / "modules").iterdir()
    (folder / "Module.symvers").write_text(
        "0x00000009\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n"
        "0x00000001\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n"
        "0x00000002\tbound\tvmlinux\tEXPORT_SYMBOL_GPL\t\n"
        "0x00000003\tdeep\tvmlinux\tEXPORT_SYMBOL\tSPACE\n"
        "0x00000004\telsewhere\tdrivers/x\tEXPORT_SYMBOL_GPL\tSPACE\n",
        "utf-8",
    )
    facts = facts_of(open_tree(tmp_path), arch)
    kernel.loader.gate.facts = lambda: facts
    crcs = {"module_layout": 9, "_printk": 1, "bound": 2, "deep": 3}

    def image(name: str, **options: Any) -> bytes:
        return made(machine, name, magic=magic, extra=[version_table(crcs)], **options)

    assert kernel.refuses(image("a", licence="x", uses=["_printk", "bound"])).check == "gpl-only"
    assert kernel.refuses(image("b", uses=["deep"])).check == "namespace"
    kernel.load(image("c", uses=["deep"], tags=["intree=Y", "import_ns=SPACE"]))
    loaded = kernel.load(image("d", licence="x", uses=["_printk"]))
    assert "gpl-unknown" not in [n.code for n in loaded.notices]
    kernel.load(image("e", uses=["elsewhere"]))
    crcs["_printk"] = 7
    assert kernel.refuses(image("f", uses=["_printk"])).check == "symbol-version"
    crcs["module_layout"] = 0x1234  # what the tree's modules say, and its symvers does not
    assert kernel.refuses(image("g")).check == "module-layout"


# Alone --------------------------------------------------------------------------------------------


def test_a_module_alone(kernel: Kernel) -> None:
    """With nothing to compare with, a module of another kernel is loaded, and it is said."""
    machine = kernel.arch.machine
    versions = version_table({"module_layout": 0xDEADBEEF, "_printk": 0x12345678})
    loaded = kernel.load(
        made(machine, magic="6.12.999-other SMP x", uses=["_printk"], extra=[versions])
    )
    (notice,) = loaded.notices
    assert notice.code == "built-for"
    assert "6.12.999-other" in notice.text
    assert (
        f"Linux 6.12.107, Debian {kernel.arch.loads.vermagic.split()[0].partition('-')[2]}"
        in notice.text
    )
    assert (notice.module, str(notice)) == ("one", f"one: {notice.text}")
    assert kernel.loader.gate.notices == [notice]


@pytest.mark.parametrize(
    ("magic", "told"),
    [
        (
            "6.1.99-android14-11-g01 SMP preempt",
            "built for Linux 6.1.99-android14-11-g01 (Android);",
        ),
        ("6.11.4-301.fc41.x86_64 SMP", "built for Linux 6.11.4-301.fc41.x86_64 (Fedora);"),
        (
            "6.6.73 SMP mod_unload MIPS32_R2",
            "built for Linux 6.6.73; {done} as 6.6 does;",
        ),
        ("", "version magic '' names no version: taken for {release};"),
        (" 6.1", "version magic '' names no version: taken for {release};"),
        ("nonsense x", "version magic 'nonsense' names no version: taken for {release};"),
        ("6." + "1" * 100_000, f"version magic '6.{'1' * 62}...' names no version"),
        ("6.1.2-" + "x" * 100_000, f"built for Linux 6.1.2-{'x' * 58}...;"),
        ("{release} SMP odd", "built for Linux {release} of another configuration ('SMP odd', not"),
        ("{release} " + "y" * 100_000, f"of another configuration ('{'y' * 64}...', not"),
    ],
)
def test_what_a_module_was_built_for_is_told(kernel: Kernel, magic: str, told: str) -> None:
    """By its release; where that is none, or the modelled kernel's own, by what is the matter."""
    release = kernel.arch.loads.vermagic.partition(" ")[0]
    magic = magic.replace("{release}", release)
    tags = ("intree=Y", f"vermagic={magic}")
    (notice,) = kernel.load(made(kernel.arch.machine, magic=None, tags=tags)).notices
    assert notice.code == "built-for"
    done = "linked and finalised" if kernel.arch.finalise else "linked"
    assert told.replace("{release}", release).replace("{done}", done) in notice.text
    assert len(notice.text) < 400


@pytest.mark.parametrize(
    ("release", "same"),
    [
        ("6.12.107+deb13", True),
        ("6.12.106+deb13", False),
        ("6.12.107+deb12", False),
        ("6.13.107+deb13", False),
        ("6.12.0", False),
    ],
)
def test_modules_of_the_kernel_that_is_modelled(arch: archs.Arch, release: str, same: bool) -> None:
    """A build of the same release and configuration is what is modelled, and no other."""
    model, _, words = arch.loads.vermagic.partition(" ")
    flavour = model.partition("-")[2]
    magic = f"{release}-{flavour} {words}"
    assert is_modelled(magic, arch) is same
    assert not is_modelled(magic.replace("modversions", "preempt_rt modversions"), arch)
    assert not is_modelled(f"{release}-cloud-{flavour} {words}", arch)
    loaded = build(arch).load(made(arch.machine, magic=magic, extra=[version_table(LAYOUT)]))
    assert [n.code for n in loaded.notices] == ["built-for"] * (not same)


def test_no_version_magic(kernel: Kernel) -> None:
    """A module that names no kernel is loaded by force, and what is assumed is said."""
    loaded = kernel.load(made(kernel.arch.machine, magic=None))
    assert [n.code for n in loaded.notices] == ["vermagic-missing"]
    assert loaded.taints == "F"


# Other refusals -------------------------------------------------------------------------------


def test_errno_of_other_refusals(kernel: Kernel) -> None:
    """What else is refused has the kernel's errno, too, and its line is logged."""
    machine = kernel.arch.machine
    loaded_with(kernel, Offer("f"), extra=[version_table(LAYOUT)])
    kernel.lines.clear()
    with pytest.raises(SymbolClash) as clash:
        kernel.load(made(machine, offers=[Offer("f")]))
    assert clash.value.errno == errno.ENOEXEC
    assert kernel.lines[-1] == (3, "one: exports duplicate symbol f (owned by lib)")
    with pytest.raises(LoadError) as twice:
        kernel.load(made(machine, "lib"))
    assert twice.value.errno == errno.EEXIST
    kernel.loader.symbols.refuse_unknown = True
    with pytest.raises(UnresolvedSymbols) as unknown:
        kernel.load(made(machine, uses=["nobody"]), "one.ko")
    assert unknown.value.errno == errno.ENOENT
    assert kernel.lines[-1] == (4, "one: Unknown symbol nobody (err -2)")


# The rules -------------------------------------------------------------------------------------


def test_the_rules_are_whole() -> None:
    """Every check has a name of its own; what is refused has an errno unless it is init's."""
    assert len(CHECKS) == len(LIST)
    for check in LIST:
        if check.here is Here.REFUSED:
            assert check.errno or check.name == "init", check.name
        if check.here in (Here.TAINTED, Here.LOGGED):
            assert check.line, check.name
            assert not check.errno, check.name
        if check.here is Here.UNMODELLED:
            assert check.why, check.name
        assert check.error == (errno.errorcode[check.errno] if check.errno else "")


# Checks that errors of their own stand for, or that are the machine's.
ELSEWHERE = {
    "loaded-already", "memory", "relocations", "duplicate-export", "parameter", "init",
    "in-use", "permanent", "unknown-symbol",
}  # fmt: skip


def test_every_rule_is_applied() -> None:
    """What is refused, tainted, noticed or logged by the rules is so in the code, by its name."""
    code = "".join(
        (Path(admission.__file__).parent / name).read_text("utf-8")
        for name in ("admission.py", "build.py", "elf.py")
    )
    ruled = {check.name for check in LIST if check.here is not Here.UNMODELLED}
    assert {name for name in ruled if f'"{name}"' in code} == ruled - ELSEWHERE


def test_how_long_a_signature_may_be(kernel: Kernel) -> None:
    """It lies before its description, in the file, whose first byte is the module's."""
    plain = made(kernel.arch.machine, sign=False, extra=[version_table(LAYOUT)])
    most = len(plain) + 16 - 1
    assert kernel.load(signed(plain, length=most)).taints == ""
    kernel.loader.discard(kernel.loader.modules["one"])
    assert kernel.refuses(signed(plain, length=most + 1)).check == "signature-format"
