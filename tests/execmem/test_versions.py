# SPDX-License-Identifier: GPL-2.0-or-later
"""One version in one place, shown with those it runs on; shells complete words."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import archs
import execmem

HERE = Path(__file__).parents[2]


def shell(*words, **variables):
    """Run `execmem` in a process of its own; return its output."""
    command = [sys.executable, "-c", "from execmem.cli import main; main()", *words]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=HERE,
        env={**os.environ, **variables},
    )
    assert "Traceback" not in done.stderr
    return done.stdout


def settings():
    """Return what setup.cfg states."""
    found = ConfigParser()
    found.read(HERE / "setup.cfg", "utf-8")
    return found


def test_there_is_one_version():
    """What is installed, `__version__` and the changelog's newest dated entry say the same."""
    stated = settings()["metadata"]["version"]
    assert execmem.__version__ == version("execmem") == stated
    assert "__version__" in dir(execmem)
    changelog = (HERE / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == stated


def test_a_version_without_an_installation(monkeypatch):
    """Run from its sources, the version is the one that setup.cfg states."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert execmem.__version__ == settings()["metadata"]["version"]


def test_the_version_names_the_emulator():
    """`--version` says what a report of a fault needs, and loads no emulator for it."""
    out = shell("--version")
    assert out.startswith(f"execmem {execmem.__version__}\n")
    for package in ("unicorn", "capstone"):
        assert f"{package} {version(package)}" in out
    assert f"Python {platform.python_version()}" in out
    code = (
        "import sys; from execmem.cli import cli; cli.main(['--version'], standalone_mode=False);"
        "sys.exit('unicorn' in sys.modules or 'capstone' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE, capture_output=True)


def test_no_word_and_a_wrong_word_help(capsys):
    """Without a word the overview is shown as it is; a misspelt command is asked about."""
    from execmem.cli import COMMANDS, main

    with pytest.raises(SystemExit):
        main([])
    told = "".join(capsys.readouterr())
    assert "\\n" not in told
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", told, re.MULTILINE)
    with pytest.raises(SystemExit) as ended:
        main(["laod"])
    assert ended.value.code == 2
    assert "No such command 'laod'. Did you mean load?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_shells_get_what_they_read(name):
    """The line that the how-to names prints a script for the shell."""
    text = (HERE / "docs" / "howto" / "completion.md").read_text("utf-8")
    assert f"_EXECMEM_COMPLETE={name}_source execmem" in text
    out = shell(_EXECMEM_COMPLETE=f"{name}_source")
    assert f"_EXECMEM_COMPLETE={name}_complete" in out


def test_words_are_completed():
    """Commands and their options complete, as the how-to says."""
    asked = {"_EXECMEM_COMPLETE": "bash_complete"}
    out = shell(**asked, COMP_WORDS="execmem lo", COMP_CWORD="1")
    assert out.split() == ["plain,load"]
    out = shell(**asked, COMP_WORDS="execmem load --ro", COMP_CWORD="2")
    assert out.split() == ["plain,--root"]


def test_the_page_on_support_names_what_there_is():
    """Every architecture has a column, and the oldest Python is the one that is required."""
    text = (HERE / "docs" / "support.md").read_text("utf-8")
    for arch in archs.ALL:
        assert arch.title in text
    oldest = settings()["options"]["python_requires"].removeprefix(">=")
    assert f"| Python | {oldest} and newer" in text
    for extra in settings()["options.extras_require"]:
        assert f"`{extra}`" in text
