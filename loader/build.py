# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module was built for, and where each part of that is known from.

A kernel that is given knows best: its image, its configuration, its types. A module alone tells
by its version magic, by the notes and comments that its build left in it, and by how its
sections are aligned. What nothing tells is as in the kernel that is modelled.

Sources are asked in this order, and one that is asked later and says something else is a
conflict, which is kept by name.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import attrs

from allocator.types import KIB, PAGE_SIZE, size_text
from archs import Arch, archs
from archs.versions import Version, version_of
from loader.btf import BadBtf
from loader.btf_records import Kind
from loader.elfview import ElfView
from loader.flavours import UNKNOWN, flavour_of
from loader.kernel.image import KernelImage
from loader.layout import THIS_MODULE
from loader.marks import marks_of
from loader.versions import VMLINUX, SymversExport, TreeFacts

T = TypeVar("T")

SHOWN = 64  # characters of a release, as `uname -r` prints it
NOTE = ".note.Linux"
BUILD_SALT = 0x100  # LINUX_ELFNOTE_BUILD_SALT
COMMENT = ".comment"
_NUMBERS = re.compile(r"\d+\.\d+(?:\.\d+)?(?:-rc\d+)?(?:-\d+)?")
_REBUILT = re.compile(r"^\+(?:deb|bpo)[\d.]*(?:\+\d+)?")

# Sample modules are built for what is modelled, as part of it, and say so in this way.
SAMPLES = re.compile(r"6\.12\.\d+-samples")
_KIB_PAGES = re.compile(r"(?<![0-9A-Za-z])(16|64)k(?![0-9A-Za-z])", re.IGNORECASE)


class Source(enum.Enum):
    """Where something is known from."""

    IMAGE = "image"
    CONFIG = "configuration"
    TYPES = "types"
    VERMAGIC = "version magic"
    NOTE = "build salt"
    SECTIONS = "sections"
    INSTRUCTIONS = "instruction bytes"
    COMMENT = "compiler"
    RELEASE = "release"
    MODELLED = "modelled"
    NOTHING = "nothing"


@attrs.frozen
class Fact(Generic[T]):
    """Something that is known of a build, and from where.

    >>> str(Fact(4096, Source.IMAGE))
    '4096 (image)'
    """

    value: T
    source: Source

    def __str__(self) -> str:
        return f"{self.value} ({self.source.value})"

    @property
    def assumed(self) -> bool:
        """Whether nothing tells, and the modelled kernel's is taken."""
        return self.source is Source.MODELLED


@attrs.frozen(kw_only=True)
class Build:
    """What a module, or a kernel, was built for.

    Parameters
    ----------
    arch
        Its architecture.
    release, version
        Of Linux, as `uname -r` has it and as two numbers.
    flavour
        Whose kernel it is (a distribution), or `unknown`.
    page_size
        Bytes of a page.
    smp
        CONFIG_SMP.
    preemption
        `preempt_rt`, `preempt`, or empty.
    modversions
        CONFIG_MODVERSIONS.
    module_size
        Bytes of struct module.
    config
        Its configuration; None where it is not known.
    types, exports
        Whether its types, and what it exports, are known.
    shown
        What the module's own sections and instructions show, by name.
    modelled
        Whether it is that of the kernel that is modelled: all that tells says so, and nothing is
        assumed.
    tabled
        Whether structures are laid out as in the table of its architecture.
    conflicts
        What two sources say differently.
    """

    arch: Arch
    release: Fact[str]
    version: Fact[Version]
    flavour: Fact[str]
    page_size: Fact[int]
    smp: Fact[bool]
    preemption: Fact[str]
    modversions: Fact[bool]
    module_size: Fact[int]
    config: Mapping[str, str] | None = attrs.field(repr=False)
    types: Fact[bool]
    exports: Fact[bool]
    modelled: bool
    tabled: bool
    shown: Mapping[str, Fact[str]] = attrs.field(factory=dict)
    conflicts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its version, and whose it is: `Linux 6.12.107, Debian amd64`."""
        release = self.release.value
        whose = self.flavour.value
        numbers = _NUMBERS.match(release)
        if whose == UNKNOWN or numbers is None:
            return f"Linux {cut(release)}"
        variant = _REBUILT.sub("", release[numbers.end() :]).lstrip("-")
        if whose != "Debian" or not variant:
            return f"Linux {cut(release)} ({whose})"
        return f"Linux {numbers[0]}, {whose} {variant}"

    @property
    def named(self) -> str:
        """Its release, for who says that something of it is not known."""
        if self.release.assumed and not self.modelled:
            return "a kernel that the module does not name"
        return cut(self.release.value)

    @property
    def facts(self) -> Mapping[str, Fact[object]]:
        """What is known, by name."""
        names = (
            "release", "version", "flavour", "page_size", "smp", "preemption", "modversions",
            "module_size", "types", "exports",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of what nothing tells."""
        return tuple(name for name, fact in self.facts.items() if fact.assumed)


