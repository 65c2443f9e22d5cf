# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded modules with the files they were made from, from wherever those are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import attrs

from loader.recording import BASE, RecordedBoot, Recording, image_of, runs


@attrs.frozen
class Recorded:
    """One module of one boot, with its image and the errata that its kernel works around."""

    recording: Recording
    image: bytes
    errata: tuple[str, ...]

    @property
    def name(self) -> str:
        """The boot, and the module."""
        return f"{self.recording.run}/{self.recording.name}"


def of_base(oracle: Path, corpus: Path) -> Iterator[Recorded]:
    """Yield every module of the boot without special options whose file is there."""
    yield from _recorded([run for run in runs(oracle) if run.name == BASE], corpus)


def of_runs(oracle: Path, corpus: Path) -> Iterator[Recorded]:
    """Yield every module of the boots with other CPUs, mitigations or KASLR."""
    yield from _recorded([run for run in runs(oracle) if run.name != BASE], corpus)


def _recorded(found: Sequence[RecordedBoot], corpus: Path) -> Iterator[Recorded]:
    for run in found:
        features = run.environment.features
        errata = tuple(f.removeprefix("WORKAROUND_") for f in features if f == "WORKAROUND_843419")
        for recording in run.recordings:
            image = _image(recording.folder, recording.file, corpus, recording)
            if image is not None:
                yield Recorded(recording, image, errata)


@lru_cache(maxsize=256)
def _cached(folder: Path, file: str, corpus: Path) -> dict[str, bytes | None]:
    return {}


def _image(folder: Path, file: str, corpus: Path, recording: Recording) -> bytes | None:
    """Return an image, read once for all boots."""
    kept = _cached(folder, file, corpus)
    if recording.sha256 not in kept:
        kept[recording.sha256] = image_of(recording, (corpus,))
    return kept[recording.sha256]
