"""Shapes of outside values: what is accepted, what it becomes, and what to say if it is not.

A `Shape` reads one value that came from JSON or TOML (`read`) or from an environment variable or a flag
(`read_text`). A record is a list of `Field`s; `read_record` reports every problem, not just the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input. `path` is the full key path, `code` a stable upper-case word."""

    path: str
    code: str
    message: str
    nearest: str | None = None

    def below(self, prefix: str) -> Problem:
        """The same problem seen from one level further out."""
        joined = f"{prefix}{self.path}" if self.path.startswith("[") else f"{prefix}.{self.path}".strip(".")
        return Problem(joined, self.code, self.message, self.nearest)


class Rejected(ValueError):
    """A value was refused. `str()` is the reason without the key's name; `at` is the part that it is about."""

    def __init__(self, code: str, message: str, *, at: str | None = None) -> None:
        super().__init__(message)
        self.code, self.at = code, at


class Shape(Generic[T_co]):
    """One kind of value. Subclasses set `expects`, the words after "expected"."""

    expects = "a value"
    code = "VALIDATION_ERROR"

    def read(self, value: object) -> T_co:
        """Accept or refuse a decoded value. Raises `Rejected`."""
        raise NotImplementedError  # pragma: no cover - abstract

    def read_text(self, text: str) -> T_co:
        """Accept or refuse the text of an environment variable. Raises `Rejected`."""
        return self.read(text)

    def wrong_type(self) -> Rejected:
        return Rejected("INVALID_TYPE", f"expected {self.expects}")

    def wrong_value(self) -> Rejected:
        return Rejected(self.code, f"expected {self.expects}")


class Boolean(Shape[bool]):
    expects = "true or false"
    words: Mapping[str, bool] = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(
        ("false", "0", "no", "off"), False
    )

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise self.wrong_type()
        return value

    def read_text(self, text: str) -> bool:
        if (value := self.words.get(text.strip().lower())) is None:
            raise self.wrong_value()
        return value


