"""Your own files: what loads, and how the rest is refused without showing a cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import ConfigError, DataError
from atoll.data import arrays, csv, load_data, parquet, partition

GOOD = "age,dose,site,ill\n50,1.5,a,yes\n60,2.5,b,no\n70,3.5,a,no\n"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_with_sites(tmp_path: Path) -> None:
    data = csv(write(tmp_path / "t.csv", GOOD), target="ill", site="site")
    assert data.features == ("age", "dose")
    assert data.classes == ("no", "yes")
    assert data.train.y.tolist() == [1, 0, 0]
    assert partition(data, holdout=0).names == ("a", "b")


def test_byte_order_mark_crlf_quotes_and_another_delimiter(tmp_path: Path) -> None:
    text = '"age, years";ill\r\n50;1\r\n60;0\r\n'
    data = csv(write(tmp_path / "t.csv", text, "utf-8-sig"), target="ill", delimiter=";")
    assert data.features == ("age, years",)
    assert data.classes == ("0", "1")


def test_one_file_per_site(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write(tmp_path / f"{name}.csv", "a,b,y\n1,2,0.5\n3,4,0.7\n")
    for source in (tmp_path, tmp_path / "*.csv"):
        data = load_data(source, target="y")
        assert data.task == "regression"
        assert partition(data, holdout=0).names == ("north", "south")


def test_a_table_of_values_as_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", GOOD)
    data = load_data({"name": "csv", "path": str(path), "target": "ill", "features": ["dose"]})
    assert data.train.x.tolist() == [[1.5], [2.5], [3.5]]


def test_whole_numbers_mean_classes_only_while_few(tmp_path: Path) -> None:
    few = csv(write(tmp_path / "few.csv", "a,y\n" + "".join(f"{i},{i % 3}\n" for i in range(30))), target="y")
    many = csv(write(tmp_path / "many.csv", "a,y\n" + "".join(f"{i},{i}\n" for i in range(30))), target="y")
    told = csv(tmp_path / "few.csv", target="y", task="regression")
    assert (few.task, many.task, told.task) == ("classes", "regression", "regression")


def test_missing_cells_are_counted_kept_dropped_or_filled(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,s,y\n1,?,p,0\n2,4,p,1\n,6,q,0\n4,8,q,1\n")
    kept = csv(path, target="y", site="s")
    assert kept.missing == {"a": 1, "b": 1}
    with pytest.raises(DataError, match="site 'p', column 'b': 1 cells are missing"):
        partition(kept, holdout=0).check()
    assert len(csv(path, target="y", site="s", missing="drop").train) == 2
    filled = csv(path, target="y", site="s", missing="mean")
    assert filled.train.x.tolist() == [[1, 4], [2, 4], [4, 6], [4, 8]]  # each from its own site
    partition(filled, holdout=0).check()


def test_parquet_equals_csv(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = write(tmp_path / "t.csv", GOOD + ",4.5,b,yes\n")
    polars.read_csv(path).write_parquet(tmp_path / "t.parquet")
    one, two = (
        csv(path, target="ill", site="site"),
        parquet(tmp_path / "t.parquet", target="ill", site="site"),
    )
    np.testing.assert_array_equal(one.train.x, two.train.x)
    assert one.train.y.tolist() == two.train.y.tolist()
    assert one.classes == two.classes
    assert one.sites is not None
    assert (one.sites == two.sites).all()


def test_many_blocks_read_like_one(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(20_000, 3))
    lines = "\n".join(",".join(map(repr, row)) for row in numbers.tolist())
    data = csv(write(tmp_path / "t.csv", f"a,b,y\n{lines}\n"), target="y")
    np.testing.assert_array_equal(data.train.x, numbers[:, :2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("age,ill\n", "no rows below its header"),
        ("age,ill\n50,1\n60,0,9\n", "line 3: 3 cells under 2 column names"),
        ("age,age,ill\n1,2,0\n", "two columns called 'age'"),
        ("age,il\n50,1\n", "no column 'ill': did you mean 'il'"),
        ("age,ill\n50,1\nSECRET,0\n", "column 'age' holds text, first in row 2"),
        ("age,ill\n50,1\n60,\n", "1 rows have no target"),
        ("ill\n1\n0\n", "no column to learn from"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        csv(write(tmp_path / "t.csv", text), target="ill")
    assert "SECRET" not in str(refused.value)


def test_bad_places_and_options(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", GOOD)
    with pytest.raises(DataError, match="no such file"):
        csv(tmp_path / "absent.csv", target="ill")
    with pytest.raises(DataError, match="nothing there matches"):
        csv(tmp_path / "x*.csv", target="ill")
    with pytest.raises(DataError, match="not UTF-8"):
        csv(write(tmp_path / "latin.csv", "é,ill\n1,0\n", "latin-1"), target="ill")
    with pytest.raises(DataError, match="no column 'sites': did you mean 'site'"):
        csv(path, target="ill", site="sites")
    with pytest.raises(ConfigError, match=r"\$\.missing"):
        csv(path, target="ill", site="site", missing="guess")
    with pytest.raises(DataError, match="Parquet"):
        parquet(path, target="ill")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_data("digit")
    with pytest.raises(ConfigError, match=r"\$\.taget: unknown key 'taget': did you mean 'target'"):
        load_data({"name": "csv", "path": str(path), "taget": "ill"})


def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "u,v,y\n1,2,0\n")
    write(tmp_path / "b.csv", "u,w,y\n1,2,0\n")
    with pytest.raises(DataError, match=r"a\.csv has a column 'v' that b\.csv lacks"):
        csv(tmp_path, target="y")


def test_a_site_without_a_value_cannot_be_filled(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,s,y\n1,,p,0\n2,4,q,1\n")
    with pytest.raises(DataError, match="site 'p' has no value in column 'b'"):
        csv(path, target="y", site="s", missing="mean")


def test_arrays_with_groups() -> None:
    data = arrays(np.eye(4), ["cat", "dog", "cat", "dog"], groups=[1, 1, 2, 2], names=list("abcd"))
    assert data.classes == ("cat", "dog")
    assert partition(data, holdout=0).names == ("1", "2")
    with pytest.raises(DataError, match="expected x"):
        arrays(np.eye(4), [1, 2, 3])


def test_infinite_cells_are_filled_like_missing_ones() -> None:
    x = np.array([[1.0], [np.inf], [3.0], [np.nan]])
    data = arrays(x, [0, 1, 0, 1], missing="mean")
    assert data.train.x[:, 0].tolist() == [1.0, 2.0, 3.0, 2.0]
