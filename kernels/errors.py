# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors by number, as the kernel's errname() names them, and what of a module returned one."""

from __future__ import annotations

import re

import attrs

from allocator.errors import ExecmemError, printable

_PREFIX = re.compile(r"^(<\d+>)?(\[ *[\d.]+\](\[ *[TC]\d+\])?)?")  # level and time of a message
MAX_ERRNO = 4095  # include/linux/err.h

# errno 1 ... 133 of asm-generic/errno.h, `-` where there is none, then 512 ... 530 of
# include/linux/errno.h: errname() knows these.
_ERRNO_NAMES = """
EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK
EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE
EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM
ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC
EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO
EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX
ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT
EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL
ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN
ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN
ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED
EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON
"""
_INTERNAL_ERRNO_NAMES = """
ERESTARTSYS ERESTARTNOINTR ERESTARTNOHAND ENOIOCTLCMD ERESTART_RESTARTBLOCK EPROBE_DEFER EOPENSTALE
ENOPARAM - EBADHANDLE ENOTSYNC EBADCOOKIE ENOTSUPP ETOOSMALL ESERVERFAULT EBADTYPE EJUKEBOX
EIOCBQUEUED ERECALLCONFLICT
"""
ERRNO_NAMES = {
    number: name
    for first, names in ((1, _ERRNO_NAMES), (512, _INTERNAL_ERRNO_NAMES))
    for number, name in enumerate(names.split(), first)
    if name != "-"
}


def errno_name(number: int) -> str:
    """Return the name of an errno, as `%pe` prints it without the sign; the number without one.

    >>> errno_name(22), errno_name(9999)
    ('EINVAL', '9999')
    """
    return ERRNO_NAMES.get(number, str(number))


@attrs.define(auto_exc=True, str=False)
class ErrnoError(ExecmemError):
    """Something of a module refused what it was asked for, or there is no such thing.

    Parameters
    ----------
    name, operation
        What was asked of whom.
    error
        The errno, positive; 0: nobody was asked.
    reason
        What is wrong, where the errno does not say it.
    """

    name: str
    operation: str
    error: int = 0
    reason: str = ""

    def __str__(self) -> str:
        code = f"-{self.error} ({errno_name(self.error)})" if self.error else ""
        return f"{self.name}: {self.operation}: {', '.join(filter(None, (code, self.reason)))}"


@attrs.define(auto_exc=True, str=False)
class BootFailed(ExecmemError):
    """A kernel did not get to its first process.

    Parameters
    ----------
    kernel, reason
        Which, and why.
    console
        The last lines that it printed.
    printed
        All that it printed.
    """

    kernel: str
    reason: str
    console: str = ""
    printed: bytes = attrs.field(default=b"", repr=False)

    def __str__(self) -> str:
        lines = [_PREFIX.sub("", line).strip() for line in self.console.splitlines()]
        told = " | ".join(filter(None, lines))
        said = f"; it last said: {printable(told)}" if told else ""
        return f"{printable(self.kernel)}: does not boot: {printable(self.reason)}{said}"


@attrs.define(auto_exc=True, str=False)
class BadSnapshot(ExecmemError):
    """A file that holds no machine that can be had here.

    Parameters
    ----------
    name, reason
        Which, and why.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.reason}")