class Integer(Shape[int]):
    """A whole number within inclusive bounds; booleans are not numbers."""

    def __init__(self, low: int | None = None, high: int | None = None, *, code: str | None = None) -> None:
        self.low, self.high = low, high
        self.code = code or self.code
        bounds = {
            (True, True): f" {low}-{high}",
            (True, False): f" >= {low}",
            (False, True): f" <= {high}",
            (False, False): "",
        }
        only = low is not None and low == high
        self.expects = str(low) if only else "an integer" + bounds[low is not None, high is not None]

    def read(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type()
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise self.wrong_value()
        return value

    def read_text(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()):
            raise self.wrong_value()
        return self.read(int(text))


class Number(Shape[float]):
    """A finite number, fractions allowed, `low` exclusive if `above`."""

    def __init__(self, low: float, high: float | None = None, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above
        self.expects = f"a number {'>' if above else '>='} {low:g}" + (f" and <= {high:.12g}" if high else "")

    def read(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong_type()
        number = float(value)
        # written so that NaN is refused too
        fits = (number > self.low if self.above else number >= self.low) and number < float("inf")
        if not fits or (self.high is not None and number > self.high):
            raise self.wrong_value()
        return number

    def read_text(self, text: str) -> float:
        try:
            return self.read(float(text))
        except ValueError:
            raise self.wrong_value() from None


class Text(Shape[str]):
    """A text, optionally matching a whole pattern and at most `longest` characters; never with NUL."""

    def __init__(
        self,
        pattern: str | None = None,
        expects: str = "a text",
        *,
        code: str | None = None,
        longest: int = 4096,
        refuse: Callable[[str], bool] | None = None,
    ) -> None:
        self.pattern = re.compile(pattern) if pattern else None
        self.expects, self.longest, self.refuse = expects, longest, refuse
        self.code = code or self.code

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise self.wrong_type()
        if (
            len(value) > self.longest
            or "\0" in value
            or (self.pattern and not self.pattern.fullmatch(value))
            or (self.refuse and self.refuse(value))
        ):
            raise self.wrong_value()
        return value


class Choice(Shape[str]):
    """One of a few words. `aliases` maps further spellings to them."""

    def __init__(self, *words: str, aliases: Mapping[str, str] | None = None, code: str | None = None) -> None:
        self.words, self.aliases = words, dict(aliases or {})
        self.expects = "one of " + ", ".join(words)
        self.code = code or self.code

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise self.wrong_type()
        word = self.aliases.get(value, value)
        if word not in self.words:
            raise self.wrong_value()
        return word


class Optional(Shape[T | None], Generic[T]):
    """The inner shape, or null."""

    def __init__(self, inner: Shape[T]) -> None:
        self.inner, self.expects, self.code = inner, f"{inner.expects} or null", inner.code

    def read(self, value: object) -> T | None:
        return None if value is None else self.inner.read(value)

    def read_text(self, text: str) -> T | None:
        return self.inner.read_text(text)


class Either(Shape[T], Generic[T]):
    """The first of several shapes that takes the value."""

    def __init__(self, *shapes: Shape[T]) -> None:
        self.shapes = shapes
        self.expects = " or ".join(shape.expects for shape in shapes)
        self.code = shapes[0].code

    def read(self, value: object) -> T:
        return self._first(lambda shape: shape.read(value))

    def read_text(self, text: str) -> T:
        return self._first(lambda shape: shape.read_text(text))

    def _first(self, attempt: Callable[[Shape[T]], T]) -> T:
        codes = set()
        for shape in self.shapes:
            try:
                return attempt(shape)
            except Rejected as refusal:
                codes.add(refusal.code)
        raise self.wrong_type() if codes == {"INVALID_TYPE"} else self.wrong_value()


class ListOf(Shape[tuple[T, ...]], Generic[T]):
    def __init__(self, inner: Shape[T], *, longest: int = 1024, shortest: int = 0) -> None:
        self.inner, self.longest, self.shortest = inner, longest, shortest
        self.code = inner.code
        at_least = f"{shortest} to " if shortest else "at most "
        self.expects = f"a list of {at_least}{longest} items, each {inner.expects}"

    def read(self, value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise self.wrong_type()
        if not self.shortest <= len(value) <= self.longest:
            raise self.wrong_value()
        return tuple(self.inner.read(item) for item in value)

    def read_text(self, text: str) -> tuple[T, ...]:
        return self.read(_json(text, self))


class MapOf(Shape[Mapping[str, T]], Generic[T]):
    def __init__(self, keys: Shape[str], values: Shape[T]) -> None:
        self.keys, self.values = keys, values
        self.code = keys.code
        self.expects = f"a table of {keys.expects} = {values.expects}"

    def read(self, value: object) -> Mapping[str, T]:
        if not isinstance(value, Mapping):
            raise self.wrong_type()
        return dict(self._pair(name, item) for name, item in value.items())

    def _pair(self, name: object, item: object) -> tuple[str, T]:
        try:
            return self.keys.read(name), self.values.read(item)
        except Rejected as refusal:
            raise Rejected(refusal.code, str(refusal), at=str(name)) from None

    def read_text(self, text: str) -> Mapping[str, T]:
        return self.read(_json(text, self))


def _json(text: str, shape: Shape[object]) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise Rejected(shape.code, f"expected JSON: {shape.expects}") from None


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a record. `doc` is the sentence that the reference prints; a secret value is never repeated."""

    name: str
    shape: Shape[object]
    default: object = None
    required: bool = False
    doc: str = field(default="", kw_only=True)
    is_secret: bool = field(default=False, kw_only=True)


def read_record(fields: Sequence[Field], values: Mapping[str, object]) -> tuple[dict[str, object], list[Problem]]:
    """Read a table against its fields.

    Returns the values with defaults filled in (keys with problems keep their default) and all problems,
    in the order of the table: unknown keys where they stand, missing ones last.
    """
    by_name = {entry.name: entry for entry in fields}
    result = {entry.name: entry.default for entry in fields}
    problems: list[Problem] = []
    for name, value in values.items():
        if (entry := by_name.get(name)) is None:
            problems.append(unknown(name, by_name))
            continue
        try:
            result[name] = entry.shape.read(value)
        except Rejected as refusal:
            got = "" if entry.is_secret else f", got {shown(value)}"
            problems.append(
                Problem(f"{name}.{refusal.at}" if refusal.at else name, refusal.code, f"{refusal}{got}")
            )
    problems += [
        Problem(entry.name, "MISSING_FIELD", "is required")
        for entry in fields
        if entry.required and entry.name not in values
    ]
    return result, problems


def unknown(name: str, known: Iterable[str]) -> Problem:
    """The problem of a key nobody knows, with the nearest one that exists."""
    guess = nearest(name, known)
    return Problem(name, "UNKNOWN_FIELD", "unknown key" + (f", did you mean '{guess}'?" if guess else ""), guess)


def shown(value: object, longest: int = 60) -> str:
    """A value as an error message prints it: JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def nearest(word: str, known: Iterable[str], furthest: int = 3) -> str | None:
    """The known word within `furthest` edits of `word` that is closest, or None."""
    # a short word is within 3 edits of anything: ask for at least half of it to agree
    limit = min(furthest, max(1, len(word) // 2))
    scored = sorted((distance, other) for other in known if (distance := edits(word, other)) <= limit)
    return scored[0][1] if scored else None


def edits(left: str, right: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, one each."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]
