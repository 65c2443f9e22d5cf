# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells griffe, which writes the Python reference, what `__init__` of an attrs class takes.

griffe reads sources and does not run them: of attrs it knows nothing, and warns of every
parameter that such a class documents.
"""

from __future__ import annotations

from typing import Any

import griffe

DECORATORS = ("attrs.define", "attrs.frozen", "attrs.mutable")


class AttrsClasses(griffe.Extension):
    """Gives attrs classes the `__init__` that attrs gives them."""

    def on_class(self, *, cls: griffe.Class, **_more: Any) -> None:
        """Add `__init__` to an attrs class that has none of its own."""
        decorator = _decorator(cls)
        if decorator is None or "__init__" in cls.members:
            return
        self_ = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
        keyword_only = _arguments(decorator).get("kw_only") == "True"
        parameters: dict[str, griffe.Parameter] = {}
        for owner in (*reversed(_bases(cls)), cls):
            if _decorator(owner) is not None:
                parameters |= {p.name: p for p in _parameters(owner, keyword_only=keyword_only)}
        ordered = sorted(
            parameters.values(), key=lambda p: p.kind is griffe.ParameterKind.keyword_only
        )
        init = griffe.Function("__init__", parent=cls, returns="None")
        init.parameters = griffe.Parameters(self_, *ordered)
        cls.set_member("__init__", init)


def _decorator(cls: griffe.Class) -> Any:
    """Return the decorator that makes it an attrs class, or None."""
    paths = ((decorator.callable_path, decorator.value) for decorator in cls.decorators)
    return next((value for path, value in paths if path in DECORATORS), None)


def _bases(cls: griffe.Class) -> list[griffe.Class]:
    try:
        return list(cls.mro())
    except (ValueError, griffe.GriffeError):
        return []


def _arguments(call: Any) -> dict[str, str]:
    """Return the keyword arguments of a call, as source text."""
    given = call.arguments if isinstance(call, griffe.ExprCall) else ()
    return {each.name: str(each.value) for each in given if isinstance(each, griffe.ExprKeyword)}


def _parameters(cls: griffe.Class, *, keyword_only: bool) -> list[griffe.Parameter]:
    found = []
    for member in cls.members.values():
        if not member.is_attribute or member.annotation is None or "property" in member.labels:
            continue
        if "ClassVar" in str(member.annotation):
            continue
        field = isinstance(member.value, griffe.ExprCall) and str(member.value.function) in (
            "attrs.field",
            "field",
        )
        given = _arguments(member.value) if field else {}
        if given.get("init") == "False":
            continue
        kind = griffe.ParameterKind.positional_or_keyword
        if keyword_only or given.get("kw_only") == "True":
            kind = griffe.ParameterKind.keyword_only
        default: Any = member.value
        if field:
            factory = given.get("factory")
            default = given.get("default") if factory is None else f"{factory}()"
        name = member.name.lstrip("_")
        found.append(
            griffe.Parameter(name, annotation=member.annotation, kind=kind, default=default)
        )
    return found
