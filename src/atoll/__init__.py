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
from .learn.compress import sign, topk
from .learn.cyclic import cyclic
from .learn.dense import linear, logistic, mlp, softmax
from .learn.ditto import ditto, fine_tune
from .learn.feddyn import feddyn
from .learn.fednova import fednova, nova
from .learn.fedprox import fedprox
from .learn.gossip import gossip
from .learn.moon import moon
from .learn.personal import fedbn, fedper, fedrep, stay
from .learn.qfedavg import qfedavg
from .learn.ring import ring
from .learn.scaffold import scaffold
from .learn.select import everyone, power_of_choice, sample
from .learn.server import adagrad, adam, mean, sgd, yogi
from .learn.stop import early
from .privacy.dp import clip
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
    "clip",
    "constant",
    "cross_site",
    "cyclic",
    "dirichlet",
    "ditto",
    "early",
    "everyone",
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
    "moon",
    "natural",
    "nova",
    "only",
    "part",
    "partition",
    "parts",
    "pooled",
    "power_of_choice",
    "qfedavg",
    "quantity",
    "ring",
    "run_plan",
    "sample",
    "scaffold",
    "scores",
    "sgd",
    "shards",
    "sign",
    "similarity",
    "simulate",
    "softmax",
    "spread",
    "stay",
    "topk",
    "torch_learner",
    "transform",
    "tree",
    "uniform",
    "yogi",
]
