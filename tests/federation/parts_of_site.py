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
        return at.Contribution({"w": change}, weight=len(data))

    def evaluate(self, params, data, ctx):
        return {"accuracy": float((np.argmax(data.x @ params["w"], axis=1) == data.y).mean())}


@at.part("learner")
def line(features: int = 13) -> Line:
    """Least squares by single steps."""
    return Line(features)
