"""The contract: what a row is, why a reading is none, and whether a site's data keep it."""

import math
import re

import pytest

from atoll.core.errors import ConfigError
from atoll.data.contract import Contract
from tests.sense.plant import TABLE, contract


def test_a_reading_becomes_cells_in_the_order_of_the_columns() -> None:
    cells, reason = contract().taken({"state": "run", "heat": 71.5, "load": 3, "fails": True})
    assert (cells, reason) == ([71.5, 3.0, 1.0, 1.0], "")
    cells, reason = contract().taken({"state": "idle", "heat": -40})
    assert reason == ""
    assert cells[0] == -40
    assert math.isnan(cells[1])
    assert math.isnan(cells[3])  # a label may come later


@pytest.mark.parametrize(
    ("values", "units", "words"),
    [
        ({"heat": math.nan}, {}, "'heat' is not finite"),
        ({"heat": 151.25}, {}, "'heat' lies outside -40 to 150"),
        ({"heat": 71.5}, {"heat": "K"}, "'heat' came in another unit than degC"),
        ({"heat": "hot"}, {}, "'heat' is no number"),
        ({"heat": True}, {}, "'heat' is no number"),
        ({"heat": None}, {}, "'heat' is missing"),
        ({"state": "broken"}, {}, "'state' is none of its 2 categories"),
        ({"fails": 2}, {}, "'fails' is no flag"),
        ({"hest": 1}, {}, "an unknown column: did you mean 'heat'"),
        ({"load": 1.0}, {"load": "kN"}, "'load' came in another unit than none"),
    ],
)
def test_what_is_wrong_is_told_without_its_value(values, units, words) -> None:
    reason = contract().check({"heat": 20, "state": "run", **values}, units)
    assert words in reason
    assert not re.search(r"151|71\.5|hot|broken|hest", reason)


def test_a_unit_is_converted_only_as_declared() -> None:
    (heat, *_), reason = contract().taken({"heat": 212, "state": "run"}, {"heat": "degF"})
    assert reason == ""
    assert heat == pytest.approx(100)
    assert "outside" in contract().check({"heat": 400, "state": "run"}, {"heat": "degF"})


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"label": "fals"}, r"\$\.label.*did you mean 'fails'"),
        ({"columns": {}}, r"\$\.columns"),
        ({"columns": {"fails": {"kind": "flag"}}}, "beside its label"),
        ({"columns": {"fails": {"kind": "flag"}, "s": {"kind": "category"}}}, r"\$\.columns\.s\.values"),
        ({"columns": {"fails": {"kind": "flag"}, "s": {"kind": "word"}}}, r"kind"),
        ({"columns": {"fails": {"kind": "flag"}, "s": {"lwo": 1}}}, "lwo"),
        ({"columns": {"fails": {"kind": "flag"}, "s": {"low": 2, "high": 1}}}, "low lies above high"),
        ({"columns": {"fails": {"kind": "flag"}, "s": {"kind": "image"}}}, "shape"),
        ({"columns": {"fails": {"kind": "flag"}, "s": {"stuck": 0}}}, "stuck"),
    ],
)
def test_a_wrong_contract_is_refused_by_its_path(change, path) -> None:
    with pytest.raises(ConfigError, match=path):
        Contract.of({**TABLE, **change})


def test_a_contract_is_read_and_written_as_values(tmp_path) -> None:
    file = tmp_path / "press.toml"
    file.write_text(
        'name = "press"\nlabel = "fails"\n[columns.heat]\nunit = "degC"\nlow = -40\n'
        'from = { degF = [0.5, -17.0] }\n[columns.fails]\nkind = "flag"\n'
    )
    found = Contract.read(file)
    assert Contract.of(found.table()) == found
    assert (found.features, found.classes, found.row) == (("heat",), ("0", "1"), (1,))
    assert found.columns["heat"].high == math.inf
    with pytest.raises(ConfigError, match="there is no contract"):
        Contract.read(tmp_path / "gone.toml")


def test_a_sites_contract_must_keep_the_federations() -> None:
    theirs = contract()
    narrow = {**TABLE["columns"], "heat": {**TABLE["columns"]["heat"], "high": 100}}
    assert theirs.differs(Contract.of({**TABLE, "name": "ours", "columns": narrow})) == ""
    for change, words in (
        ({"unit": "K", "from": {}}, "another unit"),
        ({"high": 200}, "wider range"),
        ({"missing": True}, "missing cells"),
        ({"kind": "flag", "unit": "", "from": {}}, "another kind"),
    ):
        columns = {**TABLE["columns"], "heat": {**TABLE["columns"]["heat"], **change}}
        reason = theirs.differs(Contract.of({**TABLE, "columns": columns}))
        assert "column 'heat'" in reason
        assert words in reason
    shuffled = dict(reversed(TABLE["columns"].items()))
    assert (
        theirs.differs(Contract.of({**TABLE, "columns": shuffled}))
        == "other columns, or another order of them"
    )
    assert theirs.differs(Contract.of({**TABLE, "label": "state"})) == "another label"
