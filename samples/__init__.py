# SPDX-License-Identifier: GPL-2.0-or-later
"""Demos, one idea each, and the sample modules that they load."""

from __future__ import annotations

from importlib import import_module

from samples.story import Story

DEMOS: dict[str, str] = {
    "reach": "how far a direct call gets, and what happens one step further",
    "tour": "one module on three architectures: where it lies, how far it reaches, what it does",
}


def story_of(name: str) -> Story:
    """Run the demo called `name` and return what it tells; KeyError for an unknown name."""
    if name not in DEMOS:
        raise KeyError(name)
    story: Story = import_module(f"samples.{name}").main()
    return story
