"""Every public name, and nothing else: what `at.` finds. Who needs a heavy library is found on first use.

It is an installed plug-in as others are: by the entry point `atoll.parts` it registers the parts of our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapt.plan import Plan
from .adapt.plan_learner import plan_learner
from .adapt.sklearn import sklearn_learner
from .adapt.torch import torch_learner
from .attack import Attack, poison
from .baselines import alone, cross_site, pooled, scores, spread
from .core.aggregate import Sum
from .core.errors import (
    AtollError,
    CodecError,
    CompositionError,
    ConfigError,
    DataError,
    Gone,
    IntegrityError,
    MisuseError,
    PeerError,
    PrivacyError,
    ProtocolError,
    QuorumError,
    Refused,
    StateError,
)
from .core.message import Contribution, FitContext, Learner, Pull
from .core.metrics import AUC, Confusion, Count, Histogram, Mean, MinMax, Quantiles
from .core.registry import part, parts
from .core.transform import Context, Transform, chain, only, transform
from .core.update import Rows, Update
from .data import (
    Dataset,
    Examples,
    Heterogeneity,
    Partitioner,
    Sites,
    arrays,
    deidentify,
    dirichlet,
    feature_skew,
    heterogeneity,
    iid,
    labels,
    load_data,
    natural,
    oriented_gradients,
    partition,
    quantity,
    shards,
    similarity,
)
from .data.contract import Contract
from .data.pipeline import Pipeline
from .job import Job, flat, tree
from .learn.algorithm import Algorithm, fedadagrad, fedadam, fedavg, fedavgm, fedsgd, fedyogi
from .learn.auto import compress
from .learn.buffered import fedasync, fedbuff
from .learn.compress import randomk, sign, topk
from .learn.cyclic import cyclic
from .learn.defend import momentum, recommended, robust
from .learn.dense import linear, logistic, mlp, softmax
from .learn.distil import distil
from .learn.ditto import ditto, fine_tune
from .learn.encrypted import encrypted_sum
from .learn.exact import close, exact
from .learn.exchange import plain_sum
from .learn.feddyn import feddyn
from .learn.fednova import fednova, nova
from .learn.fedprox import fedprox
from .learn.gossip import gossip
from .learn.hierarchical import hierarchical
from .learn.moon import moon
from .learn.newton import exact_newton, newton_learner
from .learn.personal import fedbn, fedper, fedrep, stay
from .learn.qfedavg import qfedavg
from .learn.quantise import int2, int4, int8
from .learn.ring import ring
from .learn.robust import Buckets, Gather
from .learn.rotate import rotate
from .learn.rules import (
    Rule,
    average,
    centred_clipping,
    fltrust,
    geometric_median,
    krum,
    level,
    median,
    multi_krum,
    nnm,
    norm_bound,
    trimmed_mean,
    within,
)
from .learn.scaffold import scaffold
from .learn.secure import secure_sum
from .learn.select import everyone, poisson, power_of_choice, sample
from .learn.server import adagrad, adam, mean, sgd, yogi
from .learn.small import small
from .learn.stop import early
from .learn.thin import thin
from .privacy.dp import clip, gaussian
from .run import Run, simulate
from .simulate.faults import Crash, Partition, World, constant, exponential, lognormal, uniform
from .statistics import Statistics, classes, fit_pipeline, standardise, statistics

if TYPE_CHECKING:
    from .control.engine.members import run_client, run_coordinator, run_edge
    from .control.remote.doctor import examine as doctor
    from .control.remote.sdk import connect, restore
    from .control.settings import Policy
    from .estimators import (
        FederatedKMeans,
        FederatedLabelEncoder,
        FederatedLinearRegression,
        FederatedLogisticRegression,
        FederatedMaxAbsScaler,
        FederatedMinMaxScaler,
        FederatedOneHotEncoder,
        FederatedOrdinalEncoder,
        FederatedPCA,
        FederatedRidge,
        FederatedRobustScaler,
        FederatedSGDClassifier,
        FederatedSGDRegressor,
        FederatedSimpleImputer,
        FederatedStandardScaler,
    )
    from .serve.service import serve

__all__ = [
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


def __getattr__(name: str) -> Any:
    """What is found on first use: scikit-learn's doors, services, and the way to a federation of machines."""
    if name in ("connect", "restore", "doctor", "Policy", "run_client", "run_coordinator", "run_edge"):
        from .control import settings
        from .control.engine import members
        from .control.remote import doctor, sdk

        doors: dict[str, Any] = {"connect": sdk.connect, "restore": sdk.restore, "doctor": doctor.examine}
        doors["Policy"] = settings.Policy
        return doors.get(name) or getattr(members, name)
    if name == "serve":
        from .serve.service import serve

        return serve
    if name.startswith("Federated") and name in __all__:
        from . import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'atoll' has no attribute {name!r}")
