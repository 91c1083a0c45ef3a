"""Exported models answer as their source: checked by ONNX Runtime for every learner that writes one."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ConfigError, MisuseError, StateError
from atoll.core.update import Update
from atoll.data.examples import Examples
from atoll.serve.export import TOLERANCE, verify
from atoll.serve.model import Model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(5)
X = RNG.normal(size=(300, 6)).astype(np.float32)
CLASS = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int) + (X[:, 2] > 0.8)
Y = X @ RNG.normal(size=(6, 2)) + 0.1


def sites(y: Any, x: Any = X) -> Any:
    parts = np.array_split(np.arange(len(x)), 3)
    return at.Sites.of([(x[p], y[p]) for p in parts])


DENSE = {
    "linear": (at.linear(lr=0.05), Y[:, 0], {"y"}),
    "logistic": (at.logistic(lr=0.1), CLASS > 0, {"label", "probabilities"}),
    "softmax": (at.softmax(lr=0.1), CLASS, {"label", "probabilities"}),
    "mlp": (at.mlp((16, 8), lr=0.1), CLASS, {"label", "probabilities"}),
    "mlp tanh, float64": (at.mlp((5,), "tanh", lr=0.1, dtype="float64"), CLASS, {"label", "probabilities"}),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_learners_model_answers_as_the_learner(name: str, tmp_path: Path) -> None:
    learner, y, outputs = DENSE[name]
    run = at.simulate(at.Job(learner, rounds=5), sites(y.astype(int) if y.dtype == bool else y))
    path = run.export(tmp_path / "model.onnx")
    assert verify(path, run.learner, run.params, X) < TOLERANCE
    found = Model(path.read_bytes()).run(X)
    assert found.keys() == outputs
    scored = run.learner.evaluate(run.params, Examples(X, y if y.dtype.kind == "f" else y.astype(int)))
    if "label" in outputs:
        assert np.mean(found["label"] == y) == scored["accuracy"]
        np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1.0, atol=1e-5)
    else:
        assert np.mean((found["y"][:, 0] - y) ** 2) == pytest.approx(scored["mse"], rel=1e-4)


def test_images_keep_their_shape_and_wrapped_learners_write_their_inner_one(tmp_path: Path) -> None:
    run = at.simulate(at.Job(at.softmax(), at.fedprox(mu=0.1), rounds=2), sites(CLASS))
    images = X.reshape(300, 2, 3)
    model = Model(run.export(tmp_path / "m.onnx", images[:2]).read_bytes())
    assert model.row == (2, 3)
    assert verify(tmp_path / "m.onnx", run.learner, run.params, images) < TOLERANCE
    with pytest.raises(ConfigError, match="6 features"):
        run.export(tmp_path / "other.onnx", images[:2, :, :2])


def test_several_outputs(tmp_path: Path) -> None:
    learner = at.linear(6, 2)
    params = learner.init(np.random.default_rng(0)).map(lambda b: b + np.arange(len(b), dtype=np.float32))
    learner.export(params, tmp_path / "m.onnx", X)
    assert verify(tmp_path / "m.onnx", learner, params, X) < TOLERANCE
    assert Model((tmp_path / "m.onnx").read_bytes()).run(X)["y"].shape == (300, 2)


SKLEARN = (
    *("log loss, two", "log loss, three", "huber, two", "huber, three", "hinge, two", "hinge, three, text"),
    *("perceptron", "regressor", "mlp, two", "mlp, three, text", "mlp, identity", "mlp regressor"),
    *("clusters", "naive bayes"),
)


def sklearn_cases() -> dict[str, Any]:
    pytest.importorskip("sklearn")
    from sklearn import cluster, linear_model, naive_bayes, neural_network

    mlp = neural_network.MLPClassifier
    text = np.array(["no", "perhaps", "yes"])[CLASS]
    return {
        "log loss, two": (linear_model.SGDClassifier(loss="log_loss"), CLASS > 0),
        "log loss, three": (linear_model.SGDClassifier(loss="log_loss"), CLASS),
        "huber, two": (linear_model.SGDClassifier(loss="modified_huber"), CLASS > 0),
        "huber, three": (linear_model.SGDClassifier(loss="modified_huber"), CLASS),
        "hinge, two": (linear_model.SGDClassifier(), np.where(CLASS > 0, 7, -3)),
        "hinge, three, text": (linear_model.SGDClassifier(), text),
        "perceptron": (linear_model.Perceptron(), CLASS),
        "regressor": (linear_model.SGDRegressor(), Y[:, 0]),
        "mlp, two": (mlp(hidden_layer_sizes=(8,), activation="logistic"), CLASS > 0),
        "mlp, three, text": (
            mlp(hidden_layer_sizes=(8, 4), activation="tanh"),
            text,
        ),
        "mlp, identity": (
            mlp(hidden_layer_sizes=(8,), activation="identity"),
            CLASS,
        ),
        "mlp regressor": (neural_network.MLPRegressor(hidden_layer_sizes=(8,)), Y[:, 0]),
        "clusters": (cluster.MiniBatchKMeans(4, n_init=1), CLASS),
        "naive bayes": (naive_bayes.GaussianNB(), CLASS),
    }


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_scikit_learn_estimators_model_answers_as_the_estimator(
    name: str, scale: float, tmp_path: Path
) -> None:
    """Also on rows far from those it saw, where scores saturate."""
    estimator, y = sklearn_cases()[name]
    y = y.astype(int) if y.dtype == bool else y
    classes = None if y.dtype.kind == "f" or name == "clusters" else np.unique(y).tolist()
    learner = at.sklearn_learner(estimator, classes, features=6)
    rng = np.random.default_rng(0)
    params = Update.of(learner.init(rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about convergence
        for r in range(5):
            c = learner.fit(params, SimpleNamespace(x=X, y=y), fit_context(r))
            params = params + c.update
    path = tmp_path / "model.onnx"
    learner.export(params, path, X[:2])
    assert verify(path, learner, params, X * scale) < TOLERANCE
    found = Model(path.read_bytes()).run(X)
    theirs = learner.model(params).predict(X.astype(np.float64))
    if "label" in found:
        assert np.mean(found["label"] == theirs) > 0.99
        assert found["label"].dtype.kind == ("O" if y.dtype.kind == "U" else "i")
    else:
        np.testing.assert_allclose(found["y"].reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)


def fit_context(r: int) -> Any:
    from atoll.core.message import FitContext
    from atoll.core.rng import Rng

    return FitContext(Rng.of(1).at(r), r)


def test_a_run_of_a_scikit_learn_job_exports(tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    learner = at.sklearn_learner(linear_model.SGDClassifier(loss="log_loss"))
    run = at.simulate(at.Job(learner, rounds=3), sites(CLASS))
    path = run.export(tmp_path / "model.onnx")
    assert Model(path.read_bytes()).answers == ("label", "probabilities")


def test_an_estimator_whose_formula_is_not_known_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import BaseEstimator, RegressorMixin

    class Mine(RegressorMixin, BaseEstimator):
        def partial_fit(self, x: Any, y: Any) -> Mine:
            self.mean_, self.n_features_in_ = np.array([y.mean()]), x.shape[1]
            return self

        def predict(self, x: Any) -> Any:
            return np.full(len(x), self.mean_[0])

    learner = at.sklearn_learner(Mine(), averaged=("mean_",), features=6)
    params = Update.of(learner.init(np.random.default_rng(0)))
    with pytest.raises(ConfigError, match="how Mine predicts is not known here: export to a"):
        learner.export(params, tmp_path / "m.onnx", X[:2])


def test_control_a_model_that_differs_is_refused_and_not_left_there(tmp_path: Path) -> None:
    run = at.simulate(at.Job(at.softmax(), rounds=2), sites(CLASS))
    path = run.export(tmp_path / "model.onnx")
    other = run.params.scale(1.01)
    with pytest.raises(ConfigError, match="'probabilities' differs from the learner's by"):
        verify(path, run.learner, other, X)

    source = run.learner
    run.learner = SimpleNamespace(
        export=source.export, answers=lambda params, x: source.answers(params.scale(2.0), x)
    )
    with pytest.raises(ConfigError, match="differs"):
        run.export(tmp_path / "wrong.onnx", X)
    assert not (tmp_path / "wrong.onnx").exists()
    with pytest.raises(MisuseError, match="nothing to compare"):
        verify(path, object(), run.params, X)
    with pytest.raises(StateError, match="expected an ONNX model"):
        verify(tmp_path / "none.onnx", source, run.params, X)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_packages_the_error_names_the_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at.simulate(at.Job(at.softmax(), rounds=1), sites(CLASS))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'atoll-fl\[(export|edge)\]'"):
        run.export(tmp_path / "model.onnx")


# -- models of others ---------------------------------------------------------------------------


def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, nested: bool) -> bytes:
    """A model that reads its weights from a file which exists."""
    from onnx import TensorProto, helper, numpy_helper

    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(np.arange(2, dtype=np.float32).tobytes())
    stolen = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    stolen.external_data.add(key="location", value="secret.bin")
    x = helper.make_tensor_value_info("x", 1, ["rows", 2])
    y = helper.make_tensor_value_info("y", 1, ["rows", 2])
    if nested:  # inside a branch of an If
        make = helper.make_graph
        branch = make([helper.make_node("Add", ["x", "w"], ["b"])], "b", [], [value("b")], [stolen])
        flat = make([helper.make_node("Identity", ["x"], ["c"])], "c", [], [value("c")])
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=flat)]
        graph = make(nodes, "m", [x], [y], [numpy_helper.from_array(np.array(True), "yes")])
    else:
        graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "m", [x], [y], [stolen])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def value(name: str) -> Any:
    return onnx.helper.make_tensor_value_info(name, 1, ["rows", 2])


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_names_other_files_is_refused(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StateError, match="keeps numbers in other files"):
        Model(outside(tmp_path, monkeypatch, nested=nested))


def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    run = at.simulate(at.Job(at.mlp((4,)), rounds=1), sites(CLASS))
    good = run.export(tmp_path / "model.onnx").read_bytes()
    for bad in (b"", b"\x00", b"not a model", good[:-7], good[: len(good) // 2], b"\xff" * 100):
        with pytest.raises(StateError):
            Model(bad)
    luck = np.random.default_rng(0)
    for _ in range(300):
        mutant = bytearray(good)
        for at_ in luck.integers(0, len(mutant), 3):
            mutant[at_] = int(luck.integers(256))
        with suppress(StateError):
            Model(bytes(mutant))
