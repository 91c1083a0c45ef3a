"""A learner of a site's own, as `--parts` takes it; at a site whose environment says so it has a bug."""

import os

import numpy as np

import atoll as at


class Line:
    def __init__(self, features):
        self.features = features

    def init(self, rng):
        return {"w": np.zeros((self.features, 3))}

    def fit(self, params, data, ctx):
        if os.environ.get("FAULTY") == "raises":
            raise ZeroDivisionError("the scale of column 3 is 0")
        if os.environ.get("FAULTY") == "dies":
            os.kill(os.getpid(), 9)  # as the system does to whoever takes all its memory
        if os.environ.get("FAULTY") == "nan":
            return at.Contribution({"w": np.full((self.features, 3), np.nan)}, weight=len(data))
        change = data.x.T @ (np.eye(3)[data.y] - data.x @ params["w"]) / len(data) / 1e6
        if os.environ.get("FAULTY") == "lies":
            change = -change
        return at.Contribution({"w": change}, weight=len(data))

    def evaluate(self, params, data, ctx):
        return {"accuracy": float((np.argmax(data.x @ params["w"], axis=1) == data.y).mean())}


@at.part("learner")
def line(features: int = 13) -> Line:
    """Least squares by single steps."""
    return Line(features)


def mark(client: int) -> np.ndarray:
    """The update that client `client` of a `marked` learner always gives: (64,) float32, between -1 and 1."""
    return np.random.default_rng(client).uniform(-1, 1, 64).astype(np.float32)


class Marked:
    def init(self, rng):
        return {"w": np.zeros(64, np.float32)}

    def fit(self, params, data, ctx):
        return at.Contribution({"w": mark(ctx.client)}, weight=1.0)

    def evaluate(self, params, data, ctx):
        return {"mean": float(params["w"].mean())}


@at.part("learner")
def marked() -> Marked:
    """Gives a known update, to look for it where it should not be."""
    return Marked()
