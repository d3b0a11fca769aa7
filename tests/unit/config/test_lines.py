"""Line numbers of keys, and files that nobody would write by hand."""

from __future__ import annotations

import contextlib
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from tei_manager.config.lines import Lines
from tei_manager.config.load import load
from tei_manager.config.problems import ConfigProblems
from tei_manager.config.schema import BY_PATH

TEXT = '''\
# a comment = 1
a = """
b = 2
[c]
"""  # the end
[grpc] # [x]
"port" = 1
  host . name = 'x # y'
list = [
  1, # ]
  "[z]", [2],
]
after = 1

[[instances]]
name = "a"
[instances.env]
X = "1"
[[instances]]
inline = { p = 1, q = { r = 2 } }
[[instances.sub]]
s = 1
[[instances.sub]]
s = \'\'\'
t = 1\'\'\'\'
u = """\\""""
[last."quoted.part"]
v = 2024-01-01
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 2),
        (("b",), None),
        (("c",), None),
        (("grpc",), 6),
        (("grpc", "port"), 7),
        (("grpc", "host", "name"), 8),
        (("grpc", "list"), 9),
        (("grpc", "after"), 13),
        (("instances",), 15),
        (("instances", 0), 15),
        (("instances", 0, "name"), 16),
        (("instances", 0, "env", "X"), 18),
        (("instances", 1), 19),
        (("instances", 1, "inline", "q", "r"), 20),
        (("instances", 1, "sub", 0, "s"), 22),
        (("instances", 1, "sub", 1, "s"), 24),
        (("instances", 1, "sub", 1, "u"), 26),
        (("last", "quoted.part", "v"), 28),
        (("last", "quoted.part", "other"), 27),
    ],
)
def test_lines(path, line):
    assert tomllib.loads(TEXT)
    assert Lines(TEXT).of(path) == line


@given(st.text(alphabet="a.=[]{}\"'#\n \\1,é", max_size=60))
def test_no_text_crashes_the_scanner(text):
    Lines(text).of(("a",))


def leaves(table: Mapping[str, object], path: tuple[str, ...] = ()):
    for name, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


VALUES = st.recursive(
    st.none().map(lambda _: 1) | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KNOWN = st.sampled_from(
    sorted({part for path in BY_PATH for part in path} | {"instances", "name", "model_id", "env"})
)
TREES = st.dictionaries(KNOWN | st.text(min_size=1, max_size=5), VALUES, max_size=5)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_no_file_crashes_load_and_every_key_has_a_line(tree):
    text = tomli_w.dumps(tree)
    lines = Lines(text)
    for path in leaves(tree):
        assert lines.of(path) is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.toml"
        file.write_text(text, encoding="utf-8")
        with contextlib.suppress(ConfigProblems):
            load(file, {"HOME": "/home/me"})
