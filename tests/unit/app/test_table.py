import pytest

from tei_manager.app.client import table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table.render(("NAME", "PORT"), [("a-long-name", "1"), ("b", "-")]) == [
        "NAME          PORT",
        "a-long-name   1",
        "b             -",
    ]


def test_nothing_is_cut_without_a_width() -> None:
    assert table.render(("NAME",), [("x" * 500,)])[1] == "x" * 500


def test_the_widest_column_gives_way_first() -> None:
    lines = table.render(("NAME", "MODEL"), [("bge-small", "organisation/a-very-long-model-name")], width=30)
    assert lines[1] == "bge-small   organisation/a-ve…"
    assert max(map(len, lines)) == 30


def test_a_terminal_that_is_far_too_narrow_still_shows_something_of_each_column() -> None:
    lines = table.render(("NAME", "MODEL"), [("x" * 50, "y" * 50)], width=3)
    assert lines[1] == "xxxxx…   yyyyy…"


def test_a_cell_cannot_move_the_cursor() -> None:
    assert table.render(("A",), [("x\x1b[2Jy\nz",)])[1] == "x [2Jy z"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0, "0s"), (59, "59s"), (192, "3m12s"), (7500, "2h5m"), (273_600, "3d4h"), ("odd", "odd")],
)
def test_age(seconds: object, shown: str) -> None:
    assert table.age(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (391_118_848, "373.0 MiB"),
        (8 << 30, "8.0 GiB"),
        (1 << 52, "4096.0 TiB"),
    ],
)
def test_size(number: object, shown: str) -> None:
    assert table.size(number) == shown


def test_an_object_becomes_a_readable_block() -> None:
    instance = {
        "name": "bge",
        "pid": None,
        "aliases": ["a", "b"],
        "env": {},
        "pinned": False,
        "memory": {"declared_bytes": None, "estimated_bytes": 1 << 20},
    }
    assert table.block(table.flatten(instance)) == [
        "name:             bge",
        "pid:              -",
        "aliases:          a, b",
        "env:              -",
        "pinned:           no",
        "memory.declared:  -",
        "memory.estimated: 1.0 MiB",
    ]


def test_status_with_and_without_detail() -> None:
    assert table.status({"status": "starting", "detail": "loading"}) == "starting (loading)"
    assert table.status({"status": "running", "detail": None}) == "running"