def cut(text: str) -> str:
    """Return what a person reads of a release that may be anything."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@attrs.frozen
class _Magic:
    """A version magic in parts: `RELEASE WORD...`."""

    release: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, magic: str) -> _Magic:
        release, *words = magic.split(" ")
        return cls(release, tuple(words))

    @property
    def preemption(self) -> str:
        return next((w for w in ("preempt_rt", "preempt") if w in self.words), "")


@attrs.define
class _Collected:
    """Collects facts: of several sources the first counts, and others that differ are conflicts."""

    conflicts: list[str] = attrs.field(factory=list)

    def of(self, name: str, *told: tuple[T | None, Source], show: object = str) -> Fact[T]:
        """Return a fact, given what each source tells; None: it tells nothing."""
        facts = [Fact(value, source) for value, source in told if value is not None]
        best = facts[0]
        for other in facts[1:]:
            if not other.assumed and other.value != best.value:
                assert callable(show)
                self.conflicts.append(
                    f"{name}: {show(best.value)} by the {best.source.value}, "
                    f"{show(other.value)} by the {other.source.value}"
                )
        return best


def build_of(
    view: ElfView | None, kernel: KernelImage | None = None, arch: Arch | None = None
) -> Build:
    """Return what a module was built for.

    Parameters
    ----------
    view
        The module; None: only the kernel is asked.
    kernel
        The kernel that it is for, where it is given.
    arch
        The architecture, where neither is given: the build that is modelled is returned.
    """
    found = view.arch if view is not None else kernel.arch if kernel is not None else arch
    assert found is not None
    known = _Collected()
    usual = _Magic.of(found.loads.vermagic)
    magic = None if view is None else view.modinfo.get("vermagic")
    whole = magic
    if view is None:
        whole = found.loads.vermagic if kernel is None else kernel.vermagic
    said = None if magic is None else _Magic.of(magic)
    named = said is not None and version_of(said.release) is not None
    spoken = said if said is not None and named else None
    its = None if kernel is None or not kernel.vermagic else _Magic.of(kernel.vermagic)
    salt = build_salt(view)
    release = known.of(
        "release",
        (_named(None if kernel is None else kernel.release), Source.IMAGE),
        (None if spoken is None else spoken.release, Source.VERMAGIC),
        (salt, Source.NOTE),
        (usual.release, Source.MODELLED),
        show=cut,
    )
    version = version_of(release.value)
    assert version is not None
    config = None if kernel is None else kernel.config
    shown = {} if view is None else _shown(known, view, Fact(version, release.source), config)
    words = [(its, Source.IMAGE), (spoken, Source.VERMAGIC), (usual, Source.MODELLED)]
    return Build(
        arch=found,
        release=release,
        version=Fact(version, release.source),
        flavour=_flavour(view, kernel, release),
        page_size=_page_size(known, view, kernel, release, found),
        smp=known.of("SMP", _option(config, "CONFIG_SMP"), *_each(words, "SMP"), show=_yes),
        preemption=known.of(
            "preemption",
            (_preemption(config), Source.CONFIG),
            *((None if w is None else w.preemption, source) for w, source in words),
            show=repr,
        ),
        modversions=known.of(
            "MODVERSIONS",
            _option(config, "CONFIG_MODVERSIONS"),
            *_each(words, "modversions"),
            show=_yes,
        ),
        module_size=known.of(
            "struct module",
            (None if kernel is None else struct_module(kernel), Source.TYPES),
            (_this_module(view), Source.SECTIONS),
            (found.loads.layouts.size_of("module"), Source.MODELLED),
        ),
        config=config,
        types=_is_known(kernel is not None and _types(kernel)),
        exports=_is_known(kernel is not None and bool(kernel.exports)),
        shown=shown,
        modelled=is_modelled(whole or "", found) and not known.conflicts,
        tabled=_is_tabled(whole or "", found) and not known.conflicts,
        conflicts=tuple(known.conflicts),
    )


def _shown(
    known: _Collected, view: ElfView, version: Fact[Version], config: Mapping[str, str] | None
) -> dict[str, Fact[str]]:
    """Return what a module's own bytes show; what says something else is a conflict."""
    found: dict[str, Fact[str]] = {}
    for name, mark in marks_of(view).items():
        source = Source.INSTRUCTIONS if mark.instructions else Source.SECTIONS
        found[name] = Fact(mark.value, source)
        what = f"{name}: {mark.value} by the {source.value}"
        if not version.assumed and not mark.in_version(version.value):
            number, last = ".".join(map(str, version.value)), mark.until
            if mark.since > version.value:
                span = f"since {'.'.join(map(str, mark.since))} only"
            else:
                span = f"before {'.'.join(map(str, last or ()))} only"
            known.conflicts.append(f"{what}, {span}; {number} by the {version.source.value}")
        if config is not None and (other := mark.against(config)):
            known.conflicts.append(f"{what}, {other} by the {Source.CONFIG.value}")
    return found


