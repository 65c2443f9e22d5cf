# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows on disk: written as they come, read back in the order of the modules, never lost.

While a sweep runs, its file holds the options, then a line for each row as it is done; a line
is written at once and whole, so that what a kill leaves behind is whole lines and at most one
torn one, which is cut off. Each row has the options, too: wherever a file was cut, what is
left of it can be continued. In the end the file is replaced by one with the rows in order and
the summary last, so that how often a sweep was interrupted cannot be told from its result.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import attrs

from allocator.errors import ExecmemError
from allocator.files import open_regular, reason_of, replacing
from execmem import documents
from execmem.sweep.job import Options, Row


class Journal:
    """The rows of one sweep, by the file that each is about.

    Parameters
    ----------
    path
        Where they are written; None: nowhere that outlives the sweep.
    options
        Of the sweep; rows of a sweep with others are not continued.
    resume
        Continue what `path` holds; without it, a file that exists is refused.

    Raises
    ------
    ExecmemError
        The file exists, cannot be written, is not a sweep's, or is one with other options.
    """

    def __init__(self, path: str | Path | None, options: Options, *, resume: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._meaning = attrs.asdict(options)
        self._at: dict[str, int] = {}  # file -> offset of its row
        if self.path is None:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- see close
        else:
            try:
                self._file = _opened(self.path, resume=resume)
            except FileExistsError:
                raise ExecmemError(f"{path}: exists; --resume continues it") from None
            except (OSError, ValueError) as error:
                raise ExecmemError(f"{path}: {reason_of(error)}") from None
        try:
            self._read()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise ExecmemError(f"{path}: {reason_of(error)}") from None
            raise

    def _read(self) -> None:
        """Take in what the file holds, cut off a torn line, and be ready to append."""
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                document = json.loads(line)
                meaning = document.get("summary", document)["options"]
                differs = [name for name in self._meaning if meaning[name] != self._meaning[name]]
                if "file" in document:
                    self._at[document["file"]] = end
            except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
                raise ExecmemError(f"{self.path}: line {number} is not a sweep's") from None
            if differs:
                names = ", ".join(f"--{name}" for name in differs)
                raise ExecmemError(f"{self.path}: holds a sweep with other options: {names}")
            end += len(line)
        if self.path is not None:
            self._file.seek(end)
            self._file.truncate()
        if not end:
            self._append({"options": self._meaning})

    def _append(self, document: Mapping[str, Any]) -> int:
        """Write one line, whole; return where it begins."""
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(documents.line(document).encode() + b"\n")
        self._file.flush()
        return start

    def __contains__(self, file: str) -> bool:
        return file in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def add(self, row: Row) -> None:
        """Write a row; ExecmemError where the disk does not take it."""
        try:
            self._at[row["file"]] = self._append({**row, "options": self._meaning})
        except OSError as error:
            where = self.path or "temporary file"
            raise ExecmemError(f"{where}: {reason_of(error)}") from None

    def row(self, file: str) -> Row:
        """Return the row of a file."""
        self._file.seek(self._at[file])
        found: Row = json.loads(self._file.readline())
        return found

    def finish(self, order: Iterable[str], summary: dict[str, Any]) -> None:
        """Replace the file by one with the rows in an order, and the summary."""
        if self.path is None:
            return
        with replacing(self.path) as file:
            for name in order:
                self._file.seek(self._at[name])
                file.write(self._file.readline())
            summary["summary"]["options"] = self._meaning
            file.write(documents.line(summary).encode() + b"\n")

    def close(self) -> None:
        """Close the file; it can be continued."""
        with suppress(OSError):  # of what the disk did not take, somebody was told
            self._file.close()


def _opened(path: Path, *, resume: bool) -> IO[bytes]:
    """Return the file of a sweep, a new one unless it is to be continued."""
    if not (resume and path.exists()):
        return path.open("x+b")
    open_regular(path).close()
    return path.open("r+b")
