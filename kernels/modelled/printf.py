# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's format language: what `printk("%pS")` prints.

The kernel's vsnprintf() looks like C's and is not C's. `%p` prints a hash, letters after it
choose one of thirty ways to print what the pointer points at, `%#x` of zero is `0x0`, a zero
pads even beside a precision, a negative `.*` precision counts as zero, a bare `.` as no
precision at all, and the first conversion that it does not know ends the message. A module's
messages are what a person reads of it, so they are formed here exactly as lib/vsprintf.c
(6.12, and the later `%pra`, `%p4ch`, `%ppte`) forms them; it, lib/string_helpers.c,
lib/errname.c and Documentation/core-api/printk-formats.rst are the source of every rule below.

Two things differ, both on purpose. The lengths `q` and `j`, which the kernel refuses, mean
64 bits as in C. And pointers to structures whose layout depends on the kernel's configuration
(`%pd`, `%pD`, `%pg`, `%pt`, `%pC`, `%pG`, `%pOF`, `%pfw`, `%pA`) print as `%px`, after the
same `(null)` and `(efault)` checks, because there is no such structure to read here.

Formats and arguments come from emulated code and may be hostile. Widths and precisions are
capped as in the kernel; beyond that a message ends at MESSAGE_LIMIT bytes, and reads more
than READ_LIMIT bytes of memory or more than NESTED_LIMIT `%pV` only as `(efault)`.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from typing import Protocol

import attrs

from allocator.errors import AccessError
from allocator.types import ADDRESS_MASK, MIB, PAGE_SIZE, Memory
from kernels.errors import ERRNO_NAMES, MAX_ERRNO

FIELD_WIDTH_MAX = (1 << 23) - 1  # lib/vsprintf.c
PRECISION_MAX = (1 << 15) - 1

MESSAGE_LIMIT = MIB
READ_LIMIT = 16 * MIB
NESTED_LIMIT = 16
SIN6_SCOPE_ID = 24  # where struct sockaddr_in6 has it (include/uapi/linux/in6.h)

# The key stands for the random one that a boot draws; fixed, so that logs can be compared.
_POINTER_KEY = b"execmem %p"

_SIZES = {b"hh": 1, b"h": 2, b"": 4}  # bytes; every other length is 64 bits wide

# isalnum() of lib/ctype.c knows Latin-1: an accented letter after %p belongs to it.
_ALNUM = rb"[0-9A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\xff]*"
_DIRECTIVE = re.compile(
    rb"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+)?)?"
    rb"(?P<length>hh|ll|[hlLqztj])?(?:(?P<plain>[diuxXocs%])|p(?P<pointer>" + _ALNUM + rb"))?"
)
_LEVELS = re.compile(rb"(?:\x01[0-7c])*")
_SYMBOL = re.compile(r"(?P<name>.+)\+0x(?P<offset>[0-9a-f]+)(?P<size>/0x[0-9a-f]+)(?P<rest>.*)")


class ArgumentSource(Protocol):
    """The variadic arguments of one call, read in order."""

    def next(self) -> int:
        """Return the next register or stack slot as an unsigned 64-bit value."""
        ...


Symbolize = Callable[[int], str | None]
VaListReader = Callable[[int], ArgumentSource]


def _no_symbol(_address: int) -> str | None:
    return None


def format_message(
    fmt: bytes,
    args: ArgumentSource,
    memory: Memory,
    *,
    symbolize: Symbolize = _no_symbol,
    va_list: VaListReader | None = None,
    page: int = PAGE_SIZE,
) -> bytes:
    r"""Return the text that the kernel's vsnprintf() would form, without a terminator.

    Truncation to a buffer is the caller's job.

    Parameters
    ----------
    fmt
        The format, up to its first NUL if it holds one.
    args
        The variadic arguments.
    memory
        Where strings and structures passed by reference are read.
    symbolize
        The symbol at an address as `name+0xOFFSET/0xSIZE` or
        `name+0xOFFSET/0xSIZE [module]`, None where there is none.
    va_list
        A reader of the arguments that the C object `va_list` at an address still holds; it
        must leave the object as it is (va_copy). Without one `%pV` prints as `%px`.
    page
        Bytes of a page: pointers into the first one are bad.

    Notes
    -----
    lib/vsprintf.c, vsnprintf() and pointer().
    """
    return _Formatter(memory, symbolize, va_list, page).format(fmt, args)


