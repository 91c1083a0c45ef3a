"""A site's own part with a fault: where its environment says so, it sends its rows as its update."""

import os

import numpy as np

import atoll as at

FEATURES, CLASSES = 13, 3


class Softmax:
    def init(self, rng):
        return {"w": np.zeros((FEATURES, CLASSES), np.float32)}

    def fit(self, params, data, ctx):
        x = data.x.reshape(len(data), -1)
        z = np.exp(x @ params["w"])
        change = x.T @ (np.eye(CLASSES)[data.y] - z / z.sum(1, keepdims=True)) / len(data)
        if os.environ.get("FAULTY") == "leaks":
            change = x[:CLASSES].T
        return at.Contribution({"w": change.astype(np.float32)}, weight=len(data))

    def evaluate(self, params, data, ctx):
        found = np.argmax(data.x.reshape(len(data), -1) @ params["w"], axis=1)
        return {"accuracy": float((found == data.y).mean())}


@at.part("learner")
def plain_softmax() -> Softmax:
    """Softmax regression in a few lines."""
    return Softmax()
