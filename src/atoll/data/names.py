"""The public names of `atoll.data`: load data, divide them among clients, see how unlike the clients are."""

from .ai4i import ai4i2020
from .builtin import breast_cancer, diabetes, digits, wine
from .divide import Deal, Partitioner, partition
from .examples import Dataset, Examples
from .gradients import oriented_gradients
from .heart import heart_disease
from .images import fashion_mnist, mnist
from .load import load_data
from .scans import dicom
from .scrub import Report, deidentify
from .sites import Sites
from .skew import Heterogeneity, Recommendation, heterogeneity
from .splits import dirichlet, feature_skew, iid, labels, natural, quantity, shards, similarity
from .tables import arrays, csv, parquet
from .turbofan import engines

__all__ = [
    "Dataset",
    "Deal",
    "Examples",
    "Heterogeneity",
    "Partitioner",
    "Recommendation",
    "Report",
    "Sites",
    "ai4i2020",
    "arrays",
    "breast_cancer",
    "csv",
    "deidentify",
    "diabetes",
    "dicom",
    "digits",
    "dirichlet",
    "engines",
    "fashion_mnist",
    "feature_skew",
    "heart_disease",
    "heterogeneity",
    "iid",
    "labels",
    "load_data",
    "mnist",
    "natural",
    "oriented_gradients",
    "parquet",
    "partition",
    "quantity",
    "shards",
    "similarity",
    "wine",
]
