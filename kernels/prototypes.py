# SPDX-License-Identifier: GPL-2.0-or-later
"""One C prototype, as the kernel's headers write it, to the values that registers hold.

An entry of the emulated kernel is declared by its prototype, `"void *memcpy(void *dest, const
void *src, size_t n)"`, because that is what its author can copy from a header and check
against it. A call then only needs to know, per parameter, how many bits of a 64-bit register
count and whether they are signed: the ABIs pass every integer and pointer in a register
or stack slot of its own. So a type here is a width and a sign, not a type system. Structures
and floating point by value are refused: what they need is another calling convention.

Sizes are those of LP64. A plain `char` is unsigned, since the kernel is built with
-funsigned-char on every architecture (Makefile, 6.2).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import attrs

from allocator.types import ADDRESS_MASK

_TOKEN = re.compile(r"\s*(\.\.\.|\w+|[*()\[\],;])")
# Attributes with arguments, as headers write them before or after a declaration.
_ATTRIBUTE = re.compile(r"\b__(?:printf|scanf|alloc_size|realloc_size|acquires|releases)\([^()]*\)")

# Words that say how memory or a function may be used, and nothing about a register.
_QUALIFIERS = frozenset(
    """
    const volatile restrict __restrict extern static inline __inline __always_inline register
    __user __iomem __percpu __rcu __kernel __force __bitwise __must_check __init __exit __cold
    __pure __malloc __weak __visible __noreturn asmlinkage noinline noinstr notrace
    """.split()
)
_BUILTIN = frozenset("void char short int long signed unsigned _Bool".split())
_BUILTIN_SIZES = {"void": 0, "_Bool": 1, "char": 1, "short": 2, "": 4, "long": 8, "long long": 8}

# include/linux/types.h, include/uapi/asm-generic/{int-ll64,posix_types}.h and, for the rest,
# the header of the subsystem: bytes, signed, names.
_INTEGERS = """
1 - u8 __u8 uint8_t u_char unchar blk_status_t
1 + s8 __s8 int8_t
2 - u16 __u16 uint16_t u_short ushort __le16 __be16 __sum16 umode_t sa_family_t
2 + s16 __s16 int16_t
4 - u32 __u32 uint32_t u_int uint __le32 __be32 __wsum gfp_t slab_flags_t fmode_t blk_opf_t
4 - blk_mq_req_flags_t dev_t mode_t uid_t gid_t projid_t qid_t nlink_t vm_fault_t __poll_t
4 - isolate_mode_t key_perm_t pci_channel_state_t pci_ers_result_t acpi_status
4 + s32 __s32 int32_t pid_t clockid_t timer_t key_serial_t dma_cookie_t pci_power_t
4 + irqreturn_t netdev_tx_t rx_handler_result_t
8 - u64 __u64 uint64_t u_long ulong __le64 __be64 size_t __kernel_size_t uintptr_t
8 - phys_addr_t dma_addr_t resource_size_t pgoff_t sector_t blkcnt_t ino_t vm_flags_t cycles_t
8 - netdev_features_t irq_hw_number_t kernel_ulong_t acpi_size acpi_physical_address
8 + s64 __s64 int64_t ssize_t ptrdiff_t intptr_t loff_t off_t ktime_t time64_t clock_t
"""
# Enumerations are unsigned, but for those that have a negative enumerator.
_SIGNED_ENUMS = frozenset({"cpuhp_state"})
_TYPEDEFS = {
    name: (int(size), sign == "+")
    for size, sign, *names in map(str.split, _INTEGERS.strip().splitlines())
    for name in names
}
# Pointers by another name. A va_list parameter is one on all of them: to an array on x86-64, to a
# copy on arm64 (AAPCS64 6.8.2, B.4), both of which lead to the slots, and to the slots
# themselves on riscv64 and mips64el.
_POINTER_TYPEDEFS = frozenset(
    """
    va_list acpi_handle irq_handler_t work_func_t rcu_callback_t notifier_fn_t smp_call_func_t
    async_func_t cmp_func_t cmp_r_func_t swap_func_t swap_r_func_t dr_release_t dr_match_t
    """.split()
)


@attrs.frozen(kw_only=True)
class CType:
    """How many bits of a register a value of one C type uses, and how they are read.

    Parameters
    ----------
    size
        Bytes; 0 for void.
    signed
        Whether the value is a two's complement number.
    pointer
        Whether it is an address: a pointer, or an array or function that decays to one.
    text
        The type as it was written, without the parameter's name.
    boolean
        Whether it is _Bool, whose only values are 0 and 1.
    """

    size: int
    signed: bool
    pointer: bool
    text: str
    boolean: bool = False

    def from_register(self, value: int) -> int:
        """Return what a register that holds `value` means; bits beyond the type do not count.

        The x86-64 psABI (3.2.3) and AAPCS64 (6.8.2) leave those bits unspecified.
        """
        value &= (1 << 8 * self.size) - 1
        if self.boolean:
            return int(value != 0)
        sign = 1 << (8 * self.size - 1) if self.signed else 0
        return (value ^ sign) - sign

    def to_register(self, value: int, *, sign_extend_32: bool = False) -> int:
        """Return the 64-bit register image of `value`, extended by the type's sign.

        Parameters
        ----------
        value
            Any int; converted to the type first, as an assignment in C would.
        sign_extend_32
            True on riscv64, where even an unsigned 32-bit value is sign-extended (RISC-V
            psABI, integer calling convention: widened by the type's sign to 32 bits, then
            sign-extended to XLEN).
        """
        if self.boolean:
            return int(value != 0)
        value = self.from_register(value)
        if sign_extend_32 and self.size == 4:
            value = (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
        return value & ADDRESS_MASK


@attrs.frozen
class Param:
    """One parameter: its name ("" where the prototype gives none) and type."""

    name: str
    type: CType


@attrs.frozen(kw_only=True)
class Prototype:
    """A function's name and what it takes and returns.

    Parameters
    ----------
    indirect
        Whether the result is a structure in memory, at an address that the caller passes and
        gets back: one of more than two registers.
    """

    name: str
    result: CType
    params: tuple[Param, ...]
    variadic: bool
    indirect: bool = False


@functools.cache
def parse(prototype: str) -> Prototype:
    """Return the parsed `prototype`, a declaration of one function.

    Raises
    ------
    ValueError
        If it is none, or a parameter or the result is a structure by value or of a type
        whose size is not known; the message names the token.

    Examples
    --------
    >>> found = parse("u16 crc16(u16 crc, const u8 *p, size_t len)")
    >>> found.name, [(p.name, p.type.size, p.type.text) for p in found.params]
    ('crc16', [('crc', 2, 'u16'), ('p', 8, 'const u8 *'), ('len', 8, 'size_t')])
    """
    try:
        return _function(_tokens(prototype))
    except ValueError as reason:
        raise ValueError(f"{reason} in prototype {prototype!r}") from None


def name_of(prototype: str) -> str:
    """Return the name of the function that `prototype` declares, and look at no type.

    >>> name_of("void *kmemdup(const void *src, size_t len, gfp_t gfp)")
    'kmemdup'
    """
    words = _ATTRIBUTE.sub("", prototype).partition("(")[0].split()
    return words[-1].lstrip("*") if words else ""


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    text = _ATTRIBUTE.sub("", text).strip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"unexpected {text[at:].split()[0]!r}")
        tokens.append(found[1])
        at = found.end()
    while tokens and (tokens[-1] == ";" or tokens[-1] in _QUALIFIERS):
        tokens.pop()
    return tokens


def _function(tokens: list[str]) -> Prototype:
    opening = tokens.index("(") if "(" in tokens else len(tokens)
    if opening == 0 or _closing(tokens, opening) != len(tokens) - 1:
        raise ValueError("no function with one list of parameters")
    name = tokens[opening - 1]
    if not name.isidentifier() or name in _BUILTIN | _QUALIFIERS:
        raise ValueError(f"no function name before the parameters: {name!r}")
    # A structure is returned as the address of it; see Prototype.indirect.
    indirect = tokens[0] == "struct" and opening == 3
    result = _declaration([*tokens[: opening - 1], *(["*"] if indirect else [])])
    params = _split(tokens[opening + 1 : -1])
    variadic = params[-1:] == [["..."]]
    if variadic:
        params.pop()
    if params == [["void"]]:
        params = []
    parsed = tuple(_declaration(param) for param in params)
    for param in parsed:
        if param.type.size == 0:
            raise ValueError(f"parameter {param.name!r} is void")
    if result.name:
        raise ValueError(f"unexpected {result.name!r}")
    return Prototype(
        name=name, result=result.type, params=parsed, variadic=variadic, indirect=indirect
    )


def _closing(tokens: list[str], opening: int) -> int:
    """Return the index of the bracket that closes the one at `opening`, -1 if none does."""
    open_brackets: list[str] = []
    for at in range(opening, len(tokens)):
        if tokens[at] in ("(", "["):
            open_brackets.append(tokens[at])
        elif tokens[at] in (")", "]"):
            if open_brackets.pop() + tokens[at] not in ("()", "[]"):
                return -1
            if not open_brackets:
                return at
    return -1


def _split(tokens: list[str]) -> list[list[str]]:
    """Return the comma-separated lists of `tokens`; commas inside brackets do not count."""
    lists: list[list[str]] = [[]] if tokens else []
    depth = 0
    for part in tokens:
        depth += (part in ("(", "[")) - (part in (")", "]"))
        if part == "," and depth == 0:
            lists.append([])
        else:
            lists[-1].append(part)
    return lists


def _declaration(tokens: list[str]) -> Param:
    """Return the name and type that `specifiers declarator` declares."""
    words: list[str] = []  # the specifiers that name the type
    at = 0
    while at < len(tokens) and tokens[at].isidentifier():
        word = tokens[at]
        if word in ("struct", "union", "enum") and not words:
            words = tokens[at : at + 2]
            at += 1
        elif word in _BUILTIN and set(words) <= _BUILTIN:
            words.append(word)
        elif word not in _QUALIFIERS:
            if words:  # the type is named: this is the declarator's name
                break
            words.append(word)
        at += 1
    if not words:
        raise ValueError(f"no type before {' '.join(tokens[at:]) or 'the end'!r}")
    name_at, pointer = _declarator(tokens, at)
    name = tokens[name_at] if name_at is not None else ""
    if name in _BUILTIN:
        raise ValueError(f"unexpected {name!r}")
    text = _spell(token for index, token in enumerate(tokens) if index != name_at)
    if pointer or words[0] in _POINTER_TYPEDEFS:
        return Param(name, CType(size=8, signed=False, pointer=True, text=text))
    size, signed, boolean = _scalar(words)
    return Param(name, CType(size=size, signed=signed, pointer=False, text=text, boolean=boolean))


def _declarator(tokens: list[str], at: int) -> tuple[int | None, bool]:
    """Return the index of the name declared at `at`, and whether it is passed as an address."""
    pointer = False
    while at < len(tokens) and (tokens[at] == "*" or tokens[at] in _QUALIFIERS):
        pointer |= tokens[at] == "*"
        at += 1
    name_at = None
    if tokens[at : at + 2] == ["(", "*"]:  # (*name)(...) or (*name)[...]
        closing = _closing(tokens, at)
        name_at, pointer = _declarator(tokens[:closing], at + 1)
        at = closing + 1
    elif at < len(tokens) and tokens[at].isidentifier():
        name_at = at
        at += 1
    while at < len(tokens):  # arrays and functions are passed as pointers to them
        closing = _closing(tokens, at) if tokens[at] in ("(", "[") else -1
        if closing < 0:
            raise ValueError(f"unexpected {tokens[at]!r}")
        pointer = True
        at = closing + 1
    return name_at, pointer


def _scalar(words: list[str]) -> tuple[int, bool, bool]:
    """Return size, sign and booleanness of the type that `words` name."""
    if words[0] in ("struct", "union"):
        raise ValueError(f"{' '.join(words)!r} by value is not supported")
    if words[0] == "enum":
        return 4, words[1] in _SIGNED_ENUMS, False
    if words[0] == "bool":
        return 1, False, True
    if words[0] not in _BUILTIN:
        if words[0] not in _TYPEDEFS:
            raise ValueError(f"unknown type {words[0]!r}")
        return *_TYPEDEFS[words[0]], False
    signs = [word for word in words if word in ("signed", "unsigned")]
    base = [word for word in words if word not in ("signed", "unsigned")]
    if "int" in base and not {"char", "void", "_Bool"} & set(base):
        base.remove("int")
    size = _BUILTIN_SIZES.get(" ".join(base))
    if size is None or len(signs) > 1 or (signs and base in (["void"], ["_Bool"])):
        raise ValueError(f"unknown type {' '.join(words)!r}")
    unsigned = signs == ["unsigned"] or (base == ["char"] and not signs)
    return size, not unsigned and size > 0 and base != ["_Bool"], base == ["_Bool"]


def _spell(tokens: Iterable[str]) -> str:
    """Return `tokens` spaced as C is usually written."""
    text = re.sub(r"(?<=[(\[]) | (?=[)\],])|(?<=\)) (?=[(\[])", "", " ".join(tokens))
    return text.replace("* *", "**")
