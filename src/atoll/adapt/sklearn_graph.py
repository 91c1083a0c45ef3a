"""What a fitted scikit-learn estimator answers, computed by itself and as an ONNX graph.

Classifiers answer `label` (n,) and, where they have them, `probabilities` (n, classes), else their
`scores`; regressors `y` (n, outputs); clusters `label` and `distances` (n, clusters).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import ConfigError
from atoll.wire.graph import Answer, Node, dense, two_classes, write_graph

from .sklearn_kinds import Array

_BETWEEN = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}


def answers(model: Any, x: Any) -> dict[str, Array]:
    """The answers of a fitted estimator to rows x (n, ...)."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    if hasattr(model, "cluster_centers_"):
        return {"label": np.asarray(model.predict(flat), np.int64), "distances": model.transform(flat)}
    if not hasattr(model, "classes_"):
        return {"y": np.asarray(model.predict(flat)).reshape(len(flat), -1)}
    scored = hasattr(model, "predict_proba")
    scores = model.predict_proba(flat) if scored else model.decision_function(flat).reshape(len(flat), -1)
    return {"label": model.predict(flat), "probabilities" if scored else "scores": scores}


def export(model: Any, path: str | Path, row: tuple[int, ...]) -> None:
    """Write the graph: input "x" (rows, *row) float32.

    Raises ConfigError for an estimator whose formula is not known here, or without the onnx package.
    """
    features = int(np.prod(row))
    if features != model.n_features_in_:
        raise ConfigError(
            f"the model reads {model.n_features_in_} columns, the example has rows of shape {row}"
        )
    if hasattr(model, "cluster_centers_"):
        made = _clusters(model)
    elif hasattr(model, "theta_"):
        made = _gaussian(model)
    elif hasattr(model, "coefs_") or hasattr(model, "coef_"):
        made = _layers(model)
    else:
        raise ConfigError(
            f"how {type(model).__name__} predicts is not known here: export to a .safetensors file,"
            " or write ONNX with a tool of your own from run.learner.model(run.params)"
        )
    write_graph(path, row, *made)


Made = tuple[list[Node], dict[str, Any], list[Answer]]


def _layers(model: Any) -> Made:
    """Linear models and MLPs: their scores z, and what the last activation makes of them."""
    if hasattr(model, "coefs_"):
        layers = list(zip(model.coefs_, model.intercepts_, strict=True))
        between, last = _BETWEEN[model.activation], model.out_activation_
    else:
        weight = np.atleast_2d(model.coef_).T
        layers, between = [(weight, np.broadcast_to(np.ravel(model.intercept_), weight.shape[1:]))], ""
        last = model.loss if getattr(model, "loss", "") in ("log_loss", "modified_huber") else "identity"
    width = np.shape(layers[-1][0])[1]
    if not hasattr(model, "classes_"):
        nodes, numbers = dense(layers, between, "y")
        return nodes, numbers, [Answer("y", "float32", (width,))]
    name = "scores" if last == "identity" else "z"
    nodes, numbers = dense(layers, between, name)
    scored = Answer(name, "float32", (width,))
    label = _label(model, nodes, numbers, name, width)
    if last != "identity":
        scored = Answer("probabilities", "float32", (max(width, 2),))
        nodes += _probabilities(last, width)
        numbers |= {"zero": np.array(0.0), "one": np.array(1.0), "half": np.array(0.5)}
        numbers |= {"low": np.array(-1.0), "least": np.array(-745.0), "across": np.array([1])}
    return nodes, numbers, [label, scored]


