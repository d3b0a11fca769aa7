"""Flags of engine programs: recognised in any spelling, merged with the instance's fields, emitted once.

An engine that finds a flag twice on its command line ends at once, so nothing here works on raw texts: every flag
becomes a `Given` with one canonical name, and only those are put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tei_manager.domain.spec import FIELDS
from tei_manager.engines.version import Version
from tei_manager.kits.parsing import Problem, Rejected, nearest, shown


class Owner(StrEnum):
    """Who decides about a flag, and where its value goes."""

    OWN = "own"  # only the manager sets it
    LIFT = "lift"  # an extra argument fills the instance's field
    TUNE = "tune"  # the user's value, or the program's default
    ENV = "env"  # the user's value, never on argv
    SECRET = "secret"  # noqa: S105 - the same, and never shown


class Takes(StrEnum):
    VALUE = "value"
    NUMBER = "number"
    NOTHING = "nothing"
    MAYBE_BOOLEAN = "maybe_boolean"  # the next token belongs to it only if it is `true` or `false`


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag of a program. `name` is without dashes, `field` the instance's field that it is lifted into."""

    name: str
    owner: Owner = Owner.TUNE
    takes: Takes = Takes.VALUE
    short: str | None = None
    since: Version | None = None
    repeatable: bool = False
    field: str | None = None
    env: str | None = None  # None = the name in upper snake case

    @property
    def variable(self) -> str:
        return self.env or self.name.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class Table:
    """The flags of one program. Names in `aliases` stand for the flag they point to."""

    flags: Mapping[str, Flag]
    aliases: Mapping[str, str] = field(default_factory=dict)
    exclusive: tuple[tuple[str, str], ...] = ()
    program: str = "text-embeddings-router"

    def short(self, letter: str) -> Flag | None:
        return next((flag for flag in self.flags.values() if flag.short == letter), None)


@dataclass(frozen=True, slots=True)
class Given:
    """One flag as somebody wrote it: `index` is its place in `extra_args`, `tokens` its own spelling."""

    index: int
    name: str
    value: str | None
    flag: Flag | None  # None = unknown to us
    tokens: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"extra_args[{self.index}]"

    def emitted(self) -> tuple[str, ...]:
        """As it goes on argv; a flag that we do not know goes as it was written."""
        return self.tokens if self.flag is None else emit(self.name, self.value)


@dataclass(frozen=True, slots=True)
class Merged:
    """Extra arguments, sorted by where they go. With `problems` the rest must not be used."""

    lifted: Mapping[str, object]
    env: Mapping[str, str]
    secrets: Mapping[str, str]
    rest: tuple[Given, ...]  # on argv, in the user's order
    kept: tuple[Given, ...]  # what stays in `extra_args` of the instance: `rest` and the env flags
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    def value(self, name: str) -> str | None:
        return next((given.value for given in self.rest if given.name == name), None)


_SHAPES = {entry.name: entry.shape for entry in FIELDS}


def emit(name: str, value: str | None) -> tuple[str, ...]:
    """Two tokens per flag; one where the value would read as another flag."""
    if value is None:
        return (f"--{name}",)
    return (f"--{name}={value}",) if value.startswith("-") else (f"--{name}", value)


def merge(args: Sequence[str], table: Table, version: Version | None, *, strict: bool) -> Merged:
    """Read extra arguments and decide about each.

    `strict`: a flag that is not in the table is a mistake; else it is passed on as it was written. Flags
    newer than `version` are refused where it is known.
    """
    given, problems = read(args, table)
    problems += [problem for item in given if (problem := _misplaced(item, table, version, strict)) is not None]
    once, doubled, warnings = _once(
        item for item in given if item.flag is None or item.flag.owner is not Owner.OWN
    )
    problems += doubled
    names = {item.name for item in once}
    problems += [
        Problem(item.path, "INVALID_CONFIG", f"--{item.name} and --{other} exclude each other")
        for first, other in table.exclusive
        for item in once
        if item.name == first and other in names
    ]
    by_owner = {owner: [item for item in once if item.flag and item.flag.owner is owner] for owner in Owner}
    lifted: dict[str, object] = {}
    for item in by_owner[Owner.LIFT]:
        assert item.flag is not None
        assert item.flag.field is not None
        try:
            lifted[item.flag.field] = _SHAPES[item.flag.field].read_text(item.value or "")
        except Rejected as refusal:
            problems.append(Problem(item.path, refusal.code, f"{refusal}, got {shown(item.value)}"))
    moved = {Owner.LIFT, Owner.SECRET}
    kept = tuple(item for item in once if item.flag is None or item.flag.owner not in moved)
    return Merged(
        lifted=lifted,
        env=_variables(by_owner[Owner.ENV]),
        secrets=_variables(by_owner[Owner.SECRET]),
        rest=tuple(item for item in kept if item.flag is None or item.flag.owner is Owner.TUNE),
        kept=kept,
        problems=tuple(sorted(problems, key=_place)),
        warnings=tuple(warnings),
    )


