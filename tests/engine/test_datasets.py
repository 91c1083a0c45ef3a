"""A site's data: what its settings name, what others learn of it, and how sites agree."""

import numpy as np
import pytest

from atoll.control.engine.datasets import agree, hold, pick
from atoll.control.engine.standing import Roster
from atoll.core.errors import ConfigError, DataError

HEAD = "load,heat,fails\n"


@pytest.fixture
def site(tmp_path):
    rows = "".join(f"{i / 7:.3f},{i % 5},{'yes' if i % 3 else 'no'}\n" for i in range(40))
    (tmp_path / "rows.csv").write_text(HEAD + rows)
    (tmp_path / "later.csv").write_text(HEAD + "1.0,2,no\n2.0,3,no\n")
    return tmp_path


def test_a_part_is_kept_to_test_on(site) -> None:
    held = hold("machines", {"train": "rows.csv", "target": "fails", "holdout": 0.25}, site)
    assert (len(held.train), len(held.test)) == (30, 10)
    assert held.about() == {
        "rows": 30, "test_rows": 10, "shape": [2], "classes": ["no", "yes"], "columns": ["load", "heat"],
    }  # fmt: skip


def test_test_rows_of_their_own_are_numbered_alike(site) -> None:
    held = hold("machines", {"train": "rows.csv", "test": "later.csv", "target": "fails"}, site)
    assert held.test.y.tolist() == [0, 0]
    assert len(held.train) == 40


def test_classes_may_be_named_for_all_sites(site) -> None:
    table = {"train": "rows.csv", "target": "fails", "classes": ["maybe", "yes", "no"]}
    held = hold("machines", table, site)
    assert set(np.unique(held.train.y)) == {1, 2}
    assert held.about()["classes"] == ["maybe", "yes", "no"]


@pytest.mark.parametrize("classes", [None, ["maybe", "no", "yes"]])
def test_with_a_budget_one_row_more_changes_nothing_that_is_told(site, classes) -> None:
    table = {"train": "rows.csv", "target": "fails", "holdout": 0, "budget": "b"}
    table |= {} if classes is None else {"classes": classes}
    before = hold("machines", table, site).about()
    assert before == {
        "rows": None, "test_rows": None, "shape": [2], "classes": classes, "columns": ["load", "heat"],
    }  # fmt: skip
    with (site / "rows.csv").open("a") as file:
        file.write("9.0,4,maybe\n")
    assert hold("machines", table, site).about() == before


def test_labels_follow_the_federations_order(site) -> None:
    held = hold("machines", {"train": "rows.csv", "target": "fails"}, site)
    wide = held.labelled(("maybe", "no", "yes"))
    assert (wide.train.y == held.train.y + 1).all()
    with pytest.raises(DataError, match="unknown to the job"):
        held.labelled(("no",))


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        ({"target": "fails"}, ConfigError, r"\$\.data\.machines\.train"),
        ({"train": "rows.csv", "target": "fails", "missin": "x"}, ConfigError, "did you mean 'missing'"),
        ({"train": "rows.csv", "target": "fails", "hold_out": 0.2}, ConfigError, "did you mean 'holdout'"),
        ({"train": "rows.csv", "target": "fails", "x": 0.2}, ConfigError, "delimiter, .* holdout"),
        ({"train": "gone.csv", "target": "fails"}, DataError, "gone.csv"),
        ({"train": "rows.csv", "target": "fails", "holdout": 1.5}, ConfigError, "holdout"),
        ({"train": "rows.csv", "target": "fails", "classes": ["no"]}, DataError, "does not name"),
        ({"train": "rows.csv", "target": "fails", "classes": "no"}, ConfigError, "list of names"),
    ],
)
def test_what_is_wrong_is_named(site, table, error, words) -> None:
    with pytest.raises((error, ConfigError), match=words):
        hold("machines", table, site)


def test_missing_cells_are_refused_with_what_to_do(site) -> None:
    (site / "holes.csv").write_text(HEAD + "1.0,,no\n2.0,3,yes\n")
    with pytest.raises(DataError, match='missing = "mean"'):
        hold("machines", {"train": "holes.csv", "target": "fails", "holdout": 0}, site)


def about(rows=5, shape=(2,), classes=("no", "yes"), columns=("a", "b")):
    return {"rows": rows, "shape": list(shape), "classes": list(classes), "columns": list(columns)}


def test_sites_agree_on_widths_and_classes() -> None:
    shared = agree({"x": about(classes=("no",)), "y": about(7, classes=("yes", "no"))}, "machines")
    assert shared["features"] == 2
    assert (shared["outputs"], shared["classes"]) == (2, ["no", "yes"])
    assert shared["rows"] == {"x": 5, "y": 7}


def test_sites_that_withhold_take_the_others_classes() -> None:
    silent = about(None) | {"classes": None}
    shared = agree({"x": silent, "y": about(7)}, "machines")
    assert (shared["outputs"], shared["classes"], shared["rows"]) == (2, ["no", "yes"], {"x": None, "y": 7})
    assert Roster({"x": 0, "y": 1}, shared).sizes is None
    assert Roster({"y": 0}, shared).sizes == [7]
    with pytest.raises(DataError, match=r'classes = \["no", "yes"\] under \[data.machines\]'):
        agree({"x": silent}, "machines")
    assert agree({"x": about(None, classes=())}, "machines")["outputs"] == 1  # a regression has none


def test_numbers_as_classes_stand_in_their_order() -> None:
    shared = agree({"x": about(classes=("2", "10")), "y": about(classes=("1",))}, "digits")
    assert shared["classes"] == ["1", "2", "10"]


def test_images_keep_their_shape() -> None:
    assert agree({"x": about(shape=(1, 8, 8), columns=())}, "scans")["features"] == [1, 8, 8]


def test_sites_that_differ_are_named_without_values() -> None:
    with pytest.raises(DataError, match="'x' and 'y'"):
        agree({"x": about(), "y": about(columns=("a", "secret"))}, "machines")
    with pytest.raises(ConfigError, match="no site offers"):
        agree({}, "machines")


def test_an_unknown_name_is_answered_with_the_nearest(site) -> None:
    held = hold("machines", {"train": "rows.csv", "target": "fails"}, site)
    with pytest.raises(ConfigError, match="did you mean 'machines'"):
        pick({"machines": held}, "machine")
