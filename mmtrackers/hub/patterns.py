"""Patterns for names of modules in an adapter's file: they must end in time."""

import re
from collections.abc import Mapping
from typing import Any

MOST_REPEATS = 4
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\{\d*,?\d*\}|.", re.DOTALL)


def check_patterns(fields: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where one of an adapter's fields is a pattern for names of modules that may not end in time.
    """
    for name, value in fields.items():
        if name.endswith(("_modules", "_pattern")):
            for pattern in value if isinstance(value, dict) and name.endswith("_pattern") else [value]:
                if isinstance(pattern, str):
                    check_pattern(f"{where}: {name}", pattern)


def check_pattern(name: str, pattern: str) -> None:
    """Raises ValueError unless a pattern for names of modules is one, and its search ends after few steps.

    Repeated groups that repeat or choose inside can take longer than anybody waits, and so can many repeats in a row.
    """
    shown = f"{name} {pattern[:80]!r}"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{shown} is no regular expression: {error}.") from error
    repeats, groups = 0, [False]
    tokens = _TOKEN.findall(pattern)
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        repeated = following in ("*", "+") or (following.startswith("{") and following.endswith("}"))
        if token == "(":
            groups.append(False)
        elif token == ")":
            inner = groups.pop()
            if inner and repeated:
                raise ValueError(
                    f"{shown} repeats a group that repeats or chooses inside, which can take forever: name the "
                    "modules in a list, or write a pattern without."
                )
            groups[-1] |= inner
        elif token == "|":
            groups[-1] = True
        if repeated:
            repeats += 1
            groups[-1] = True
    if repeats > MOST_REPEATS:
        raise ValueError(f"{shown} has {repeats} repeats, {MOST_REPEATS} are allowed: name the modules in a list.")
