# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page that stands alone can answer: questions of its views, answered when it is written.

A view asks for the words of a command, whoever answers (`execmem/page/source.js`). Here the same words
are carried out as a server would (`execmem.serve.work`), so a file says what a server says. What a
reader may ask has to be known beforehand: that is the choice which `ALONE` makes for each view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from execmem.comparing.film import FRAMES
from execmem.serve.questions import KERNEL
from execmem.serve.work import answer, without

FILMED = ("vmalloc", "rox_cache", "strata")  # what was, what is, what could be
WORKLOAD = "server"

Words = tuple[str, ...]


def _designs(archs: Sequence[str]) -> Iterator[Words]:
    yield "compare", "--list"
    for arch in archs:
        for design in FILMED:
            chosen = ("--workload", WORKLOAD, "--arch", arch, "--design", design)
            yield "compare", *chosen, "--film", str(FRAMES)


def _poke(archs: Sequence[str]) -> Iterator[Words]:
    for arch in archs:
        yield "race", "--graph", "--arch", arch


def _course(_archs: Sequence[str]) -> Iterator[Words]:
    from samples.course import LESSONS

    yield ("course",)
    for name in LESSONS:
        yield "demo", name


def _kernel(_archs: Sequence[str]) -> Iterator[Words]:
    yield "kernel", KERNEL, "--ptdump"


# View -> what it asks, for the architectures that a page shows.
ALONE: dict[str, Callable[[Sequence[str]], Iterator[Words]]] = {
    "designs": _designs,
    "poke": _poke,
    "course": _course,
    "kernel": _kernel,
}


def answers(
    views: Iterable[str],
    archs: Sequence[str],
    *,
    kernel: str | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Return what a page holds beside its loads: which views, and what those ask.

    Parameters
    ----------
    views
        Names of `ALONE`.
    archs
        Those that the page shows.
    kernel
        A kernel that boots; its name, and no folder, comes into the page.
    progress
        Told what is answered, how many answers there are, and how many there will be.

    Raises
    ------
    ExecmemError
        A question has no answer.
    """
    chosen = list(dict.fromkeys(views))
    questions = [words for view in chosen for words in ALONE[view](archs)]
    found: dict[str, Any] = {"with": chosen, "kernel": None, "exports": None, "answers": []}
    if "kernel" in chosen:
        if kernel is None:
            raise ExecmemError("no kernel for the view kernel: name one with --kernel")
        found["kernel"] = {"words": KERNEL, "name": Path(kernel).resolve().name}
        found["exports"] = _exports(kernel)
    for number, words in enumerate(questions):
        progress(" ".join(words[:2]), number, len(questions))
        document = _answer(words, kernel)
        found["answers"].append({"words": list(words), "document": document})
    return found


def _answer(words: Words, kernel: str | None) -> dict[str, Any]:
    """Return the document that a command prints."""
    command, *rest = (str(kernel) if word == KERNEL else word for word in words)
    told = answer((command, "--json", *rest))
    if told["document"] is None:
        from execmem.streams import INTERRUPTED

        if told["code"] == INTERRUPTED:
            raise KeyboardInterrupt
        raise ExecmemError(told["said"][-1].removeprefix("execmem: "))
    hidden = () if kernel is None else (f"{Path(kernel).resolve().parent}/",)
    document: dict[str, Any] = without(hidden, told["document"])
    return document


def _exports(kernel: str) -> dict[str, list[str]]:
    """Return where the symbols are that modules may use, and whether only GPL ones may."""
    from loader.kernel.find import find_kernel

    image = find_kernel(kernel).read()
    found: dict[str, list[str]] = {}
    for name, export in sorted(image.exports.items()):
        at = image.symbols.get(name)
        if at is not None:
            found[name] = [f"{at:#x}", "GPL" if export.gpl else ""]
    return found
