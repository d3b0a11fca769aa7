"""The configuration file against what exists."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tei_manager.domain.instance import Origin
from tei_manager.policy.seeds import Change, Create, Known, Remove, compare

ENTRY = {"name": "a", "model_id": "org/m", "max_batch_tokens": 100}


def test_a_new_entry_is_created() -> None:
    assert compare([ENTRY], {}, {}) == (Create(ENTRY),)


def test_an_unchanged_entry_disturbs_nothing_even_after_changes_over_rest() -> None:
    known = {"a": Known({**ENTRY, "max_batch_tokens": 7}, ENTRY, Origin.CONFIG)}
    assert compare([ENTRY], known, {}) == ()


def test_a_changed_field_wins_over_rest_and_other_fields_stand() -> None:
    known = {"a": Known({**ENTRY, "max_batch_tokens": 7, "dtype": "float16"}, ENTRY, Origin.CONFIG)}
    entry = {**ENTRY, "max_batch_tokens": 200}
    (change,) = compare([entry], known, {})
    assert isinstance(change, Change)
    assert change.fields == ("max_batch_tokens",)
    assert change.values["dtype"] == "float16"


def test_a_field_that_left_the_file_goes_back_to_its_default() -> None:
    known = {"a": Known(ENTRY, ENTRY, Origin.CONFIG)}
    (change,) = compare([{"name": "a", "model_id": "org/m"}], known, {})
    assert isinstance(change, Change)
    assert "max_batch_tokens" not in change.values


def test_an_entry_that_left_the_file_is_removed_only_if_the_file_made_it() -> None:
    known = {"a": Known(ENTRY, ENTRY, Origin.CONFIG), "b": Known({**ENTRY, "name": "b"}, None, Origin.API)}
    assert compare([], known, {}) == (Remove("a"),)


def test_a_seed_deleted_over_rest_stays_deleted_until_its_entry_changes() -> None:
    assert compare([ENTRY], {}, {"a": ENTRY}) == ()
    changed = {**ENTRY, "max_batch_tokens": 5}
    assert compare([changed], {}, {"a": ENTRY}) == (Create(changed),)


entries = st.fixed_dictionaries(
    {"name": st.sampled_from("abc"), "model_id": st.sampled_from(["m", "n"])},
    optional={"dtype": st.sampled_from(["float16", "float32"]), "max_batch_tokens": st.integers(1, 3)},
)


@given(st.lists(entries, unique_by=lambda entry: entry["name"]), st.lists(entries, unique_by=lambda e: e["name"]))
def test_applying_a_file_twice_does_nothing_the_second_time(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> None:
    known = {entry["name"]: Known(entry, entry, Origin.CONFIG) for entry in old}
    for action in compare(new, known, {}):
        match action:
            case Create(values):
                known[str(values["name"])] = Known(values, values, Origin.CONFIG)
            case Change(name, values, _, seed):
                known[name] = Known(values, seed, Origin.CONFIG)
            case Remove(name):
                del known[name]
    assert compare(new, known, {}) == ()
    assert {name: dict(each.values) for name, each in known.items()} == {e["name"]: e for e in new}
