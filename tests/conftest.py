"""What every test shares: one thread, fixed seeds, repeatable Hypothesis examples, the data folder."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy loads: test processes share the cores

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import atoll.transport  # noqa: F401  it forbids gRPC TLS 1.2, before any test imports grpc

settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The library never draws from global generators; what a test or another library draws is fixed."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  other libraries draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def atoll_data() -> Path:
    """The folder with the data sets; skips where it is not set, fails where it is set wrongly."""
    folder = os.environ.get("ATOLL_DATA")
    if not folder:
        pytest.skip("ATOLL_DATA is not set: point it at the folder with mnist/, heart_disease/, ai4i2020/")
    if not Path(folder).is_dir():
        pytest.fail(f"ATOLL_DATA is {folder!r}, which is not a folder")
    return Path(folder)
