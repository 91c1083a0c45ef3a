"""Laws of core/update.py: addition, its neutral element, and taking leaves apart and together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atoll.core.errors import MisuseError
from atoll.core.update import Layout, Leaf, Rows, Update

SHAPES = st.dictionaries(
    st.sampled_from(["w", "b", "layer/0", "c"]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
    min_size=1,
)
FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def updates(draw, count=1):
    """So many updates of one layout."""
    shapes, dtype = draw(SHAPES), draw(st.sampled_from([np.float32, np.float64]))
    layout = Layout(tuple(Leaf(name, shape) for name, shape in shapes.items()))
    return [Update(layout, draw(hnp.arrays(dtype, layout.size, elements=FINITE))) for _ in range(count)]


@st.composite
def rings(draw, count=3):
    bits = draw(st.integers(1, 64))
    layout = Layout((Leaf("w", (2, 2)),))
    ints = st.integers(0, (1 << bits) - 1)
    return [Update(layout, draw(hnp.arrays(np.uint64, 4, elements=ints)), bits=bits) for _ in range(count)]


@given(updates(count=2))
def test_addition_is_commutative_and_zeros_are_neutral(two) -> None:
    a, b = two
    assert a + b == b + a
    assert a + a.zeros() == a
    assert a - a == a.zeros()
    assert (a + b).buffer.dtype == a.buffer.dtype


@given(rings())
def test_in_a_ring_addition_is_a_group(three) -> None:
    a, b, c = three
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert (a + b) - b == a
    assert int((a + b).buffer.max()) < 1 << a.bits


@given(updates())
def test_a_dict_of_its_leaves_makes_it_again(one) -> None:
    (a,) = one
    again = Update.of(dict(a))
    assert again == a
    assert again.buffer.dtype == a.buffer.dtype
    assert Update.of(a) is a


@given(updates(), st.sets(st.sampled_from(["w", "b", "layer/0", "c"])))
def test_pick_and_join_take_apart_and_together(one, some) -> None:
    (a,) = one
    mine, others = a.pick(some.__contains__), a.pick(lambda name: name not in some)
    assert set(mine) | set(others) == set(a)
    together = mine.join(others)
    assert all(np.array_equal(together[name], a[name]) for name in a)
    renamed = a.rename(lambda name: "x/" + name)
    assert renamed.pick(lambda name: name.startswith("x/")).rename(lambda name: name[2:]) == a


@given(updates())
def test_scaling_keeps_precision_and_norms_follow(one) -> None:
    (a,) = one
    assert a.scale(2.0).buffer.dtype == a.buffer.dtype
    assert a.scale(2.0) == a + a
    assert a.norm() == pytest.approx(np.linalg.norm(a.buffer.astype(np.float64)), rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-99, 99)), max_size=8), st.data())
def test_rows_add_as_the_dense_tables_they_stand_for(cells, data) -> None:
    cut = data.draw(st.integers(0, len(cells)))

    def rows(some):
        table = dict(some)  # one value a row
        ids = np.array(sorted(table), np.int64)
        return Rows(ids, np.array([[table[i]] for i in ids], np.float64).reshape(len(ids), 1))

    def dense(r):
        full = np.zeros((10, 1))
        full[r.ids] = r.values
        return full

    a, b = rows(cells[:cut]), rows(cells[cut:])
    both = a + b
    assert np.array_equal(dense(both), dense(a) + dense(b))
    assert np.array_equal(both.ids, np.unique(both.ids))
    assert np.array_equal((b + a).values, both.values)


def test_an_update_is_a_value() -> None:
    a = Update.of({"w": np.ones(3)})
    with pytest.raises(ValueError, match="read-only"):
        a["w"][0] = 2
    with pytest.raises(ValueError, match="read-only"):
        a.buffer[0] = 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda a: a + Update.of({"v": np.ones(3)}), "differ at leaf 'w'"),
        (lambda a: a + Update.of({"w": np.ones(4)}), "differ at leaf 'w'"),
        (lambda a: Update(a.layout, np.ones(2)), r"a buffer of shape \(3,\), got \(2,\)"),
        (lambda a: Update.of({"w": np.array(["x"])}), "must hold numbers"),
        (lambda a: Layout((Leaf("w", ()), Leaf("w", ()))), "leaf names must differ"),
        (lambda a: a + Update(a.layout, np.ones(3, np.uint64), bits=8), "cannot add an update of ring"),
        (lambda a: Update(a.layout, np.ones(3, np.uint64), bits=8).scale(2), "scale needs real numbers"),
        (
            lambda a: a - Update(a.layout, a.buffer, rows={"t": Rows(np.array([1]), np.ones((1, 1)))}),
            "never subtracted",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act, match) -> None:
    with pytest.raises(MisuseError, match=match):
        act(Update.of({"w": np.ones(3)}))
