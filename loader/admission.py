# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the kernel lets a module in, with which taints, and what is only assumed.

The rules stand in `loader.checks`; here they are applied, in load_module()'s order. What a
module was built for is compared with what is known: the tree that it is loaded with, and the
modules that are there. A module alone is compared with nothing but the size of struct module;
where it was built for another kernel than the one that is modelled, a notice says so.

The checks of one module share what they find; that is why they are one class, and one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from archs.versions import version_of
from loader.build import Build, assumptions, build_salt, is_sample, model_text, stops
from loader.checks import CHECKS, WARNING, Refused, Violation, violation
from loader.elfview import (
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    ElfView,
    Section,
)
from loader.gate import Gate, Notice
from loader.layout import PERCPU_SECTION, THIS_MODULE
from loader.symbols import KSYMTABS, Export
from loader.this_module import STRUCTURE
from loader.versions import VMLINUX, TreeFacts

GPL_COMPATIBLE = frozenset(
    (
        "GPL",
        "GPL v2",
        "GPL and additional rights",
        "Dual BSD/GPL",
        "Dual MIT/GPL",
        "Dual MPL/GPL",
    )
)
OFFENDERS = frozenset(("driverloader", "lve"))  # module_license_offenders
SIGNATURE = b"~Module signature appended~\n"
SIGNATURE_INFO = 12  # bytes of struct module_signature
PKCS7 = 2
LAYOUT = "module_layout"
CONSTRUCTORS = (".ctors", ".init_array")
MODULE_SPACE = "module:"  # namespace of the modules named behind it, since Linux 6.16
SHOWN = 12  # names in a notice


def constructors_of(view: ElfView) -> Section | None:
    """Return the section whose constructors a kernel with CONFIG_CONSTRUCTORS runs, if any."""
    found = (view.find(name) for name in CONSTRUCTORS)
    return next(
        (section for section in found if section is not None and section.size >= view.dialect.word),
        None,
    )