def _named(release: str | None) -> str | None:
    """Return a release that names a version."""
    return release if release is not None and version_of(release) is not None else None


def _is_known(there: bool) -> Fact[bool]:
    return Fact(there, Source.IMAGE if there else Source.NOTHING)


def _types(kernel: KernelImage) -> bool:
    try:
        return kernel.btf is not None
    except BadBtf:
        return False


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _each(
    words: Iterable[tuple[_Magic | None, Source]], word: str
) -> Iterator[tuple[bool | None, Source]]:
    """Yield whether each version magic has a word."""
    for magic, source in words:
        yield (None if magic is None else word in magic.words), source


def _option(config: Mapping[str, str] | None, name: str) -> tuple[bool | None, Source]:
    """Return whether an option is on; a configuration that lacks it has it off."""
    return (None if config is None else config.get(name, "n") == "y"), Source.CONFIG


def _preemption(config: Mapping[str, str] | None) -> str | None:
    """Return what VERMAGIC_STRING says of preemption (include/linux/vermagic.h)."""
    if config is None:
        return None
    if config.get("CONFIG_PREEMPT_RT") == "y":
        return "preempt_rt"
    return "preempt" if config.get("CONFIG_PREEMPT_BUILD") == "y" else ""


def _flavour(view: ElfView | None, kernel: KernelImage | None, release: Fact[str]) -> Fact[str]:
    told = flavour_of(release.value)
    if told != UNKNOWN:
        return Fact(told, Source.MODELLED if release.assumed else Source.RELEASE)
    if kernel is not None and (told := flavour_of("", kernel.banner)) != UNKNOWN:
        return Fact(told, Source.IMAGE)
    if view is not None and (told := flavour_of("", _comment(view))) != UNKNOWN:
        return Fact(told, Source.COMMENT)
    return Fact(UNKNOWN, Source.NOTHING)


def _comment(view: ElfView) -> str:
    """Return what compilers left in a module."""
    section = view.section(COMMENT)
    raw = b"" if section is None else bytes(view.contents(section)[: 1 << 16])
    return raw.replace(b"\0", b"\n").decode("utf-8", "backslashreplace")


