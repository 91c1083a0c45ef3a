"""What we stand on tells nobody what it does: neither over the network nor in files it leaves for later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

RUN = """
import onnxruntime
from onnx import TensorProto, helper
row = ["rows", 2]
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, row) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


def left(home: Path, code: str, *before: str) -> list[str]:
    """What a process that runs a model leaves in its user's folder. It is told of no test and no build."""
    home.mkdir()
    env = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [*before, sys.executable, "-c", code],
        env={**env, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_onnx_runtime_is_silent_where_atoll_is(tmp_path: Path) -> None:
    assert left(tmp_path / "home", f"import atoll{RUN}") == []


def test_alone_it_would_not_be(tmp_path: Path) -> None:
    """The control, in a network of its own, so that it tells nobody."""
    apart = ["unshare", "--net"]
    try:
        able = subprocess.run([*apart, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("a network namespace of its own needs root and unshare")
    if not (found := left(tmp_path / "home", RUN, *apart)):
        pytest.skip("this ONNX Runtime tells nobody anyway")
    assert "deviceid" in found
