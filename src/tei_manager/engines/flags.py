"""Flags of engine programs: recognised in any spelling, merged with the instance's fields, emitted once.

An engine that finds a flag twice on its command line ends at once, so nothing here works on raw texts: every flag
becomes a `Given` with one canonical name, and only those are put together.
"""

from __future__ import annotations

import re
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


class Style(StrEnum):
    """How a program reads its command line."""

    CLAP = "clap"  # `--x v`, `--x=v`, `-x v`, `-xv`, `-x=v`
    ARGPARSE = "argparse"  # the same; short names may be longer, long ones shortened, and a flag takes many values
    PLAIN = "plain"  # `--x v` and `-x v` only; short names may be longer


class Takes(StrEnum):
    VALUE = "value"
    NUMBER = "number"
    NOTHING = "nothing"
    MANY = "many"  # every word up to the next flag
    MAYBE_BOOLEAN = "maybe_boolean"  # the next token belongs to it only if it is `true` or `false`


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag of a program. `name` is without dashes, `field` the instance's field that it is lifted into.

    `words` are (the program's word, the field's) where they differ; None = as if the flag were not given.
    """

    name: str
    owner: Owner = Owner.TUNE
    takes: Takes = Takes.VALUE
    short: str | None = None
    since: Version | None = None
    repeatable: bool = False
    field: str | None = None
    words: tuple[tuple[str, str | None], ...] = ()
    env: str | None = None  # None = the name in upper snake case

    @property
    def variable(self) -> str:
        return self.env or self.name.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class Table:
    """The flags of one program, all of them or those that mean something to us.

    Names in `aliases` stand for the flag they point to, `-x` for a short one.
    """

    flags: Mapping[str, Flag]
    aliases: Mapping[str, str] = field(default_factory=dict)
    exclusive: tuple[tuple[str, str], ...] = ()
    program: str = "text-embeddings-router"
    style: Style = Style.CLAP

    def short(self, letters: str) -> str | None:
        """The name of the flag with this short name."""
        if (name := self.aliases.get(f"-{letters}")) is not None:
            return name
        return next((flag.name for flag in self.flags.values() if flag.short == letters), None)


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

    def emitted(self, style: Style = Style.CLAP) -> tuple[str, ...]:
        """As it goes on argv; a flag that we do not know goes as it was written."""
        if self.flag is not None and self.flag.takes is not Takes.MANY:
            return emit(self.name, self.value, style)
        if style is Style.PLAIN:
            name, equals, value = self.tokens[0].partition("=")
            return (name, value) if equals else self.tokens
        return self.tokens


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

    def has(self, name: str) -> bool:
        return any(given.name == name for given in self.rest)

    def value(self, name: str) -> str | None:
        return next((given.value for given in self.rest if given.name == name), None)


_NEGATIVE = re.compile(r"-\d+(?:\.\d+)?")
_QUESTION = re.compile(r"--(?:help|version|usage)(?:=.*)?|-h")
_SHAPES = {entry.name: entry.shape for entry in FIELDS}


def emit(name: str, value: str | None, style: Style = Style.CLAP) -> tuple[str, ...]:
    """Two tokens per flag; one where the value would read as another flag."""
    if value is None:
        return (f"--{name}",)
    is_dashed = value.startswith("-") and style is not Style.PLAIN
    return (f"--{name}={value}",) if is_dashed else (f"--{name}", value)


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
        text = item.value or ""
        word = dict(item.flag.words).get(text, text)
        try:
            lifted[item.flag.field] = None if word is None else _SHAPES[item.flag.field].read_text(word)
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
        if reason := _not_a_flag(token, table):
            problems.append(_wrong(start, reason))
            continue
        name, inline, flag = _split(token, table)
        value, taken, reason = _value(name, flag, inline, _words(args[index:], table))
        if reason:
            problems.append(_wrong(start, reason))
        index += taken
        found.append(Given(start, name, value, flag, tuple(args[start:index])))
    return found, problems


def _words(args: Sequence[str], table: Table) -> tuple[str, ...]:
    """What stands in front of the next flag and can belong to the one before: one word in CLAP's style."""
    most = 1 if table.style is Style.CLAP else len(args)
    words: list[str] = []
    for text in args[:most]:
        is_number = table.style is not Style.CLAP and _NEGATIVE.fullmatch(text)
        if text.startswith("-") and not is_number:
            break
        words.append(text)
    return tuple(words)