def _page_size(
    known: _Collected,
    view: ElfView | None,
    kernel: KernelImage | None,
    release: Fact[str],
    arch: Arch,
) -> Fact[int]:
    """Return the bytes of a page; nothing but a page's own alignment needs one of 16 KiB."""
    if len(arch.loads.page_sizes) == 1:
        return Fact(arch.loads.page_sizes[0], Source.MODELLED if kernel is None else Source.IMAGE)
    named = _KIB_PAGES.search(release.value)
    aligns = [] if view is None else [s.align for s in view.sections if s.allocated]
    wide = [size for size in arch.loads.page_sizes if size > PAGE_SIZE and size in aligns]
    return known.of(
        "pages",
        (None if kernel is None else kernel.page_size, Source.IMAGE),
        (int(named[1]) * KIB if named is not None else None, Source.RELEASE),
        (max(wide, default=None), Source.SECTIONS),
        (PAGE_SIZE, Source.MODELLED),
        show=size_text,
    )


def _this_module(view: ElfView | None) -> int | None:
    section = None if view is None else view.section(THIS_MODULE)
    return None if section is None or not section.size else section.size


def struct_module(kernel: KernelImage) -> int | None:
    """Return the bytes of a kernel's struct module; None where its types are not known."""
    if not _types(kernel) or kernel.btf is None:
        return None
    found = kernel.btf.find("module", Kind.STRUCT)
    return None if found is None else kernel.btf.size_of(found.number)


def build_salt(view: ElfView | None) -> str | None:
    """Return the release that a module's build left in its notes (CONFIG_BUILD_SALT), if any."""
    section = None if view is None else view.section(NOTE)
    if view is None or section is None:
        return None
    raw = bytes(view.contents(section))
    order = view.dialect.order
    at = 0
    while at + 12 <= len(raw):
        names, size, kind = (int.from_bytes(raw[at + n : at + n + 4], order) for n in (0, 4, 8))
        start = at + 12 + (names + 3 & ~3)
        text = raw[start : start + size].partition(b"\0")[0].decode("utf-8", "backslashreplace")
        if kind == BUILD_SALT and version_of(text) is not None:
            return text
        at = start + (size + 3 & ~3)
    return None


def with_kernel(facts: TreeFacts | None, kernel: KernelImage) -> TreeFacts:
    """Return what a kernel's own image says, and of the modules of its tree what that says."""
    exports = {
        name: SymversExport(export.crc or 0, VMLINUX, export.gpl, export.namespace)
        for name, export in kernel.exports.items()
    }
    crcs = {name: e.crc for name, e in kernel.exports.items() if e.crc is not None}
    more = {} if facts is None or facts.exports is None else facts.exports
    others = {name: export for name, export in more.items() if export.owner != VMLINUX}
    return TreeFacts(
        release=kernel.release,
        vermagic=kernel.vermagic or (None if facts is None else facts.vermagic),
        module_size=struct_module(kernel) or (None if facts is None else facts.module_size),
        crcs={**{name: export.crc for name, export in others.items()}, **crcs},
        exports={**others, **exports} if exports else None,
        origin=f"the kernel {cut(kernel.release or kernel.name)}",
    )


def models() -> tuple[str, ...]:
    """Return the builds that are modelled, one for each architecture that runs."""
    return tuple(build_of(None, arch=each).title for each in archs() if each.run is not None)


# What is assumed of a module ---------------------------------------------------------------------


def is_sample(vermagic: str) -> bool:
    """Return whether a version magic is that of our own modules.

    >>> is_sample("6.12.0-samples SMP mod_unload"), is_sample("6.12.0 SMP mod_unload")
    (True, False)
    """
    return SAMPLES.fullmatch(vermagic.partition(" ")[0]) is not None


def is_modelled(vermagic: str, arch: Arch) -> bool:
    """Return whether a version magic is that of the kernel that is modelled, or of a sample.

    Every word of it counts: where only the last number of the release is another, nothing says
    that its structures are the same. A distribution that keeps them gives both one release.

    >>> from archs import arch
    >>> is_modelled(arch("arm64").loads.vermagic, arch("arm64"))
    True
    >>> is_modelled("6.12.9+deb13-arm64 SMP mod_unload modversions aarch64", arch("arm64"))
    False
    """
    return vermagic == arch.loads.vermagic or is_sample(vermagic)


def _is_tabled(vermagic: str, arch: Arch) -> bool:
    """Return whether the table of an architecture has the structures of a version magic.

    Where nobody has types of the kernel that is modelled, the table is of another release, which
    it names; its configuration is that release's.
    """
    release = vermagic.partition(" ")[0]
    model = arch.loads.vermagic.partition(" ")[0]
    return is_modelled(vermagic, arch) or release == arch.loads.layouts.release != model


