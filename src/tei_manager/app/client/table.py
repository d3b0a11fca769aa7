"""Plain aligned tables, and values as people read them. Pure: values in, lines out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GAP = "   "
NARROWEST = 6  # no column is cut below this


def render(head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """One line for the head and one for each row. Cells are cut with `…` only if a width is given."""
    table = [[clean(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if width is not None:
        widths = fit(widths, width - len(GAP) * (len(widths) - 1))
    return [
        GAP.join(cut(cell, wide).ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def fit(widths: Sequence[int], room: int) -> list[int]:
    """Take columns off the widest until all fit, or none can give more."""
    fitted = list(widths)
    while sum(fitted) > room:
        widest = max(range(len(fitted)), key=lambda i: fitted[i])
        if fitted[widest] <= NARROWEST:
            break
        fitted[widest] -= 1
    return fitted


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def clean(text: str) -> str:
    """Without characters that would move the cursor or break the row."""
    return "".join(char if char.isprintable() else " " for char in text)


def block(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """`key: value` lines with the values aligned."""
    wide = max((len(key) for key, _ in pairs), default=0) + 1
    return [f"{key + ':':<{wide}} {clean(value)}" for key, value in pairs]


def flatten(fields: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """The fields of an object as texts; objects inside become dotted keys."""
    pairs: list[tuple[str, str]] = []
    for key, value in fields.items():
        if isinstance(value, dict) and value:
            pairs += flatten(value, f"{prefix}{key}.")
        elif key.endswith("_bytes"):
            pairs.append((prefix + key.removesuffix("_bytes"), size(value)))
        else:
            pairs.append((prefix + key, plain(value)))
    return pairs


def plain(value: object) -> str:
    """One value as a short text; nothing is `-`."""
    if value is None or value in ([], {}, ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return str(value)


def size(value: object) -> str:
    """Bytes in the largest binary unit that leaves a number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    number, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def age(seconds: object) -> str:
    """A time span in its two largest units: `45s`, `3m12s`, `2h5m`, `3d4h`."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return plain(seconds)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def status(instance: Mapping[str, object]) -> str:
    """`starting (loading)`: the status of an instance and, if there is one, its detail."""
    detail = instance.get("detail")
    return f"{plain(instance.get('status'))} ({detail})" if detail else plain(instance.get("status"))
