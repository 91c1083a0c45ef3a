"""Parts from names and values: whatever is wrong in a table is said with its path and the way out."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import ConfigError
from atoll.core.registry import build, call, find, nearest, part, parts
from atoll.simulate import faults


def make(
    n: int,
    rate: float = 0.5,
    label: str = "x",
    on: bool = False,
    sizes: tuple[int, ...] = (1,),
    limit: float | None = None,
    kind: Literal["a", "b"] = "a",
):
    """Something."""
    if n < 0:
        raise ConfigError(f"n must be at least 0, got {n}")
    return n, rate, label, on, sizes, limit, kind


def test_a_name_alone_or_a_table_with_values_makes_a_part():
    assert str(build("delay", {"name": "uniform", "low": 0, "high": 2})) == "0-2 s"
    assert build("delay", "lognormal").text == "lognormal(0, 1) s"


def test_a_table_given_to_build_is_left_as_it_was():
    table = {"name": "constant", "seconds": 1.0}
    build("delay", table)
    assert table == {"name": "constant", "seconds": 1.0}


@pytest.mark.parametrize(
    ("wrong", "path", "advice"),
    [
        ("unifrom", "$.d.name", "did you mean 'uniform'?"),
        ("xyz", "$.d.name", "choose from constant, exponential, lognormal, uniform"),
        ({"name": "unifrom"}, "$.d.name", "did you mean 'uniform'?"),
        ({"low": 1}, "$.d.name", "name the delay"),
        ({"name": 3}, "$.d.name", "name the delay"),
        ({"name": "constant", "second": 1.0}, "$.d.second", "did you mean 'seconds'?"),
        ({"name": "constant"}, "$.d.seconds", "needed"),
        ({"name": "constant", "seconds": "1"}, "$.d.seconds", "expected a number, got '1'"),
        ({"name": "constant", "seconds": True}, "$.d.seconds", "expected a number, got True"),
        ({"name": "constant", "seconds": -1.0}, "$.d", "at least 0"),
    ],
)
def test_what_is_wrong_is_said_with_its_path_and_the_nearest_right_one(wrong, path, advice):
    with pytest.raises(ConfigError) as caught:
        build("delay", wrong, "$.d")
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("n", [0, 3]),
        ("rate", [1, 0.5]),
        ("label", ["", "y"]),
        ("on", [True]),
        ("sizes", [[1, 2], (3,), []]),
        ("limit", [None, 1, 2.5]),
        ("kind", ["b"]),
    ],
)
def test_values_of_the_right_type_pass(key, good):
    for value in good:
        made = call(make, {"n": 1, key: value})
        assert (tuple(value) if isinstance(value, list) else value) in made


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("n", [1.5, True, "1", None, [1]]),
        ("rate", ["0.5", True, None]),
        ("label", [1, None]),
        ("on", [1, "yes"]),
        ("sizes", [[1.5], ["a"], 3]),
        ("limit", ["none", False]),
        ("kind", ["c", 1]),
    ],
)
def test_values_of_a_wrong_type_are_refused_at_their_key(key, bad):
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            call(make, {"n": 1, key: value}, "$.x")
        assert caught.value.path == f"$.x.{key}"


def test_an_error_of_the_part_itself_gets_the_path_of_its_table():
    with pytest.raises(ConfigError, match=r"^\$\.x: n must be at least 0, got -1$"):
        call(make, {"n": -1}, "$.x")


def test_two_parts_of_one_kind_never_share_a_name():
    with pytest.raises(ConfigError, match="already is a delay called 'uniform'"):
        part("delay", "uniform")(make)
    assert find("delay", "uniform").make is faults.uniform


def test_parts_are_sorted_and_each_says_what_it_is_in_one_line():
    listed = parts()
    assert [(p.kind, p.name) for p in listed] == sorted((p.kind, p.name) for p in listed)
    assert {p.name for p in parts("delay")} == {"constant", "uniform", "lognormal", "exponential"}
    for p in listed:
        assert p.summary
        assert "\n" not in p.summary


@given(st.lists(st.text("abcde", min_size=3, max_size=8), min_size=1, unique=True), st.data())
def test_a_name_with_one_letter_too_many_is_told_one_that_is_as_near(names, data):
    right = data.draw(st.sampled_from(names))
    assert nearest(right + "x", names).startswith("did you mean ")
    assert nearest("##", names) == f"choose from {', '.join(sorted(names))}"
