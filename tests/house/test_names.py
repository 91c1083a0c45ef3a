"""The public names are pinned here, and every name one can reach is documented."""

import ast
import re

import pytest

import atoll
from tests.house.sources import PACKAGE, module_name, python_files, tree

# A name added here is a promise; take one away only with a changelog fragment.
PUBLIC: list[str] = [
    "AUC",
    "Algorithm",
    "AtollError",
    "Attack",
    "Buckets",
    "CodecError",
    "CompositionError",
    "ConfigError",
    "Confusion",
    "Context",
    "Contract",
    "Contribution",
    "Count",
    "Crash",
    "DataError",
    "Dataset",
    "Examples",
    "FederatedKMeans",
    "FederatedLabelEncoder",
    "FederatedLinearRegression",
    "FederatedLogisticRegression",
    "FederatedMaxAbsScaler",
    "FederatedMinMaxScaler",
    "FederatedOneHotEncoder",
    "FederatedOrdinalEncoder",
    "FederatedPCA",
    "FederatedRidge",
    "FederatedRobustScaler",
    "FederatedSGDClassifier",
    "FederatedSGDRegressor",
    "FederatedSimpleImputer",
    "FederatedStandardScaler",
    "FitContext",
    "Gather",
    "Gone",
    "Heterogeneity",
    "Histogram",
    "IntegrityError",
    "Job",
    "Learner",
    "Mean",
    "MinMax",
    "MisuseError",
    "Partition",
    "Partitioner",
    "PeerError",
    "Pipeline",
    "Plan",
    "Policy",
    "PrivacyError",
    "ProtocolError",
    "Pull",
    "Quantiles",
    "QuorumError",
    "Refused",
    "Rows",
    "Rule",
    "Run",
    "Sites",
    "StateError",
    "Statistics",
    "Sum",
    "Transform",
    "Update",
    "World",
    "adagrad",
    "adam",
    "alone",
    "arrays",
    "average",
    "centred_clipping",
    "chain",
    "classes",
    "clip",
    "close",
    "compress",
    "connect",
    "constant",
    "cross_site",
    "cyclic",
    "deidentify",
    "dirichlet",
    "distil",
    "ditto",
    "doctor",
    "early",
    "encrypted_sum",
    "everyone",
    "exact",
    "exact_newton",
    "exponential",
    "feature_skew",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedavgm",
    "fedbn",
    "fedbuff",
    "feddyn",
    "fednova",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsgd",
    "fedyogi",
    "fine_tune",
    "fit_pipeline",
    "flat",
    "fltrust",
    "gaussian",
    "geometric_median",
    "gossip",
    "heterogeneity",
    "hierarchical",
    "iid",
    "int2",
    "int4",
    "int8",
    "krum",
    "labels",
    "level",
    "linear",
    "load_data",
    "logistic",
    "lognormal",
    "mean",
    "median",
    "mlp",
    "momentum",
    "moon",
    "multi_krum",
    "natural",
    "newton_learner",
    "nnm",
    "norm_bound",
    "nova",
    "only",
    "oriented_gradients",
    "part",
    "partition",
    "parts",
    "plain_sum",
    "plan_learner",
    "poison",
    "poisson",
    "pooled",
    "power_of_choice",
    "qfedavg",
    "quantity",
    "randomk",
    "recommended",
    "restore",
    "ring",
    "robust",
    "rotate",
    "run_client",
    "run_coordinator",
    "run_edge",
    "sample",
    "scaffold",
    "scores",
    "secure_sum",
    "serve",
    "sgd",
    "shards",
    "sign",
    "similarity",
    "simulate",
    "sklearn_learner",
    "small",
    "softmax",
    "spread",
    "standardise",
    "statistics",
    "stay",
    "thin",
    "topk",
    "torch_learner",
    "transform",
    "tree",
    "trimmed_mean",
    "uniform",
    "within",
    "yogi",
]

# Methods of the contracts: described once, where the contract is, not in each implementation.
CONTRACT = {
    *("init", "fit", "fit_many", "evaluate", "plan"),  # learner
    *("out", "back"),  # transform
    *("lift", "merge", "finish"),  # aggregator
    *("handle",),  # hub
    *("value", "to_plain", "from_plain"),  # metric
    # and scikit-learn's own
    *("predict", "predict_proba", "decision_function", "transform", "inverse_transform", "score"),
    *("fit_transform", "fit_predict", "partial_fit", "get_params", "set_params", "get_feature_names_out"),
    *("forward",),  # PyTorch's
}


def test_public_names_are_pinned() -> None:
    assert sorted(getattr(atoll, "__all__", [])) == sorted(PUBLIC)


def test_public_names_exist() -> None:
    assert [name for name in PUBLIC if not hasattr(atoll, name)] == []


def undocumented(module: ast.Module, name: str) -> list[str]:
    """Public classes, functions and methods without a docstring, and the module itself.

    A class may describe small members in its own docstring, by name in backticks.
    """
    missing = [] if ast.get_docstring(module) else [name]
    for node in module.body:
        missing += _undocumented(node, name)
    return missing


def _undocumented(node: ast.AST, name: str) -> list[str]:
    if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    if node.name.startswith("_") or _needs_none(node):
        return []
    missing = [] if ast.get_docstring(node) else [f"{name}.{node.name}"]
    if isinstance(node, ast.ClassDef):
        described = CONTRACT | set(re.findall(r"`(\w+)", ast.get_docstring(node) or ""))
        for member in node.body:
            if getattr(member, "name", "") not in described:
                missing += _undocumented(member, f"{name}.{node.name}")
    return missing


def _needs_none(node: ast.AST) -> bool:
    """Setters and overloads: the docstring stands at the property or the implementation."""
    marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
    return any(mark.endswith((".setter", "overload")) for mark in marks)


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=module_name)
def test_every_public_name_is_documented(path) -> None:
    assert undocumented(tree(path), module_name(path)) == []


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("x = 1", ["m"]),
        ('"""M."""\ndef f(): ...', ["m.f"]),
        ('"""M."""\nasync def f(): ...', ["m.f"]),
        ('"""M."""\nclass C:\n    """C."""\n    def g(self): ...', ["m.C.g"]),
        ('"""M."""\nclass C:\n    """C."""\n    def fit(self): ...\n    def _h(self): ...', []),
        ('"""M."""\nclass C:\n    """C; `g()` is its size."""\n    def g(self): ...', []),
        ('"""M."""\ndef _f(): ...', []),
    ],
)
def test_control_missing_docstrings_are_seen(code: str, missing: list[str]) -> None:
    assert undocumented(ast.parse(code), "m") == missing