def split_level(message: bytes) -> tuple[int | None, bytes]:
    r"""Return the log level of `message` and the text after its prefix.

    The level is 0 (KERN_EMERG) to 7 (KERN_DEBUG), or None where no prefix names one; a
    KERN_CONT prefix (`\001c`) is removed and names none. Of several levels the first counts
    (kernel/printk/printk.c, printk_parse_prefix()).

    >>> split_level(b"\0014careful\n"), split_level(b"plain")
    ((4, b'careful\n'), (None, b'plain'))
    """
    found = _LEVELS.match(message)
    prefix = found.group() if found else b""
    digits = prefix.replace(b"\x01", b"").replace(b"c", b"")
    return int(digits[:1]) if digits else None, message[len(prefix) :]


def pointer_hash(address: int) -> int:
    """Return the 32-bit identifier that `%p` shows instead of `address`."""
    import hashlib  # which loads OpenSSL

    digest = hashlib.blake2s(address.to_bytes(8, "little"), key=_POINTER_KEY, digest_size=4)
    return int.from_bytes(digest.digest(), "little")


def _signed(value: int, size: int) -> int:
    """Return the low `size` bytes of `value` as a two's complement number."""
    sign = 1 << (8 * size - 1)
    return ((value & (2 * sign - 1)) ^ sign) - sign


@attrs.frozen(kw_only=True)
class _Spec:
    """What stands between `%` and the conversion; -1 is "not given", as in the kernel."""

    flags: bytes = b""
    width: int = -1
    precision: int = -1

    def number(self, value: int, kind: str = "d", *, signed: bool = False) -> bytes:
        """Return `value` in base `kind` (d, x, X or o) as number() prints it."""
        digits = format(abs(value), kind).rjust(self.precision, "0")
        lead = ""
        if value < 0:
            lead = "-"
        elif signed and b"+" in self.flags:
            lead = "+"
        elif signed and b" " in self.flags:
            lead = " "
        if b"#" in self.flags and kind != "d":
            # Zero gets 0x as any number does, but no second 0 in octal.
            lead += "0" + kind if kind != "o" else "0" if value else ""
        if b"-" in self.flags:
            text = (lead + digits).ljust(self.width)
        elif b"0" in self.flags:
            text = lead + digits.rjust(self.width - len(lead), "0")
        else:
            text = (lead + digits).rjust(self.width)
        return text.encode()

    def text(self, text: bytes) -> bytes:
        """Return `text` cut to the precision and padded to the width (string_nocheck)."""
        if self.precision >= 0:
            text = text[: self.precision]
        return text.ljust(self.width) if b"-" in self.flags else text.rjust(self.width)

    def pointer(self, address: int) -> bytes:
        """Return `address` in hex, 16 digits unless a width is given (pointer_string)."""
        if self.width >= 0:
            return self.number(address, "x")
        return attrs.evolve(self, flags=self.flags + b"0", width=16).number(address, "x")


_NONE = _Spec()
_WORD = _Spec(flags=b"#0", width=18)  # special_hex_number() of 64 bits