def _not_a_flag(text: str, table: Table) -> str | None:
    if text == "--" or text.startswith("--="):
        return f"'{text}' is no flag"
    if not text.startswith("-") or text == "-":
        return (
            f"{shown(text)} is no flag and belongs to none; a value that starts with '-' is written --flag=value"
        )
    if table.style is Style.CLAP:
        is_question = text in ("--help", "--version") or (not text.startswith("--") and text[1] in "hV")
    else:
        is_question = _QUESTION.fullmatch(text) is not None
    return f"'{text}' would end the engine at once" if is_question else None


def _split(token: str, table: Table) -> tuple[str, str | None, Flag | None]:
    """(canonical name, value written in the same token, flag) of `--x`, `--x=v`, `-x`, `-xv` or `-x=v`."""
    if token.startswith("--"):
        written, equals, inline = token[2:].partition("=")
        # behind a dot stands a key of a JSON value
        head, dot, key = written.partition(".")
        name = head.replace("_", "-")
        name = table.aliases.get(name, name) + dot + key
        return name, inline if equals else None, table.flags.get(name)
    if table.style is not Style.CLAP:
        written, equals, inline = token.partition("=")
        if (found := table.short(written[1:])) is not None:
            return found, inline if equals else None, table.flags.get(found)
        if table.style is Style.PLAIN or table.short(token[1]) is None:
            return written, inline if equals else None, None
    rest = token[2:]
    name = table.short(token[1]) or token[:2]
    return name, rest.removeprefix("=") if rest else None, table.flags.get(name)


def _value(name: str, flag: Flag | None, inline: str | None, words: Sequence[str]) -> tuple[str | None, int, str]:
    """(value, how many of `words` behind it were taken, what is wrong or an empty text)."""
    if flag is None or flag.takes is Takes.MANY:
        # nobody knows whether it takes a value: a bare word behind it can belong to nothing else
        if inline is None and words:
            return " ".join(words), len(words), ""
        return inline, 0, ""
    if flag.takes is Takes.NOTHING:
        return None, 0, f"--{name} takes no value" if inline is not None else ""
    if flag.takes is Takes.MAYBE_BOOLEAN:
        if inline is None:
            return (words[0], 1, "") if words and words[0] in ("true", "false") else ("true", 0, "")
        return inline, 0, "" if inline in ("true", "false") else f"--{name} takes true or false"
    if inline is None and not words:
        return None, 0, f"--{name} needs a value; one that starts with '-' is written --{name}=value"
    value = inline if inline is not None else words[0]
    reason = ""
    if flag.takes is Takes.NUMBER and not (value.isascii() and value.isdigit() and len(value) <= 18):
        reason = f"--{name} takes a number, got {shown(value)}"
    elif flag.owner is Owner.SECRET and not value:
        reason = f"--{name} must not be empty"
    return value, int(inline is None), reason


def _misplaced(item: Given, table: Table, version: Version | None, strict: bool) -> Problem | None:
    if item.flag is None:
        if table.style is not Style.CLAP and (problem := _in_disguise(item, table)) is not None:
            return problem
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


def _in_disguise(item: Given, table: Table) -> Problem | None:
    """A flag that is ours under its beginning, or in other letters: argparse takes any unambiguous beginning."""
    meant = item.name.partition(".")[0].lower()
    owners = {flag.owner: flag.name for flag in table.flags.values() if flag.name.startswith(meant)}
    if Owner.OWN in owners:
        text = f"--{item.name} may be read as --{owners[Owner.OWN]}, which is set by the manager"
        return Problem(item.path, "MANAGED_FLAG", text)
    for owner in (Owner.LIFT, Owner.SECRET, Owner.ENV):
        if owner in owners:
            return Problem(item.path, "INVALID_CONFIG", f"--{item.name}: write --{owners[owner]} in full")
    return None


def _once(given: Iterable[Given]) -> tuple[list[Given], list[Problem], list[str]]:
    first: dict[str, Given] = {}
    once: list[Given] = []
    problems: list[Problem] = []
    warnings: list[str] = []
    for item in given:
        earlier = first.setdefault(item.name, item)
        # `--x.list+` adds to a list of a JSON value
        may_repeat = item.flag.repeatable if item.flag else item.name.endswith("+")
        if earlier is item or may_repeat:
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
