"""What a process gives back: code that it does not run, and no number of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import re, sys
from pathlib import Path
import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from atoll.wire.heap import leave_code

def mapped():
    return int(re.search(r"RssFile:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def worked():
    done = Hash(SHA256())
    done.update(np.linalg.inv(np.eye(9) + np.arange(81.0).reshape(9, 9) / 99).tobytes())
    return done.finalize()

before, first = mapped(), worked()
leave_code()
between = mapped()
assert worked() == first
print(before, between, mapped())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_that_does_not_run_is_left_and_all_of_it_still_works() -> None:
    run = [sys.executable, "-c", CODE]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    before, between, after = map(int, done.stdout.split())
    assert between < before / 2
    assert between < after < 0.8 * before