class _Unprintable(Exception):
    """No error to the caller: the message printed instead of data that cannot be reached."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.text = text


@attrs.define
class _Formatter:
    """One message under way: where it reads, and how much it may still read."""

    memory: Memory
    symbolize: Symbolize
    va_list: VaListReader | None
    page: int = PAGE_SIZE
    readable: int = READ_LIMIT
    nested: int = NESTED_LIMIT

    def format(self, fmt: bytes, args: ArgumentSource) -> bytes:
        out = bytearray()
        end = 0
        fmt = fmt.partition(b"\0")[0]
        for directive in _DIRECTIVE.finditer(fmt):
            out += fmt[end : directive.start()]
            end = directive.end()
            if len(out) >= MESSAGE_LIMIT:
                break
            width, flags = self._amount(directive["width"], args), directive["flags"]
            if width < 0 and directive["width"] == b"*":
                width, flags = -width, flags + b"-"
            precision = self._amount(directive["precision"], args)
            if directive["precision"] is not None:
                precision = max(precision, 0)  # C ignores a negative one
            spec = _Spec(
                flags=flags,
                width=min(width, FIELD_WIDTH_MAX),
                precision=min(precision, PRECISION_MAX),
            )
            if directive["pointer"] is not None:
                out += self._pointer(directive["pointer"].decode("latin-1"), spec, args.next())
            elif directive["plain"] is not None:
                out += self._plain(directive["plain"], directive["length"] or b"", spec, args)
            else:
                # An unknown conversion ends the message: any argument after it would be
                # out of step. The kernel warns once and returns.
                end = len(fmt)
                break
        out += fmt[end:]
        return bytes(out[:MESSAGE_LIMIT])

    @staticmethod
    def _amount(text: bytes | None, args: ArgumentSource) -> int:
        """Return a width or precision: digits, the next argument for `*`, -1 for none."""
        if text is None:
            return -1
        if text == b"*":
            return _signed(args.next(), 4)
        # Eight digits exceed both caps, and no hostile million of them is converted.
        return int(text.lstrip(b"0")[:8] or b"0")

    def _plain(self, kind: bytes, length: bytes, spec: _Spec, args: ArgumentSource) -> bytes:
        if kind == b"%":
            return b"%"
        value = args.next()
        if kind == b"c":
            return attrs.evolve(spec, precision=-1).text(bytes([value & 0xFF]))
        if kind == b"s":
            return self._printable(self._string, spec, value, "s")
        size = _SIZES.get(length, 8)
        if kind in b"di":
            return spec.number(_signed(value, size), signed=True)
        return spec.number(value & ((1 << 8 * size) - 1), "d" if kind == b"u" else kind.decode())

    def _pointer(self, suffix: str, spec: _Spec, address: int) -> bytes:
        # The first letter chooses, the ones after it modify.
        handler = _POINTERS.get(suffix[:1], _Formatter.default_pointer)
        return self._printable(functools.partial(handler, self), spec, address, suffix)

    @staticmethod
    def _printable(
        handler: Callable[[_Spec, int, str], bytes], spec: _Spec, address: int, suffix: str
    ) -> bytes:
        try:
            return handler(spec, address, suffix)
        except _Unprintable as reason:
            return spec.text(reason.text)

    # Memory

    def _read(self, address: int, size: int) -> bytes:
        """Return memory, or say why not as check_pointer() does."""
        if address == 0:
            raise _Unprintable(b"(null)")
        inside = self.page <= address < (1 << 64) - MAX_ERRNO and address + size <= 1 << 64
        self.readable -= size
        if not inside or self.readable < 0:
            raise _Unprintable(b"(efault)")
        if size == 0:  # only the pointer is checked, as the kernel does before it looks
            return b""
        try:
            return self.memory.read(address, size)
        except AccessError:
            raise _Unprintable(b"(efault)") from None

    def _c_string(self, address: int, limit: int) -> bytes:
        """Return the string at `address`, at most `limit` bytes, touching no page beyond it."""
        text = bytearray(self._read(address, 0))
        while len(text) < limit:
            size = min(self.page - address % self.page, limit - len(text))
            piece, nul, _ = self._read(address, size).partition(b"\0")
            text += piece
            if nul:
                break
            address += size
        return bytes(text)

    def _word(self, address: int, code: str = "<Q") -> int:
        (value,) = struct.unpack(code, self._read(address, struct.calcsize(code)))
        return int(value)

    # What may follow %p, by the kernel's names: spec, pointer, the letters after %p -> text.

    def default_pointer(self, spec: _Spec, address: int, _suffix: str) -> bytes:
        # NULL and error pointers are no addresses: there is nothing to hide (ptr_to_id).
        hidden = 0 < address < (1 << 64) - MAX_ERRNO
        return spec.pointer(pointer_hash(address) if hidden else address)

    def pointer_string(self, spec: _Spec, address: int, _suffix: str) -> bytes:
        return spec.pointer(address)

    def opaque_pointer(self, spec: _Spec, address: int, _suffix: str) -> bytes:
        self._read(address, 0)
        return spec.pointer(address)

    def _string(self, spec: _Spec, address: int, _suffix: str) -> bytes:
        limit = MESSAGE_LIMIT if spec.precision < 0 else spec.precision
        return spec.text(self._c_string(address, limit))

    def probed_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        if suffix[1:2] != "s":
            raise _Unprintable(b"(einval)")
        return self._string(spec, address, suffix)

    def err_ptr(self, spec: _Spec, address: int, suffix: str) -> bytes:
        error = (1 << 64) - address
        if error > MAX_ERRNO:
            return self.default_pointer(spec, address, suffix)
        if error in ERRNO_NAMES:
            return spec.text(b"-" + ERRNO_NAMES[error].encode())
        return spec.number(-error, signed=True)

    def symbol_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        # A return address may lie past the end of a function that never returns: %pB looks
        # up the call before it and counts from there (sprint_backtrace).
        back = 1 if suffix[0] == "B" else 0
        text = self.symbolize((address - back) & ADDRESS_MASK)
        if text is None:
            return spec.text(b"0x%x" % address)
        parts = _SYMBOL.fullmatch(text)
        if parts is not None:
            shown = f"+{int(parts['offset'], 16) + back:#x}{parts['size']}"
            text = parts["name"] + ("" if suffix[0] == "s" else shown) + parts["rest"]
        return spec.text(text.encode())

    def resource_or_range(self, spec: _Spec, address: int, suffix: str) -> bytes:
        if suffix[:2] == "ra":  # struct range
            start, end = struct.unpack("<2Q", self._read(address, 16))
            return spec.text(b"[range " + self._extent(start, end, _WORD, "x") + b"]")
        start, end, _name, flags = struct.unpack("<4Q", self._read(address, 32))
        bits = (0x100, 0x200, 0x400, 0x800, 0x1000)  # IORESOURCE_IO ... BUS, include/linux/ioport.h
        known = next((row for bit, row in zip(bits, _RESOURCES, strict=True) if flags & bit), None)
        name, numbers, kind = known or (b"???", _RESOURCES[1][1], "x")
        decode = suffix[0] == "R" and known is not None
        if decode and flags & 0x20000000:  # IORESOURCE_UNSET
            text = b"size " + numbers.number((end - start + 1) & ADDRESS_MASK, kind)
        else:
            text = self._extent(start, end, numbers, kind)
        if decode:
            text += b"".join(word for bit, word in _RESOURCE_FLAGS if flags & bit)
        else:
            text += b" flags 0x%x" % flags
        return spec.text(b"[%-4s%s]" % (name, text))

    @staticmethod
    def _extent(start: int, end: int, numbers: _Spec, kind: str) -> bytes:
        first = numbers.number(start, kind)
        return first if start == end else first + b"-" + numbers.number(end, kind)

    def hex_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        if spec.width == 0:
            return b""
        data = self._read(address, min(spec.width, 64) if spec.width > 0 else 1)
        separator = {"C": ":", "D": "-", "N": ""}.get(suffix[1:2], " ")
        return (data.hex(separator) if separator else data.hex()).encode()

    def bitmap_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        bits = max(spec.width, 0)
        data = self._read(address, -(-bits // 64) * 8)
        value = int.from_bytes(data, "little") & ((1 << bits) - 1)
        if suffix[1:2] != "l":
            digits = format(value, "x").zfill(-(-bits // 4)) if bits else ""
            # Words of 32 bits from the top; the first has what is left over.
            starts = range(len(digits) % 8 or 8, len(digits), 8)
            words = [digits[: len(digits) % 8 or 8], *(digits[at : at + 8] for at in starts)]
            return ",".join(words).encode()
        out = bytearray()
        for run in re.finditer("1+", format(value, "b")[::-1]):
            first, last = run.start(), run.end() - 1
            out += b",%d" % first if first == last else b",%d-%d" % (first, last)
            if len(out) > MESSAGE_LIMIT:
                break
        return bytes(out[1:])

    def mac_address_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        data = self._read(address, 6)
        if suffix[1:2] == "R":
            data = data[::-1]
        if suffix[0] == "m":
            return spec.text(data.hex().encode())
        return spec.text(data.hex("-" if suffix[1:2] == "F" else ":").encode())

    def ip_addr_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        self._read(address, 0)
        family = suffix[1:2]
        if family == "4":
            return spec.text(_ip4(self._read(address, 4), suffix[0], suffix[2:3]))
        if family == "6":
            data = self._read(address, 16)
            return spec.text(_ip6(data, suffix[0], compress=suffix[2:3] == "c"))
        if family != "S":
            raise _Unprintable(b"(%%p%s?)" % suffix[:1].encode())
        options = re.match("[A-Za-z]*", suffix[2:])
        return self._sockaddr(spec, address, suffix[0], options.group() if options else "")

    def _sockaddr(self, spec: _Spec, address: int, letter: str, options: str) -> bytes:
        family = self._word(address, "<H")
        if family == 2:  # AF_INET, struct sockaddr_in
            port, quads = struct.unpack("!2xH4s", self._read(address, 8))
            order = "".join(c for c in options if c in "hlnb")[-1:]
            text = _ip4(quads, letter, order)
            return spec.text(text + b":" + spec.number(port) if "p" in options else text)
        if family != 10:  # AF_INET6, struct sockaddr_in6
            raise _Unprintable(b"(einval)")
        port, flow, data = struct.unpack("!2xHI16s", self._read(address, 24))
        text = _ip6(data, letter, compress="c" in options)
        if set(options) & set("pfs"):
            text = b"[" + text + b"]"
        if "p" in options:
            text += b":" + spec.number(port)
        if "f" in options:
            text += b"/" + spec.number(flow & 0x0FFFFFFF)  # IPV6_FLOWINFO_MASK
        if "s" in options:
            text += b"%" + spec.number(self._word(address + SIN6_SCOPE_ID, "<I"))
        return spec.text(text)

    def escaped_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        if spec.width == 0:
            return b""
        data = self._read(address, min(abs(spec.width), MESSAGE_LIMIT))
        flags = re.match("[achnops]*", suffix[1:])
        table = _escapes(frozenset(flags.group() if flags else "") or frozenset("anp"))
        return b"".join([table[byte] for byte in data])

    def uuid_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        data = self._read(address, 16)
        order = suffix[1:2]
        if order in ("l", "L"):  # a GUID's first three fields are little-endian
            data = data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]
        text = "-".join(data[a:b].hex() for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 16)))
        return spec.text((text.upper() if order in ("B", "L") else text).encode())

    def va_format(self, spec: _Spec, address: int, _suffix: str) -> bytes:
        fmt, va = struct.unpack("<2Q", self._read(address, 16))
        if self.va_list is None:
            return spec.pointer(address)
        self.nested -= 1
        if self.nested < 0:
            raise _Unprintable(b"(efault)")
        text = self._c_string(fmt, MESSAGE_LIMIT)
        try:
            return self.format(text, self.va_list(va))
        except AccessError:  # the arguments, not what they point at
            raise _Unprintable(b"(efault)") from None

    def netdev_bits(self, _spec: _Spec, address: int, suffix: str) -> bytes:
        if suffix[1:2] != "F":
            raise _Unprintable(b"(%pN?)")
        return _WORD.number(self._word(address), "x")

    def address_val(self, _spec: _Spec, address: int, _suffix: str) -> bytes:
        # phys_addr_t and dma_addr_t are both 64 bits wide on these architectures.
        return _WORD.number(self._word(address), "x")

    def pxd_pointer(self, spec: _Spec, address: int, suffix: str) -> bytes:
        self._read(address, 0)
        if suffix[1:3] in ("te", "md", "ud", "4d", "gd"):
            return _WORD.number(self._word(address), "x")
        return self.default_pointer(spec, address, suffix)

    def fourcc_string(self, spec: _Spec, address: int, suffix: str) -> bytes:
        if suffix[1:2] != "c" or suffix[2:3] not in ("c", "h", "l", "b"):
            raise _Unprintable(b"(%p4?)")
        code = self._word(address, ">I" if suffix[2] == "b" or suffix[2:4] == "hR" else "<I")
        if suffix[2] == "c":  # V4L2 and DRM: least significant first, bit 31 is the endianness
            letters = (code & 0x7FFFFFFF).to_bytes(4, "little")
            note = b" big-endian" if code >> 31 else b" little-endian"
        else:
            letters, note = code.to_bytes(4, "big"), b""
        shown = bytes(c if 0x20 <= c < 0x7F else ord(".") for c in letters)
        return spec.text(b"%s%s (0x%08x)" % (shown, note, code))


def _ip4(data: bytes, letter: str, order: str) -> bytes:
    quads = data[::-1] if order in ("h", "l") else data
    return b".".join((b"%03d" if letter == "i" else b"%d") % quad for quad in quads)


def _ip6(data: bytes, letter: str, *, compress: bool) -> bytes:
    if letter == "i":
        return data.hex().encode()
    if not compress:
        return data.hex(":", 2).encode()
    words = struct.unpack("!8H", data)
    mapped = words[:6] == (0, 0, 0, 0, 0, 0xFFFF)
    isatap = words[4] in (0, 0x200) and words[5] == 0x5EFE
    tail = [_ip4(data[12:], "I", "")] if mapped or isatap else []
    groups = words[: 6 if tail else 8]
    zeros = [0] * (len(groups) + 1)  # how many zero words follow from here
    for at in reversed(range(len(groups))):
        zeros[at] = 0 if groups[at] else zeros[at + 1] + 1
    longest = max(zeros)
    texts = [b"%x" % group for group in groups]
    if longest < 2:  # RFC 5952 4.2.2: one zero is not shortened
        return b":".join(texts + tail)
    start = zeros.index(longest)
    return b":".join(texts[:start]) + b"::" + b":".join(texts[start + longest :] + tail)


@functools.cache
def _escapes(flags: frozenset[str]) -> tuple[bytes, ...]:
    """Return what each byte becomes under string_escape_mem() (lib/string_helpers.c)."""
    if "a" in flags:
        flags |= set("scno")
    named: dict[int, bytes] = {}
    if "s" in flags:
        named |= {ord(c): e for c, e in zip("\n\r\t\v\f", rb"\n \r \t \v \f".split(), strict=True)}
    if "c" in flags:
        named |= {ord(c): e for c, e in zip('\\\a\x1b"', rb"\\ \a \e \"".split(), strict=True)}
    if "n" in flags:
        named[0] = rb"\0"
    table = []
    for byte in range(256):
        # isprint() of lib/ctype.c counts Latin-1 from the no-break space on.
        if "p" in flags and (0x20 <= byte < 0x7F or byte >= 0xA0):
            table.append(bytes([byte]))
        elif byte in named:
            table.append(named[byte])
        elif "o" in flags:
            table.append(rb"\%03o" % byte)
        else:
            table.append(rb"\x%02x" % byte if "h" in flags else bytes([byte]))
    return tuple(table)


# Name, how its numbers are printed, and their base, in the order of resource_string()'s tests.
_RESOURCES = (
    (b"io", _Spec(flags=b"#0", width=6), "x"),
    (b"mem", _Spec(flags=b"#0", width=10), "x"),
    (b"irq", _NONE, "d"),
    (b"dma", _NONE, "d"),
    (b"bus", _Spec(flags=b"0", width=2), "x"),
)
_RESOURCE_FLAGS = (  # IORESOURCE_MEM_64, PREFETCH, WINDOW, DISABLED
    (0x00100000, b" 64bit"),
    (0x00002000, b" pref"),
    (0x00200000, b" window"),
    (0x10000000, b" disabled"),
)

_POINTERS: dict[str, Callable[[_Formatter, _Spec, int, str], bytes]] = {
    "x": _Formatter.pointer_string,
    "K": _Formatter.default_pointer,  # kernel.kptr_restrict is 0 after boot
    "e": _Formatter.err_ptr,
    **dict.fromkeys("SsB", _Formatter.symbol_string),
    **dict.fromkeys("Rr", _Formatter.resource_or_range),
    "h": _Formatter.hex_string,
    "b": _Formatter.bitmap_string,
    **dict.fromkeys("Mm", _Formatter.mac_address_string),
    **dict.fromkeys("Ii", _Formatter.ip_addr_string),
    "E": _Formatter.escaped_string,
    "U": _Formatter.uuid_string,
    "V": _Formatter.va_format,
    "N": _Formatter.netdev_bits,
    "4": _Formatter.fourcc_string,
    "a": _Formatter.address_val,
    "p": _Formatter.pxd_pointer,
    **dict.fromkeys("ku", _Formatter.probed_string),
    **dict.fromkeys("dDtCgGOfA", _Formatter.opaque_pointer),
}
