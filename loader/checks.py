# SPDX-License-Identifier: GPL-2.0-or-later
"""What load_module() checks, in its order: the rules as data, and the error that they end in.

The names of functions, error numbers and log lines are those of Linux 6.12
(kernel/module/). `loader.admission` and `loader.elf` follow the rules; `docs/load-module.md`
has them as a table.
"""

from __future__ import annotations

import enum
import errno as numbers
from collections.abc import Iterable, Mapping

import attrs

from allocator.errors import printable
from loader.errors import BadModule

NO_NAME = "(missing .modinfo section or name field)"
ERR, WARNING, NOTICE = 3, 4, 5  # levels of the kernel log


class Here(enum.Enum):
    """What becomes of a module here that a check is about."""

    REFUSED = "refused"
    TAINTED = "taints, logged"
    NOTICED = "noticed"
    LOGGED = "logged"
    UNMODELLED = "not modelled"


@attrs.frozen
class Check:
    """One check of the kernel's.

    Parameters
    ----------
    name
        What the check is called here.
    what
        What it is about, in words.
    function
        The kernel's function.
    here
        What becomes of the module here.
    errno
        What the kernel returns; 0: the module is loaded.
    line
        What it writes to its log; fields in braces.
    level
        Of the line.
    why
        What is different here, if anything.
    """

    name: str
    what: str
    function: str
    here: Here
    errno: int = 0
    line: str = ""
    level: int = ERR
    why: str = ""

    @property
    def error(self) -> str:
        """The error's name; empty for none."""
        return numbers.errorcode[self.errno] if self.errno else ""


R, T, N, L, U = Here.REFUSED, Here.TAINTED, Here.NOTICED, Here.LOGGED, Here.UNMODELLED
EXEC, NOENT, INVAL = numbers.ENOEXEC, numbers.ENOENT, numbers.EINVAL
_MOD = "module {name}: "