def model_text(arch: Arch) -> str:
    """Return what to call the kernel that is modelled."""
    return f"the kernel that is modelled, {build_of(None, arch=arch).title}"


def stops(build: Build) -> str:
    """Return what a notice ends with that tells of structures which nobody knows; else nothing."""
    known = build.tabled or Source.IMAGE in (build.release.source, build.types.source)
    return "" if known else "; what needs its structures stops: give its kernel with --kernel"


def assumptions(
    build: Build, magic: str, salt: str | None = None, *, page: int = PAGE_SIZE
) -> Iterator[tuple[str, str]]:
    """Yield what is assumed of a module with a version magic: the check (`loader.checks`), a text.

    Parameters
    ----------
    build
        What is known of what it was built for.
    magic, salt
        Its version magic, and what its notes say where that names no version.
    page
        Bytes of a page of the machine that it is loaded into.
    """
    own, model = build.modelled, model_text(build.arch)
    if version_of(magic) is None:
        text = f"version magic {cut(magic.partition(' ')[0])!r} names no version"
        if build.release.source is Source.IMAGE:
            text += f": taken for {build.title}, which is given"
        elif salt is not None:
            text += f": taken for {cut(salt)}, which its notes name"
        else:
            text += f": taken for {cut(build.release.value)}"
        yield "built-for", f"{text}; what it calls is of {model}{stops(build)}"
    elif not own:
        whose = f"built for {_kernel_text(build, magic)}"
        yield "built-for", f"{whose}; {_applied(build)} {model}{stops(build)}"
    if own:
        return
    if build.page_size.value != page:
        size, by = size_text(build.page_size.value), build.page_size.source.value
        usual = size_text(page)
        text = f"its kernel has pages of {size} (by its {by}), modelled are {usual}"
        yield "page-size", f"{text}: what it derives from the size of a page is wrong here"
    if build.conflicts:
        yield "build-conflict", f"two answers: {'; '.join(build.conflicts)}"
    for text in differences(build):
        yield "configuration", text


def _kernel_text(build: Build, magic: str) -> str:
    """Return what to call the kernel that a module was built for: by release, if that tells."""
    release, _, rest = magic.partition(" ")
    _, _, usual = build.arch.loads.vermagic.partition(" ")
    if rest != usual and is_modelled(f"{release} {usual}", build.arch) and not is_sample(magic):
        return f"Linux {cut(release)} of another configuration ({cut(rest)!r}, not {usual!r})"
    flavour = build.flavour.value
    return f"Linux {cut(release)}" + (f" ({flavour})" if flavour != UNKNOWN else "")


def _applied(build: Build) -> str:
    """Return what of a module's own kernel is applied, up to what is not."""
    if build.exports.value and build.types.value:
        return "its exports, ranges and structures are that kernel's; what it calls is of"
    if build.exports.value:
        return "its exports and ranges are that kernel's, what needs structures stops; what it calls is of"
    number = ".".join(map(str, build.version.value))
    done = "linked and finalised" if build.arch.finalise else "linked"
    return f"{done} as {number} does; what it calls is of"


# Option -> what the modelled kernel has, and what is wrong where another one has something else.
MODELLED_CONFIG: Mapping[str, tuple[str, str]] = {
    "CONFIG_HZ": ("250", "jiffies are shorter or longer"),
    "CONFIG_PREEMPT_RT": ("n", "its locks are others"),
    "CONFIG_STRICT_MODULE_RWX": (
        "y",
        "parts of a module share pages there, writable text with them",
    ),
}


def differences(build: Build) -> Iterator[str]:
    """Yield where a kernel's configuration is known to be another than the one that is modelled."""
    told = build.config
    realtime = "y" if build.preemption.value == "preempt_rt" else "n"
    for option, (usual, what) in MODELLED_CONFIG.items():
        known = {option: usual, "CONFIG_PREEMPT_RT": realtime} if told is None else told
        value = known.get(option, "n" if usual in ("y", "n") else usual)
        if value != usual:
            yield f"its kernel has {option}={value}, modelled is {usual}: {what}"
