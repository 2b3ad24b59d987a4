"""What the steps of preparation hand on, and the way of their results into JSON and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from latentsync.errors import InputError

T = TypeVar("T")


class Span(NamedTuple):
    """A part of a file in exact seconds from its first frame; the end is the first moment that does not belong to it."""

    start: Fraction
    end: Fraction

    @property
    def seconds(self) -> float:
        """Its length."""
        return float(self.end - self.start)


class Decision(NamedTuple):
    """What a step says of its numbers."""

    keep: bool
    reason: str  # in words; of a drop, with the number and the threshold it failed


def to_plain(value: Any, where: Callable[[Path], str] = str) -> Any:
    """A result as JSON can hold it. `where` writes paths, such as those relative to a folder. Raises TypeError for what it does not know."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, Path):
        return where(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name), where) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(v, where) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, where) for k, v in value.items()}
    raise TypeError(f"a result cannot hold a {type(value).__name__}")


def from_plain(kind: type[T], plain: Any, where: Callable[[str], Path] = Path) -> T:
    """The inverse of `to_plain`, by the types that `kind` names. Raises InputError for a record that does not fit them."""
    try:
        return cast("T", _read(kind, plain, where))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise InputError(f"a record of {kind.__name__} cannot be read ({type(e).__name__}: {e}); delete it, and it is made again") from e


def _read(kind: Any, plain: Any, where: Callable[[str], Path]) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return plain
    if origin in (typing.Union, types.UnionType):
        if plain is None and type(None) in inner:
            return None
        return _read(next(a for a in inner if a is not type(None)), plain, where)
    if origin is typing.Literal:
        return plain
    if origin is tuple or origin is list:
        if len(inner) == 2 and inner[1] is not Ellipsis and origin is tuple:
            return tuple(_read(k, v, where) for k, v in zip(inner, plain, strict=True))
        if len(inner) > 2:
            return tuple(_read(k, v, where) for k, v in zip(inner, plain, strict=True))
        return origin(_read(inner[0], v, where) for v in plain)
    if origin is not None and issubclass(origin, Mapping):
        return {_read(inner[0], k, where): _read(inner[1], v, where) for k, v in plain.items()}
    if dataclasses.is_dataclass(kind):
        hints = _hints(cast(type, kind))
        known = {f.name for f in dataclasses.fields(kind)}
        if not isinstance(plain, dict) or set(plain) - known:
            raise ValueError(f"expected the fields {', '.join(sorted(known))}")
        return cast(Any, kind)(**{name: _read(hints[name], value, where) for name, value in plain.items()})
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = _hints(kind)
        return kind(*(_read(hints[name], value, where) for name, value in zip(kind._fields, plain, strict=True)))
    if isinstance(kind, type) and issubclass(kind, Path):
        return where(plain)
    if kind is Fraction or kind is float:
        return kind(plain)
    if not isinstance(plain, kind):
        raise ValueError(f"expected {kind.__name__}, found {plain!r}")
    return plain


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
