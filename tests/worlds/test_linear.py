"""Two parties fit one linear regression; the world may lose, repeat and reorder what they say."""

import numpy as np
import pytest

from atoll.core.errors import DataError, Gone
from atoll.core.rng import Rng
from atoll.simulate.faults import World, constant, exponential, uniform
from atoll.simulate.world import Simulation
from atoll.vertical.linear import guest, host

RNG = np.random.default_rng(4)
N = 120
XG = RNG.normal(size=(N, 4))
XH = np.column_stack([XG[:, :2] + 0.3 * RNG.normal(size=(N, 2)), RNG.normal(size=(N, 3)) * [1.0, 20.0, 0.05]])
Y = XG @ [1.0, -2.0, 0.5, 0.0] + XH @ [2.0, 0.0, 1.0, 0.1, -3.0] + 0.7 + 0.1 * RNG.normal(size=N)


def meet(world, seed=0, xg=XG, xh=XH, y=Y, **values):
    """Both roles to their end: (guest's Fit, host's coefficients, virtual seconds)."""
    sim = Simulation(world, Rng.of(seed))
    sim.add("bank", main=lambda p: guest(p, xg, y, "shop", **values))
    sim.add("shop", main=lambda p: host(p, xh, "bank"))
    return sim.run("bank"), sim.run("shop"), sim.now


def test_the_coefficients_are_those_of_pooled_least_squares():
    fit, w, _ = meet(World())
    pooled = np.linalg.lstsq(np.column_stack([np.ones(N), XG, XH]), Y, rcond=None)[0]
    np.testing.assert_allclose([fit.intercept, *fit.w, *w], pooled, rtol=0, atol=1e-6)
    assert fit.steps < 4 * 10


TROUBLE = {
    "reordered": World(delay=uniform(0, 3)),
    "lost": World(delay=constant(0.1), loss=0.5, resend=0.5),
    "repeated": World(delay=uniform(0, 3), repeat=0.5),
    "all": World(delay=exponential(1.0), loss=0.3, repeat=0.3),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("trouble", TROUBLE)
def test_the_net_changes_no_byte(trouble, seed):
    calm, calm_w, _ = meet(World())
    fit, w, seconds = meet(TROUBLE[trouble], seed)
    assert (fit.w.tobytes(), fit.intercept, fit.steps) == (calm.w.tobytes(), calm.intercept, calm.steps)
    assert w.tobytes() == calm_w.tobytes()
    assert seconds > 0


def test_it_stops_after_the_steps_it_was_given():
    fit, _, _ = meet(World(), steps=2)
    assert fit.steps == 2


def test_labels_of_zero_need_no_step():
    fit, w, _ = meet(World(), y=np.zeros(N))
    assert fit.steps == 0
    assert not fit.w.any()
    assert not w.any()


def test_parties_whose_rows_differ_are_told_so():
    with pytest.raises(Gone, match="shop stopped: the guest has 120 rows and the host 119: align them first"):
        meet(World(), xh=XH[1:])


@pytest.mark.parametrize("wrong", [{"y": Y[1:]}, {"xg": XG[:, 0]}, {"xg": np.full((N, 2), np.nan)}])
def test_wrong_tables_are_refused_without_naming_a_value(wrong):
    with pytest.raises(DataError, match="got shape"):
        meet(World(), **wrong)
