"""Check arguments against their annotations; a one-line error states the given value and the expected kind."""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

Kind: TypeAlias = tuple[str, Callable[[Any], bool]]
"""The name of a kind of value, and a test for it."""

_KINDS: dict[Any, Kind] = {
    bool: ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: (
        "a finite number",
        lambda value: isinstance(value, Real) and not isinstance(value, bool) and isfinite(value),
    ),
    str: ("a string", lambda value: isinstance(value, str)),
    Path: ("a Path", lambda value: isinstance(value, os.PathLike)),
    dict: ("a dict", lambda value: isinstance(value, dict)),
    NoneType: ("None", lambda value: value is None),
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function check its arguments (`check_kinds`) before it does anything else."""
    names = list(signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_kinds(function, dict(zip(names, args, strict=False)) | kwargs)
        return function(*args, **kwargs)

    return call


def check_kinds(annotated: Any, given: Mapping[str, Any]) -> None:
    """Check values against the annotations of a function or dataclass; only simple annotations are checked.

    Raises
    ------
    ValueError
        If a value is of the wrong kind.
    """
    for name, hint in get_type_hints(annotated).items():
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        wanted = [kind for kind in map(_kind, parts) if kind]
        if name in given and len(wanted) == len(parts) and not any(fits(given[name]) for _, fits in wanted):
            raise ValueError(f"{name} is {shown(given[name])}; it must be {' or '.join(words for words, _ in wanted)}")


def as_python_numbers(settings: Any) -> None:
    """Convert numpy numbers in a dataclass, even a frozen one, to Python's; safe loading refuses numpy's."""
    for name, value in vars(settings).items():
        if isinstance(value, np.generic):
            object.__setattr__(settings, name, value.item())


def _kind(hint: Any) -> Kind | None:
    """Return the entry of `_KINDS` for an annotation, or one for a `Literal`; None if the annotation is not simple."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint))), lambda value: isinstance(value, str) and value in get_args(hint)
    return _KINDS.get(hint)


def is_whole_number(value: Any) -> bool:
    """Return whether a value is a Python or numpy integer."""
    return _KINDS[int][1](value)


def shown(value: Any) -> str:
    """Return a value as messages show it: one short line."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else kind_of(value)


def kind_of(value: Any) -> str:
    """Describe the type of an object in words."""
    if isinstance(value, Mapping):
        return "a dict of " + ", ".join(sorted({type(part).__name__ for part in value.values()}))
    return f"an object of type {type(value).__name__}"
