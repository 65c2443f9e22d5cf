# SPDX-License-Identifier: GPL-2.0-or-later
"""A plugin of pytest: `pytest --execmem FOLDER` collects relocation cases, an item an architecture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from execmem.check.outcome import Outcome


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --execmem."""
    group = parser.getgroup("execmem")
    group.addoption(
        "--execmem", action="store_true", help="collect relocation cases (execmem check)"
    )
    group.addoption(
        "--execmem-linker",
        action="append",
        metavar="NAME",
        help="ask only this linker, or none; repeatable",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a file that is a case."""
    if not parent.config.getoption("--execmem"):
        return None
    from execmem.check.files import is_one

    if not is_one(file_path):
        return None
    return CaseFile.from_parent(parent, path=file_path)


class CaseFile(pytest.File):
    """A case, or a test of LLVM's."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each architecture."""
        from execmem.check.files import archs_in

        for name in archs_in(self.path):
            yield CaseItem.from_parent(self, name=name or "case", arch=name)


class CaseItem(pytest.Item):
    """A case on one architecture."""

    def __init__(self, *, arch: str, **given: Any) -> None:
        super().__init__(**given)
        self.arch = arch

    def runtest(self) -> None:
        """Run it; skip what is no module's or needs a tool that is missing."""
        from execmem.check.files import Job, run_file
        from execmem.check.outcome import Verdict, worst
        from execmem.check.reporting import located
        from execmem.check.running import Wanted

        linkers = self.config.getoption("--execmem-linker")
        asked = None if linkers is None else [name for name in linkers if name != "none"]
        wanted = Wanted(archs=(self.arch,) if self.arch else (), linkers=asked)
        outcomes: list[Outcome] = list(run_file(Job(self.path, wanted)))
        verdict = worst(outcomes)
        found = [
            located(outcome, finding)
            for outcome in outcomes
            for finding in outcome.findings
            if finding.verdict not in (Verdict.PASSED, Verdict.NOTED)
            and (verdict is not Verdict.FAILED or finding.verdict is Verdict.FAILED)
        ]
        if verdict is Verdict.FAILED:
            raise CaseFailed("\n".join(found))
        if verdict is Verdict.SKIPPED:
            pytest.skip("; ".join(found) or "nothing of it is for this")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the lines that say what is wrong, without a traceback."""
        if isinstance(excinfo.value, CaseFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return where the item is from, and its title."""
        return self.path, None, f"{self.path.name} [{self.name}]"


class CaseFailed(Exception):
    """A case does not hold."""
