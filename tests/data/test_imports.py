"""Importing the data package stays light."""

import subprocess
import sys


def test_no_heavy_library_is_imported() -> None:
    heavy = ("sklearn", "scipy", "pandas", "polars", "pyarrow", "matplotlib", "torch")
    code = f"import sys, atoll.data; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
