"""Doors for scikit-learn users: its estimators, fitted on the rows of many sites.

    FederatedLogisticRegression(C=1.0).fit(X, y, groups=hospital)     one label for each row
    FederatedLogisticRegression(C=1.0).fit([(X1, y1), (X2, y2)])      a list of sites
    FederatedStandardScaler().fit([X1, X2])

Without groups all rows are one site. The sites run under `simulate`; `run_` is the (last) Run.
Linear, ridge and logistic regression, PCA, scalers, encoders and imputers give what
scikit-learn gives on the pooled rows; k-means what Lloyd's algorithm gives from the same
centres; the two SGD estimators are federated averages. Fitted attributes have scikit-learn's
names. In a Pipeline pass `step__groups=...` to `fit`, or enable scikit-learn's metadata routing
and call `set_fit_request(groups=True)` on each step.

This module imports scikit-learn; `import atoll` loads it on first use only.
"""

from __future__ import annotations

from .cluster import FederatedKMeans
from .encode import (
    FederatedLabelEncoder,
    FederatedOneHotEncoder,
    FederatedOrdinalEncoder,
    FederatedSimpleImputer,
)
from .linear import FederatedLinearRegression, FederatedLogisticRegression, FederatedRidge
from .pca import FederatedPCA
from .scale import (
    FederatedMaxAbsScaler,
    FederatedMinMaxScaler,
    FederatedRobustScaler,
    FederatedStandardScaler,
)
from .sgd import FederatedSGDClassifier, FederatedSGDRegressor

__all__ = [
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
]