def read(args: Sequence[str], table: Table) -> tuple[list[Given], list[Problem]]:
    """Every flag in `args`, by canonical name, and what could not be read as one."""
    found: list[Given] = []
    problems: list[Problem] = []
    index = 0
    while index < len(args):
        start, token = index, args[index]
        index += 1
        if reason := _not_a_flag(token):
            problems.append(_wrong(start, reason))
            continue
        name, inline, flag = _split(token, table)
        following = args[index] if index < len(args) else None
        value, took_next, reason = _value(name, flag, inline, following)
        if reason:
            problems.append(_wrong(start, reason))
        index += took_next
        found.append(Given(start, name, value, flag, tuple(args[start:index])))
    return found, problems


def _not_a_flag(text: str) -> str | None:
    if text == "--" or text.startswith("--="):
        return f"'{text}' is no flag"
    if not text.startswith("-") or text == "-":
        return (
            f"{shown(text)} is no flag and belongs to none; a value that starts with '-' is written --flag=value"
        )
    is_question = text in ("--help", "--version") or (not text.startswith("--") and text[1] in "hV")
    return f"'{text}' would end the engine at once" if is_question else None


def _split(token: str, table: Table) -> tuple[str, str | None, Flag | None]:
    """(canonical name, value written in the same token, flag) of `--x`, `--x=v`, `-x`, `-xv` or `-x=v`."""
    if token.startswith("--"):
        written, equals, inline = token[2:].partition("=")
        name = written.replace("_", "-")
        name = table.aliases.get(name, name)
        return name, inline if equals else None, table.flags.get(name)
    rest = token[2:]
    flag = table.short(token[1])
    return flag.name if flag else token[:2], rest.removeprefix("=") if rest else None, flag


def _value(
    name: str, flag: Flag | None, inline: str | None, following: str | None
) -> tuple[str | None, bool, str]:
    """(value, whether the next token was taken, what is wrong or an empty text)."""
    dashed = following is None or following.startswith("-")
    if flag is None:
        # nobody knows whether it takes a value: a bare word behind it can belong to nothing else
        return (inline, False, "") if inline is not None or dashed else (following, True, "")
    if flag.takes is Takes.NOTHING:
        return None, False, f"--{name} takes no value" if inline is not None else ""
    if flag.takes is Takes.MAYBE_BOOLEAN:
        if inline is None:
            return (following, True, "") if following in ("true", "false") else ("true", False, "")
        return inline, False, "" if inline in ("true", "false") else f"--{name} takes true or false"
    value = inline if inline is not None or dashed else following
    if value is None:
        hint = f"; a value that starts with '-' is written --{name}=value" if following else ""
        return None, False, f"--{name} needs a value{hint}"
    reason = ""
    if flag.takes is Takes.NUMBER and not (value.isascii() and value.isdigit() and len(value) <= 18):
        reason = f"--{name} takes a number, got {shown(value)}"
    elif flag.owner is Owner.SECRET and not value:
        reason = f"--{name} must not be empty"
    return value, inline is None, reason


def _misplaced(item: Given, table: Table, version: Version | None, strict: bool) -> Problem | None:
    if item.flag is None:
        if not strict:
            return None
        guess = nearest(item.name, table.flags)
        dashed = item.name if item.name.startswith("-") else f"--{item.name}"
        hint = f", did you mean --{guess}?" if guess else ""
        program = f"{table.program} {version}" if version else table.program
        return Problem(item.path, "UNKNOWN_FLAG", f"{program} has no flag {dashed}{hint}", guess)
    if item.flag.owner is Owner.OWN:
        return Problem(item.path, "MANAGED_FLAG", f"--{item.name} is set by the manager")
    if item.flag.since and version and version < item.flag.since:
        text = f"--{item.name} needs {table.program} {item.flag.since}, this is {version}"
        return Problem(item.path, "FLAG_NEEDS_VERSION", text)
    return None


def _once(given: Iterable[Given]) -> tuple[list[Given], list[Problem], list[str]]:
    first: dict[str, Given] = {}
    once: list[Given] = []
    problems: list[Problem] = []
    warnings: list[str] = []
    for item in given:
        earlier = first.setdefault(item.name, item)
        if earlier is item or (item.flag and item.flag.repeatable):
            once.append(item)
        elif earlier.value == item.value:
            warnings.append(f"--{item.name} is given twice; once is enough")
        else:
            problems.append(Problem(item.path, "DUPLICATE_FLAG", f"--{item.name} has another value before"))
    return once, problems, warnings


def _variables(given: Iterable[Given]) -> dict[str, str]:
    return {item.flag.variable: item.value or "" for item in given if item.flag}


def _wrong(index: int, text: str) -> Problem:
    return Problem(f"extra_args[{index}]", "INVALID_CONFIG", text)


def _place(problem: Problem) -> int:
    return int(problem.path.removeprefix("extra_args[").removesuffix("]"))