LIST = (
    # module_sig_check
    Check(
        "signature-format",
        "an appended signature's description does not hold together",
        "mod_check_sig",
        R,
        numbers.EBADMSG,
        "module: PKCS#7 signature info has unexpected non-zero params",
        why="the line belongs to its parameters only",
    ),
    Check(
        "signature",
        "a signature is there and one of the kernel's keys made it",
        "mod_verify_sig",
        U,
        numbers.EKEYREJECTED,
        why="the kernel's keys are not known: a signature that is there is taken for valid",
    ),
    Check(
        "signature-enforced",
        "a valid signature is demanded (CONFIG_MODULE_SIG_FORCE, lockdown)",
        "module_sig_check",
        U,
        numbers.EKEYREJECTED,
        "Loading of {reason} is rejected",
        NOTICE,
        "off in the configuration that is modelled",
    ),
    # elf_validity_cache_copy
    Check("elf-length", "there is an ELF header", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF header len {size}"),
    Check("elf-magic", "it begins with the magic number", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF header magic: != \x7fELF"),
    Check("elf-type", "it is relocatable (ET_REL)", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF header type: {type} != 1"),
    Check("elf-machine", "it is for this architecture", "elf_validity_cache_copy", R, EXEC,
          "Invalid architecture in ELF header: {machine}"),
    Check("elf-entry-size", "a section header has 64 bytes", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF section header size"),
    Check("elf-table", "the section headers lie in the file", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF section header overflow"),
    Check("elf-names", "the section with the names is one", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF section name index: {index} || e_shstrndx ({index}) >= e_shnum ({count})"),
    Check("elf-names-empty", "there are names of sections", "elf_validity_cache_copy", R, EXEC,
          "empty section name table"),
    Check("elf-names-end", "the names end with a NUL", "elf_validity_cache_copy", R, EXEC,
          "ELF Spec violation: section name table isn't null terminated"),
    Check("elf-section-0", "section 0 has no type, size or address", "elf_validity_cache_copy", R,
          EXEC, "ELF Spec violation: section 0 type({type})!=SH_NULL or non-zero len or addr"),
    Check("elf-string-link", "the symbols' string table is a section", "elf_validity_cache_copy",
          R, EXEC,
          "Invalid ELF sh_link!=SHN_UNDEF({link}) or (sh_link({link}) >= hdr->e_shnum({count})"),
    Check("elf-section", "a section's contents lie in the file", "elf_validity_cache_copy", R, EXEC,
          "Invalid ELF section in module (section {index} type {type})"),
    Check("elf-section-name", "a section's name lies among the names", "elf_validity_cache_copy",
          R, EXEC, "Invalid ELF section name in module (section {index} type {type})"),
    Check("modinfo-once", "`.modinfo` is there once at most", "elf_validity_cache_copy", R, EXEC,
          "Only one .modinfo section must exist."),
    Check("symtab-once", "there is exactly one symbol table", "elf_validity_cache_copy", R, EXEC,
          "{name}: module has no symbols (stripped?)", WARNING),
    Check("this-module-once", "`.gnu.linkonce.this_module` is there exactly once",
          "elf_validity_cache_copy", R, EXEC,
          _MOD + "Only one .gnu.linkonce.this_module section must exist."),
    Check("this-module-contents", "it has contents (a debug-only file has none)",
          "elf_validity_cache_copy", R, EXEC,
          _MOD + ".gnu.linkonce.this_module section must have a size set"),
    Check("this-module-alloc", "it is loaded (SHF_ALLOC)", "elf_validity_cache_copy", R, EXEC,
          _MOD + ".gnu.linkonce.this_module must occupy memory during process execution"),
    Check("this-module-size", "its size is that of the kernel's struct module",
          "elf_validity_cache_copy", R, EXEC,
          _MOD + ".gnu.linkonce.this_module section size must match the kernel's built struct "
          "module size at run time",
          why="compared where the module's kernel is known: the one modelled, that of `--root`, "
          "none named; noticed for any other"),
    Check("version-ext-pair", "extended versions have both CRCs and names",
          "elf_validity_cache_index_versions", R, EXEC,
          "extended version crc+name presence does not match", why="since 6.13"),
    Check("version-ext-count", "extended versions have a name for every CRC",
          "elf_validity_cache_index_versions", R, EXEC,
          "more extended version crcs than names", why="since 6.13"),
    Check("percpu-once", "a second `.data..percpu` is plain data", "find_pcpusec", N,
          why="the kernel says nothing; every CPU shares it"),
    # early_mod_check
    Check("blacklist", "it is not on `module_blacklist=`", "blacklisted", U, numbers.EPERM,
          "Module {name} is blacklisted", why="there is no kernel command line"),
    Check("module-layout", "the CRC of module_layout is the kernel's", "check_modstruct_version", R,
          EXEC, "{name}: disagrees about version of symbol module_layout", WARNING,
          "compared with `--kernel`, or the tree of `--root`"),
    Check("versions-missing", "there are versions, where the kernel has them", "check_version", T,
          0, "{name}: {symbol}: kernel tainted.", WARNING, "CONFIG_MODULE_FORCE_LOAD=y"),
    Check("vermagic-missing", "there is a vermagic", "check_modinfo", T, 0,
          "{name}: bad vermagic: kernel tainted.", WARNING,
          "CONFIG_MODULE_FORCE_LOAD=y, else ENOEXEC; a notice says what is assumed"),
    Check("vermagic", "the vermagic is the kernel's; the release does not count beside CRCs",
          "check_modinfo", R, EXEC, "{name}: version magic '{magic}' should be '{wanted}'",
          why="compared with `--kernel`, or the tree of `--root`"),
    Check("built-for", "a module alone, of another kernel than the one modelled", "check_modinfo",
          N, EXEC, why="nothing to compare with: it is loaded as a module of Linux 6.12"),
    Check("livepatch", "a livepatch meets a kernel with CONFIG_LIVEPATCH",
          "check_modinfo_livepatch", N, EXEC,
          "{name}: module is marked as livepatch module, but livepatch support is disabled",
          why="arm64 and riscv64: loaded as if it were on"),
    Check("loaded-already", "no module of this name is there", "module_patient_check_exists", R,
          numbers.EEXIST, why="EBUSY while the other is still coming"),
    # layout_and_allocate
    Check("plt-missing", "`.plt` and `.init.plt` are there (arm64)", "module_frob_arch_sections", R,
          EXEC, "{name}: module PLT section(s) missing",
          why="refused where the module is the modelled kernel's or of `--root`; else noticed: an "
          "object by hand; `--with-plt` adds them"),
    Check("write-exec", "no section is writable and executable", "module_enforce_rwx_sections", R,
          EXEC, "{name}: section {section} (index {index}) has invalid WRITE|EXEC flags"),
    Check("memory", "there is memory for every region", "move_module", R, numbers.ENOMEM),
    # module_augment_kernel_taints
    Check("out-of-tree", "`intree` (taint O)", "module_augment_kernel_taints", T, 0,
          "{name}: loading out-of-tree module taints kernel.", WARNING),
    Check("retpoline", "`retpoline`, where that mitigation is on", "check_modinfo_retpoline", U, 0,
          "{name}: loading module not compiled with retpoline compiler.", WARNING,
          "no mitigation is on"),
    Check("staging", "`staging` (taint C)", "module_augment_kernel_taints", T, 0,
          "{name}: module is from the staging directory, the quality is unknown, you have been "
          "warned.", WARNING),
    Check("livepatch-taint", "`livepatch` (taint K)", "module_augment_kernel_taints", T, 0,
          "{name}: tainting kernel with TAINT_LIVEPATCH", NOTICE),
    Check("licence", "the licence is compatible with the GPL (taint P)",
          "module_license_taint_check", T, 0,
          "{name}: module license '{license}' taints kernel.", WARNING,
          "a licence that is missing is 'unspecified'"),
    Check("test", "`test` (taint N)", "module_augment_kernel_taints", T, 0,
          "{name}: loading test module taints kernel.", WARNING),
    Check("unsigned", "it has a signature (taint E)", "module_augment_kernel_taints", T, 0,
          "{name}: module verification failed: signature and/or required key missing - tainting "
          "kernel", NOTICE, "CONFIG_MODULE_SIG=y without FORCE"),
    Check("offender", "modules that are proprietary whatever they say",
          "module_augment_kernel_taints", T, 0, "{name}: module license taints kernel.", WARNING),
    Check("percpu-align", "per-cpu data is aligned to a page at most", "percpu_modalloc", L, 0,
          "{name}: per-cpu alignment {align} > {page}", WARNING),
    # find_module_sections
    Check("constructors-both", "`.ctors` and `.init_array` are not both there",
          "find_module_sections", R, INVAL, "{name}: has both .ctors and .init_array.", WARNING,
          "the kernel looks only with CONFIG_CONSTRUCTORS=y; here it is refused without, too, "
          "unless forced"),
    Check("constructors", "constructors run before init", "do_mod_ctors", N,
          why="CONFIG_CONSTRUCTORS=n in the configuration that is modelled: they do not run; "
          "`--constructors` runs them"),
    Check("obsolete-parameters", "`__obsparm`", "find_module_sections", L, 0,
          "{name}: Ignoring obsolete parameters", WARNING),
    Check("export-versions", "exports have CRCs, where the kernel has them (taint F)",
          "check_export_symbol_versions", T, 0,
          "{name}: no versions for exported symbols: kernel tainted.", WARNING),
    # simplify_symbols
    Check("common", "no symbol is COMMON", "simplify_symbols", R, EXEC,
          "{name}: please compile with -fno-common", WARNING),
    Check("gpl-only", "a proprietary module uses no GPL-only export", "find_symbol", R, NOENT,
          "{name}: Unknown symbol {symbol} (err -2)", WARNING,
          "exports of loaded modules, and the kernel's where `--kernel` or a symvers of `--root` lists them"),
    Check("not-exported", "`--kernel` exports it, or a module that is there", "find_symbol", N, NOENT,
          why="the kernel refuses it; here a module that is missing may have it"),
    Check("gpl-unknown", "the same for exports of a kernel that nothing lists", "find_symbol", N,
          NOENT, why="which of the kernel's exports are GPL-only is not known: named, and loaded"),
    Check("proprietary-provider", "a module with GPL-only symbols uses none of a proprietary one",
          "inherit_taint", R, NOENT,
          "{name}: module using GPL-only symbols uses symbols {symbol} from proprietary module "
          "{owner}.", why="of the kernel's own symbols those count that a symvers of `--root` lists"),
    Check("inherited", "who uses symbols of a proprietary module is one (taint P)", "inherit_taint",
          T, 0, "{name}: module uses symbols {symbol} from proprietary module {owner}, inheriting "
          "taint.", WARNING),
    Check("symbol-version", "a symbol's CRC is its exporter's", "check_version", R, INVAL,
          "{name}: disagrees about version of symbol {symbol}", WARNING,
          "compared with modules that are loaded, and with the tree of `--root`"),
    Check("no-symbol-version", "the versions list every symbol", "check_version", L, 0,
          "{name}: no symbol version for {symbol}", WARNING),
    Check("namespace", "the namespace of an export is imported", "verify_namespace_is_imported", R,
          INVAL,
          "{name}: module uses symbol ({symbol}) from namespace {space}, but does not import it.",
          why="of loaded modules, and the kernel's where a symvers of `--root` lists them; "
          "an import may be in quotes"),
    Check("provider-state", "whose symbols are used is not going", "ref_module", U, NOENT,
          why="nothing is loaded while an exit runs"),
    Check("unknown-symbol", "every symbol that is not weak is exported", "simplify_symbols", R,
          NOENT, "{name}: Unknown symbol {symbol} (err -2)", WARNING,
          "with `--unknown refuse`; else a stub stands in"),
    Check("relocations", "every relocation is known and in reach", "apply_relocations", R, EXEC),
    # complete_formation and what follows
    Check("duplicate-export", "no export is exported already", "verify_exported_symbols", R, EXEC,
          "{name}: exports duplicate symbol {symbol} (owned by {owner})"),
    Check("notifiers", "no notifier objects", "prepare_coming_module", U,
          why="there are none but the livepatches"),
    Check("parameter", "every parameter takes its value", "parse_args", R, INVAL,
          why="an unknown parameter is refused too, where the kernel ignores it"),
    Check("sysfs", "the module's files in sysfs can be made", "mod_sysfs_setup", U,
          why="there is no sysfs"),
    Check("init", "init does not return an error", "do_init_module", R,
          why="with the error that it returned"),
    # delete_module
    Check("in-use", "nobody uses what is unloaded", "delete_module", R, numbers.EAGAIN),
    Check("permanent", "a module with an init has an exit, to be unloaded", "delete_module", R,
          numbers.EBUSY, why="unless forced (taint R)"),
)  # fmt: skip
CHECKS: Mapping[str, Check] = {check.name: check for check in LIST}


@attrs.frozen
class Violation:
    """A check that a module did not pass: what the kernel returns and logs, and why."""

    check: str
    where: str
    reason: str
    errno: int
    line: str
    level: int = ERR

    @property
    def error(self) -> str:
        """The error's name."""
        return numbers.errorcode.get(self.errno, str(self.errno))


def violation(check: str, where: str, reason: str, **fields: object) -> Violation:
    """Return what a check found; `fields` are those of the kernel's line."""
    rule = CHECKS[check]
    return Violation(check, where, reason, rule.errno, rule.line.format(**fields), rule.level)


@attrs.define(auto_exc=True, str=False)
class Refused(BadModule):
    """The kernel refuses the module: every check that it did not pass, in the kernel's order."""

    violations: tuple[Violation, ...] = ()
    result: int = 0

    @classmethod
    def by(cls, module: str, violations: Iterable[Violation], result: int = 0) -> Refused:
        """Return the error for what was found; the first says where, and what the kernel returns."""
        found = tuple(violations)
        return cls(module, found[0].where, found[0].reason, found, result or found[0].errno)

    @property
    def errno(self) -> int:
        """What the kernel returns."""
        return self.result

    @property
    def check(self) -> str:
        """The name of that check."""
        return self.violations[0].check

    @property
    def line(self) -> str:
        """What the kernel logs."""
        return "\n".join(one.line for one in self.violations if one.line)

    def __str__(self) -> str:
        texts = dict.fromkeys(f"{one.where}: {one.reason} ({one.error})" for one in self.violations)
        shown = list(texts)[:20]
        more = f"; and {len(texts) - len(shown)} more" if len(texts) > len(shown) else ""
        return printable(f"{self.module}: {'; '.join(shown)}{more}")


def refused(check: str, module: str, where: str, reason: str, **fields: object) -> Refused:
    """Return the error of one check that a file did not pass."""
    fields.setdefault("name", NO_NAME)
    return Refused.by(module, (violation(check, where, reason, **fields),))
