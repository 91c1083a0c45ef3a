"""A site that reports a metric of another kind than the others is left out, and the run goes on."""

import numpy as np

import atoll as at


class Odd:
    """A learner whose third site counts where the others average."""

    def init(self, rng):
        return {"w": np.zeros(2)}

    def fit(self, params, data, ctx):
        return at.Contribution({"w": np.ones(2)}, weight=len(data))

    def evaluate(self, params, data, ctx):
        return {"loss": at.MinMax(np.ones(3)) if data.x[0, 0] == 3 else 0.5}


def test_an_odd_site_is_named_and_left_out() -> None:
    rows = [(np.full((4, 2), float(k)), np.zeros(4, np.int64)) for k in range(1, 5)]
    data = at.Sites.of(rows, rows, outputs=2)
    run = at.simulate(at.Job(Odd(), rounds=2), data, seed=0)
    last = run.history[-1]
    assert set(last["sites"]) == {0, 1, 3}
    assert "kind" in last["sites_failed"][2]
