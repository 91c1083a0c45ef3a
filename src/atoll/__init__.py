"""Atoll: federated learning at the edge. `import atoll as at`.

Every public name, and nothing else. What needs a heavy library is found on first use.
"""

from __future__ import annotations

from .adapt.onnx import Plan, run_plan
from .adapt.torch import torch_learner
from .baselines import alone, cross_site, pooled, scores, spread
from .core.aggregate import Buckets, Gather, Sum
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
    dirichlet,
    feature_skew,
    heterogeneity,
    iid,
    labels,
    load_data,
    natural,
    partition,
    quantity,
    shards,
    similarity,
)
from .job import Job, flat, tree
from .learn.algorithm import Algorithm, fedadagrad, fedadam, fedavg, fedavgm, fedsgd, fedyogi
from .learn.buffered import fedasync, fedbuff
from .learn.dense import linear, logistic, mlp, softmax
from .learn.gossip import gossip
from .learn.select import everyone, power_of_choice, sample
from .learn.server import adagrad, adam, mean, sgd, yogi
from .learn.stop import early
from .run import Run, simulate
from .simulate.faults import Crash, Partition, World, constant, exponential, lognormal, uniform

__all__ = [
    "AUC",
    "Algorithm",
    "AtollError",
    "Buckets",
    "CodecError",
    "CompositionError",
    "ConfigError",
    "Confusion",
    "Context",
    "Contribution",
    "Count",
    "Crash",
    "DataError",
    "Dataset",
    "Examples",
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
    "Plan",
    "PrivacyError",
    "ProtocolError",
    "Pull",
    "Quantiles",
    "QuorumError",
    "Refused",
    "Rows",
    "Run",
    "Sites",
    "StateError",
    "Sum",
    "Transform",
    "Update",
    "World",
    "adagrad",
    "adam",
    "alone",
    "chain",
    "constant",
    "cross_site",
    "dirichlet",
    "early",
    "everyone",
    "exponential",
    "feature_skew",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedavgm",
    "fedbuff",
    "fedsgd",
    "fedyogi",
    "flat",
    "gossip",
    "heterogeneity",
    "iid",
    "labels",
    "linear",
    "load_data",
    "logistic",
    "lognormal",
    "mean",
    "mlp",
    "natural",
    "only",
    "part",
    "partition",
    "parts",
    "pooled",
    "power_of_choice",
    "quantity",
    "run_plan",
    "sample",
    "scores",
    "sgd",
    "shards",
    "similarity",
    "simulate",
    "softmax",
    "spread",
    "torch_learner",
    "transform",
    "tree",
    "uniform",
    "yogi",
]
