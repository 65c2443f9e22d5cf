# SPDX-License-Identifier: GPL-2.0-or-later
"""A question is answered: the command, in this process, which is fenced."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any


def answer(words: Sequence[str]) -> dict[str, Any]:
    """Carry out a command that prints a document; return what it printed.

    Parameters
    ----------
    words
        Of the command line (`questions.checked`).

    Returns
    -------
    dict
        `code` it ended with, `document` (None where it printed none), `said` on stderr. No folder
        of the host is in them.
    """
    from execmem import cli

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([*words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        except Exception as error:  # noqa: BLE001 -- a fault of ours costs this answer only
            code = 70
            err.write(f"execmem: this is a fault of execmem: {type(error).__name__}: {error}")
    text = out.getvalue()
    said = [line for line in err.getvalue().splitlines() if not line.startswith("execmem: notice")]
    found = {"code": code, "document": _document(text), "said": said}
    cleaned: dict[str, Any] = without(_folders(), found)
    return cleaned


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _folders() -> tuple[str, ...]:
    """Return folders of the host that an answer might name: where it works, and of this program."""
    import execmem

    here = Path(execmem.__file__).resolve().parent.parent
    return (f"{Path.cwd().resolve()}/", f"{here}/", f"{Path.home()}/")


def without(folders: Sequence[str], value: Any) -> Any:
    """Return a part of an answer whose texts name no folder of some."""
    if isinstance(value, str):
        if "/" in value:
            for folder in folders:
                value = value.replace(folder, "") if folder != "//" else value
        return value
    if isinstance(value, list):
        return [without(folders, each) for each in value]
    if isinstance(value, dict):
        return {without(folders, key): without(folders, each) for key, each in value.items()}
    return value