def _probabilities(last: str, width: int) -> list[Node]:
    """From z to "probabilities", as `last` says; one against all where each class has a score of its own."""
    if last == "softmax":
        return [Node("Softmax", ("z",), "probabilities", {"axis": 1})]
    if last == "modified_huber":  # (clip(z, -1, 1) + 1) / 2 over their sum; alike where all are 0
        clipped = [
            Node("Clip", ("z", "low", "one"), "clipped"),
            Node("Add", ("clipped", "one"), "raised"),
            Node("Mul", ("raised", "half"), "p"),
        ]
        if width == 1:
            return [*clipped, *two_classes("p")]
        return [
            *clipped,
            Node("ReduceMax", ("p",), "most", {"axes": [1]}),
            Node("Equal", ("most", "zero"), "none"),
            Node("Where", ("none", "one", "p"), "some"),
            Node("ReduceSum", ("some", "across"), "sum"),
            Node("Div", ("some", "sum"), "probabilities"),
        ]
    if width == 1:
        return [Node("Sigmoid", ("z",), "p"), *two_classes("p")]
    return [  # sigmoid(z) over their sum is softmax(log sigmoid(z)); alike where all are 0 in float64
        Node("Neg", ("z",), "minus"),
        Node("Softplus", ("minus",), "soft"),
        Node("Neg", ("soft",), "log"),
        Node("ReduceMax", ("z",), "most", {"axes": [1]}),
        Node("Less", ("most", "least"), "none"),
        Node("Where", ("none", "zero", "log"), "some"),
        Node("Softmax", ("some",), "probabilities", {"axis": 1}),
    ]


def _gaussian(model: Any) -> Made:
    """log P(c) + log N(x; theta_c, var_c), from differences so that float32 keeps its digits."""
    with np.errstate(divide="ignore"):
        prior = np.log(model.class_prior_) - 0.5 * np.log(2 * np.pi * model.var_).sum(axis=1)
    nodes, numbers = _differences(model.theta_)
    numbers |= {"inverse": -0.5 / model.var_, "prior": np.maximum(prior, np.finfo(np.float32).min)}
    nodes += [
        Node("Mul", ("squares", "inverse"), "weighed"),
        Node("ReduceSum", ("weighed", "columns"), "log", {"keepdims": 0}),
        Node("Add", ("log", "prior"), "joint"),
        Node("Softmax", ("joint",), "probabilities", {"axis": 1}),
    ]
    label = _label(model, nodes, numbers, "joint", len(model.classes_))
    return nodes, numbers, [label, Answer("probabilities", "float32", (len(model.classes_),))]


def _clusters(model: Any) -> Made:
    nodes, numbers = _differences(model.cluster_centers_)
    nodes += [
        Node("ReduceSum", ("squares", "columns"), "far", {"keepdims": 0}),
        Node("Sqrt", ("far",), "distances"),
        Node("ArgMin", ("far",), "label", {"axis": 1, "keepdims": 0}),
    ]
    gives = [Answer("label", "int64"), Answer("distances", "float32", (len(model.cluster_centers_),))]
    return nodes, numbers, gives


def _differences(centres: Array) -> tuple[list[Node], dict[str, Any]]:
    """(x - c)² for every row and centre, (rows, centres, columns)."""
    nodes = [
        Node("Flatten", ("x",), "flat", {"axis": 1}),
        Node("Unsqueeze", ("flat", "middle"), "each"),
        Node("Sub", ("each", "centres"), "gaps"),
        Node("Mul", ("gaps", "gaps"), "squares"),
    ]
    return nodes, {"middle": np.array([1]), "columns": np.array([2]), "centres": centres}


def _label(model: Any, nodes: list[Node], numbers: dict[str, Any], name: str, width: int) -> Answer:
    """Adds "label": the class of the best of the scores `name`, of its sign where there is one only."""
    classes = np.asarray(model.classes_)
    text = classes.dtype.kind not in "iub"
    numbers["classes"] = classes.astype(str) if text else classes
    if width == 1:
        numbers |= {"nothing": np.array(0.0), "last": np.array([1])}
        nodes += [
            Node("Greater", (name, "nothing"), "positive"),
            Node("Cast", ("positive",), "number", {"to": 7}),  # int64
            Node("Squeeze", ("number", "last"), "place"),
        ]
    else:
        nodes.append(Node("ArgMax", (name,), "place", {"axis": 1, "keepdims": 0}))
    nodes.append(Node("Gather", ("classes", "place"), "label", {"axis": 0}))
    return Answer("label", "str" if text else "int64")