def _listed(names: Sequence[str]) -> str:
    """Return names as a notice shows them: some, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@attrs.define
class Admission:
    """The checks of one module, in order: `structure`, `taint`, `imports`, then `settle`.

    Parameters
    ----------
    gate
        The kernel.
    view
        The module; PLT sections are there already, where they are added.
    title
        The module's name.
    build
        What it was built for, as far as anything tells.
    taints, notices
        What was found.
    """

    gate: Gate
    view: ElfView
    title: str
    build: Build
    taints: set[str] = attrs.field(factory=set)
    notices: list[Notice] = attrs.field(factory=list)
    _facts: TreeFacts | None = attrs.field(init=False, default=None)
    _before: tuple[frozenset[str], frozenset[str]] = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._facts = self.gate.facts()
        self._before = frozenset(self.gate.taints), frozenset(self.gate.said)

    @property
    def magic(self) -> str | None:
        """What the module was built for."""
        return self.view.modinfo.get("vermagic")

    @property
    def _versioned(self) -> bool:
        """Whether the kernel has CONFIG_MODVERSIONS, as far as it is known or assumed."""
        known = self._facts.vermagic if self._facts is not None else None
        return "modversions" in (known or self.magic or self.gate.arch.loads.vermagic).split(" ")

    def settle(self) -> None:
        """Tell of the notices: the module is in."""
        self.gate.notices += self.notices
        for notice in self.notices:
            self.gate.on_notice(notice)

    def undo(self) -> None:
        """Take back what the module changed of the kernel: it is not in."""
        taints, said = self._before
        self.gate.taints &= taints
        self.gate.said &= said

    # Before anything is laid out ------------------------------------------------------------

    def structure(self) -> None:
        """Check what the file is, and what it was built for.

        Raises
        ------
        Refused
            With all that is wrong.
        """
        found = [
            *self._signature(),
            *self._sections(),
            *self._this_module(),
            *self._extended_versions(),
            *self._built_for(),
            *self._frob(),
            *self._constructors(),
        ]
        if found:
            raise Refused.by(self.view.name, found)

    def _signature(self) -> list[Violation]:
        """Check how a signature is described; whether it is valid is not known here."""
        data, end = self.view.data, len(self.view.data) - len(SIGNATURE)
        if self.gate.force or not data.endswith(SIGNATURE):
            return []
        info = data[max(0, end - SIGNATURE_INFO) : end]
        length = int.from_bytes(info[8:], "big")
        if length < end - SIGNATURE_INFO and (info[2] != PKCS7 or not any((*info[:2], *info[3:8]))):
            return []
        reason = "its description does not hold together"
        return [self._bad("signature-format", "signature", reason)]

    @property
    def signed(self) -> bool:
        """Whether a signature is there that the kernel would look at (sig_ok, if it is valid)."""
        if self.gate.force or not self.view.data.endswith(SIGNATURE):
            return False
        end = len(self.view.data) - len(SIGNATURE)
        # Another kind of signature counts as none (-ENOPKG).
        return self.view.data[end - SIGNATURE_INFO + 2] == PKCS7

    def _sections(self) -> list[Violation]:
        names = self.view.names
        if names.count(".modinfo") > 1:
            return [self._bad("modinfo-once", ".modinfo", "is there more than once")]
        if names.count(PERCPU_SECTION) > 1:
            first = self.view.find(PERCPU_SECTION)
            rest = [s for s in self.view.sections if s.name == PERCPU_SECTION and s.allocated]
            if first is not None and len(rest) > 1:
                text = f"{PERCPU_SECTION} is there {len(rest)} times: every CPU shares all but the first"
                self._notice("percpu-once", text)
        return []

    def _this_module(self) -> list[Violation]:
        count = self.view.names.count(THIS_MODULE)
        section = self.view.section(THIS_MODULE)
        if section is None or count != 1:
            reason = "there is none: a relocatable object, but no kernel module"
            reason = reason if section is None else f"is there {count} times"
            return [self._bad("this-module-once", THIS_MODULE, reason)]
        found = []
        if section.type == SHT_NOBITS:
            reason = "has no contents: is this the debug information of a module?"
            found.append(self._bad("this-module-contents", THIS_MODULE, reason))
        if not section.allocated:
            found.append(self._bad("this-module-alloc", THIS_MODULE, "is not allocated"))
        known = self._module_size
        if known is not None and section.size != known:
            reason = f"has {section.size} bytes, this kernel's struct module {known}"
            found.append(self._bad("this-module-size", THIS_MODULE, reason))
        elif section.size != self._modelled_size and known is None:
            text = (
                f"its struct module has {section.size} bytes, that of the kernel modelled "
                f"{self._modelled_size}: not comparable, they are of different builds"
            )
            self._notice("this-module-size", text)
        return found

    @property
    def _module_size(self) -> int | None:
        """Bytes of the kernel's struct module, where the kernel is known."""
        if self._facts is not None and self._facts.module_size is not None:
            return self._facts.module_size
        return self._modelled_size if self._of_model else None

    @property
    def _modelled_size(self) -> int:
        """Bytes of struct module of the kernel that is modelled."""
        return self.gate.arch.loads.layouts.size_of(STRUCTURE)

    @property
    def _of_model(self) -> bool:
        """Whether the module is for the kernel that is modelled, or says nothing."""
        return self.magic is None or self.build.modelled

    @property
    def _sample(self) -> bool:
        """Whether the module is a sample: those belong to the tree of the kernel modelled."""
        return is_sample(self.magic or "")

    def _extended_versions(self) -> list[Violation]:
        if self.gate.force:
            return []
        crcs, names = self.view.find("__version_ext_crcs"), self.view.find("__version_ext_names")
        if (crcs is None) != (names is None):
            there, missing = ("CRCs", "names") if names is None else ("names", "CRCs")
            reason = f"{there} are there, and no {missing}"
            return [self._bad("version-ext-pair", "extended versions", reason)]
        if crcs is not None and names is not None:
            # Each name is ended by a NUL.
            count = bytes(self.view.contents(names)).count(0)
            if crcs.size // 4 > count:
                reason = f"{crcs.size // 4} CRCs and {count} names"
                return [self._bad("version-ext-count", "extended versions", reason)]
        return []

    def _built_for(self) -> list[Violation]:
        """Compare CRC of module_layout and vermagic (early_mod_check)."""
        facts, magic = self._facts, self.magic
        found = [*self._layout(facts)]
        if magic is None or self.gate.force:
            self._forced("vermagic-missing")
        if magic is None:
            text = f"names no kernel (there is no vermagic): taken for a module of {model_text(self.gate.arch)}{stops(self.build)}"
            self._notice("vermagic-missing", text)
            return found
        if (
            facts is not None
            and not self.gate.force
            and (wanted := self._other_magic(facts, magic))
        ):
            reason = f"the module is for {magic.strip()!r}, {facts.origin} for {wanted.strip()!r}"
            found.append(
                self._bad(
                    "vermagic", "vermagic", f"{reason}; hint: --force", magic=magic, wanted=wanted
                )
            )
        named = version_of(magic) is not None
        if named and self._of_model and self.gate.kernel is None:
            return found
        salt = None if named else build_salt(self.view)
        said = assumptions(self.build, magic, salt, page=self.gate.page_size)
        self.notices += [Notice(code, text, self.title) for code, text in said]
        return found

    def _layout(self, facts: TreeFacts | None) -> list[Violation]:
        """Compare what the module says of module_layout (check_modstruct_version)."""
        if not self._versioned:
            return []
        if self.gate.force or not self._has_versions:
            self._forced("versions-missing", symbol=LAYOUT)
            return []
        wanted = facts.crcs.get(LAYOUT) if facts is not None else None
        recorded = self.view.crcs.get(LAYOUT)
        if wanted is None or recorded == wanted:
            return []
        if recorded is None:
            self._once("no-symbol-version", symbol=LAYOUT)
            return []
        told = facts.origin if facts is not None else ""
        reason = f"the module has CRC {recorded:#010x}, {told} {wanted:#010x}"
        return [self._bad("module-layout", LAYOUT, f"{reason}; hint: --force")]

    @property
    def _has_versions(self) -> bool:
        return any(self.view.find(name) for name in ("__versions", "__version_ext_crcs"))

    def _other_magic(self, facts: TreeFacts, magic: str) -> str | None:
        """Return the tree's vermagic where it is another (same_magic).

        Beside CRCs the release does not count: that of module_layout vouches for it. Where it
        cannot be compared, nothing does, and the release has to be the same.
        """
        wanted = facts.vermagic or facts.release
        crcs = self.view.crcs if self.view.find("__versions") is not None else {}
        vouched = LAYOUT in crcs and LAYOUT in facts.crcs
        release, _, rest = magic.partition(" ")
        wanted_release, _, wanted_rest = wanted.partition(" ")
        same = rest == wanted_rest or facts.vermagic is None
        return None if same and (vouched or release == wanted_release) else wanted

    def _frob(self) -> list[Violation]:
        """Check the architecture's sections, and protections that no module may have."""
        view, plt = self.view, self.gate.arch.plt
        found, changed = [], frozenset[str]()
        if plt is not None:
            changed = frozenset((plt.section, plt.init_section, *plt.placeholders))
        if plt is not None and plt.required:
            missing = [n for n in (plt.section, plt.init_section) if view.section(n) is None]
            known = self.build.modelled or self._facts is not None
            if missing and self.magic and known and not self._sample:
                reason = f"there is no {' and no '.join(missing)}; hint: --with-plt adds them"
                found.append(self._bad("plt-missing", "sections", reason))
            elif missing:
                text = (
                    f"there is no {' and no '.join(missing)}, without which kernels refuse a module"
                )
                self._notice("plt-missing", f"{text}; --with-plt adds them")
        both = SHF_WRITE | SHF_EXECINSTR
        for section in view.sections:
            if section.flags & both == both and section.name not in changed:
                where = f"section {section.index} ({section.name})"
                more = {"section": section.name, "index": section.index}
                found.append(self._bad("write-exec", where, "is writable and executable", **more))
        return found

    def _constructors(self) -> list[Violation]:
        sections = [section for name in CONSTRUCTORS if (section := self.view.find(name))]
        if len(sections) > 1 and not self.gate.force:
            reason = "has both .ctors and .init_array: which are its constructors?"
            return [self._bad("constructors-both", "sections", f"{reason} hint: --force")]
        begins = tuple(f"{name}." for name in CONSTRUCTORS)
        runs = constructors_of(self.view) if self.gate.constructors else None
        idle = [
            s.name
            for s in self.view.sections
            if (s.name in CONSTRUCTORS or s.name.startswith(begins))
            and s.allocated
            and s.size >= self.view.dialect.word
            and s is not runs
        ]
        if idle:
            why = (
                "no kernel runs those"
                if self.gate.constructors
                else "the kernel modelled does not run them (CONFIG_CONSTRUCTORS=n)"
            )
            self._notice("constructors", f"has constructors ({', '.join(idle)}): {why}")
        return []

    # The kernel is tainted --------------------------------------------------------------------

    def taint(self) -> None:
        """Taint the kernel by what the module is (module_augment_kernel_taints)."""
        view, info, kernel = self.view, self.view.modinfo, self.gate.taints
        before = "P" in kernel
        if "intree" not in info and not self._sample:
            self._taint("O", "out-of-tree", say="O" not in kernel)
        if "staging" in info:
            self._taint("C", "staging")
        if "livepatch" in info:
            if self.gate.arch.loads.livepatching:
                self._taint("K", "livepatch-taint", once=True)
            else:
                text = "is a livepatch, which the kernel modelled refuses (CONFIG_LIVEPATCH=n)"
                self._notice("livepatch", text)
        if not self._free:
            licence = info.get("license", "unspecified")
            self._taint("P", "licence", say=not before, license=licence)
        if "test" in info:
            self._taint("N", "test", say="N" not in kernel)
        if not self.signed and not self._sample:
            self._taint("E", "unsigned", once=True)
        if self.title in OFFENDERS:
            self._taint("P")
        elif self.title == "ndiswrapper":
            kernel.add("P")  # itself it may use GPL-only symbols
        if not before and "P" in kernel:
            self._log("offender")
        section = view.find(PERCPU_SECTION)
        if section is not None and section.size and section.align > self.gate.page_size:
            self._log("percpu-align", align=section.align, page=self.gate.page_size)
        if view.find("__obsparm") is not None:
            self._log("obsolete-parameters")
        if self._versioned and any(self._unversioned(table) for table in KSYMTABS):
            self._forced("export-versions")

    @property
    def _free(self) -> bool:
        return self.view.modinfo.get("license") in GPL_COMPATIBLE

    def _unversioned(self, table: str) -> bool:
        exports = self.view.find(table)
        crcs = self.view.find(table.replace("ksymtab", "kcrctab"))
        return exports is not None and exports.size > 0 and crcs is None

    # Symbols ------------------------------------------------------------------------------

    def imports(
        self, exports: Mapping[str, Export], taints_of: Callable[[str], Iterable[str]]
    ) -> frozenset[str]:
        """Check what the module uses of others; return names that it may not see (weak ones).

        Parameters
        ----------
        exports
            Those of the modules that are there.
        taints_of
            Returns a module's taints.

        Raises
        ------
        Refused
            With every symbol that the kernel does not give it.
        """
        view, facts = self.view, self._facts
        listed = facts.exports if facts is not None and facts.exports is not None else None
        crcs: Mapping[str, int] = facts.crcs if facts is not None else {}
        found: list[Violation] = []
        hidden: set[str] = set()
        unlisted: list[str] = []
        unexported: list[str] = []
        gpl_user = False
        for name in view.undefined:
            export = exports.get(name)
            if export is None and facts is None and "P" not in self.taints:
                continue  # of the kernel's own nothing is known, and little asked
            if export is not None:
                gpl, space, crc, owner = export.gpl, export.namespace, export.crc, export.owner
            else:
                line = listed.get(name) if listed is not None else None
                if line is not None and line.owner != VMLINUX:
                    continue
                if line is None and self.gate.kernel is not None and listed is not None:
                    if name not in view.weak_undefined:
                        unexported.append(name)
                elif line is None and "P" in self.taints:
                    unlisted.append(name)
                gpl, space = (line.gpl, line.namespace) if line is not None else (False, "")
                crc, owner = crcs.get(name), ""
            if gpl and "P" in self.taints:
                self._unseen(found, hidden, "gpl-only", name, "is GPL-only, the module is not")
                continue
            gpl_user |= gpl
            if owner and "P" in taints_of(owner):
                if gpl_user:
                    reason = f"is of the proprietary module {owner}, and the module uses GPL-only symbols"
                    self._unseen(found, hidden, "proprietary-provider", name, reason, owner=owner)
                    continue
                if "P" not in self.taints:
                    self._log("inherited", symbol=name, owner=owner)
                    self.taints.add("P")
            if crc is not None and self._other_version(found, name, crc, owner):
                continue
            if space and not self._imports_space(space):
                reason = f"is in the namespace {space}, which the module does not import"
                found.append(self._symbol("namespace", name, reason, space=space))
        if found:
            # The kernel returns the error of the last one.
            raise Refused.by(view.name, found, found[-1].errno)
        if unexported and facts is not None:
            text = f"{facts.origin} exports no {_listed(unexported)}: is it of a module that is not there?"
            self._notice("not-exported", text)
        if unlisted:
            names = _listed(unlisted)
            licence = repr(view.modinfo.get("license", "unspecified"))
            why = "by what it uses" if self._free else f"({licence})"
            text = f"is proprietary {why}: whether the kernel gives it {names} is not known"
            self._notice("gpl-unknown", text)
        return frozenset(hidden)

    def _unseen(
        self,
        found: list[Violation],
        hidden: set[str],
        check: str,
        name: str,
        reason: str,
        **fields: object,
    ) -> None:
        """Note a symbol that the kernel does not find for this module; a weak one stays 0."""
        if name in self.view.weak_undefined:
            hidden.add(name)
            return
        found.append(self._symbol(check, name, reason, **fields))

    def _other_version(self, found: list[Violation], name: str, crc: int, owner: str) -> bool:
        """Compare the CRC of a symbol with the exporter's (check_version)."""
        if self.gate.force or not self._has_versions:
            self._forced("versions-missing", symbol=name)
            return False
        recorded = self.view.crcs.get(name)
        if recorded is None:
            self._once("no-symbol-version", symbol=name)
        if recorded is None or recorded == crc:
            return False
        who = owner or (self._facts.origin if self._facts is not None else "")
        reason = f"the module has CRC {recorded:#010x}, {who} {crc:#010x}; hint: --force"
        found.append(self._symbol("symbol-version", name, reason))
        return True

    def _imports_space(self, space: str) -> bool:
        """Return whether the module imports a namespace, or is named by it."""
        space = space.strip('"')
        if space.startswith(MODULE_SPACE):
            wanted = space[len(MODULE_SPACE) :].replace("-", "_").split(",")
            return any(
                self.title.startswith(name[:-1]) if name.endswith("*") else self.title == name
                for name in wanted
            )
        return any(given.strip('"') == space for given in self.view.all_modinfo("import_ns"))

    # What is found ------------------------------------------------------------------------

    def _bad(self, check: str, where: str, reason: str, **fields: object) -> Violation:
        return violation(check, where, reason, **{"name": self.title, **fields})

    def _symbol(self, check: str, name: str, reason: str, **fields: object) -> Violation:
        """Return what is wrong with a symbol; the kernel says twice that it is."""
        found = self._bad(check, f"symbol '{name}'", reason, symbol=name, **fields)
        unknown = f"{self.title}: Unknown symbol {name} (err -{found.errno})"
        lines = dict.fromkeys((found.line, unknown))
        return attrs.evolve(found, line="\n".join(lines))

    def _notice(self, check: str, text: str) -> None:
        self.notices.append(Notice(check, text, self.title))

    def _log(self, check: str, **fields: object) -> None:
        rule = CHECKS[check]
        self.gate.log(rule.level, rule.line.format(name=self.title, **fields))

    def _once(self, check: str, **fields: object) -> None:
        """Log what the kernel says of the first module only."""
        if check not in self.gate.said:
            self.gate.said.add(check)
            self._log(check, **fields)

    def _forced(self, check: str, symbol: str = "") -> None:
        """Load what only force loads (try_to_force_load)."""
        self._taint("F", check, say="F" not in self.gate.taints, symbol=symbol)

    def _taint(
        self,
        letter: str,
        check: str = "",
        *,
        say: bool = True,
        once: bool = False,
        **fields: object,
    ) -> None:
        if check and once:
            self._once(check, **fields)
        elif check and say:
            self._log(check, **fields)
        if letter in "PF" and "lockdep" not in self.gate.said:
            self.gate.said.add("lockdep")
            self.gate.log(WARNING, "Disabling lock debugging due to kernel taint")
        self.gate.taints.add(letter)
        self.taints.add(letter)
