"""What comes from a federation as the values one works with: models as Updates, runs as `Run`."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...adapt.plan_table import planned
from ...core.errors import ConfigError, IntegrityError
from ...core.update import Update
from ...job import prepare
from ...run import Run
from ...wire.codec import MAGIC, decode
from ...wire.tensorfile import load_safetensors
from .. import config


@dataclass(frozen=True)
class Shape:
    """How wide rows and answers are, for a learner that sizes itself."""

    features: Any
    outputs: int


def params_of(blob: bytes) -> Update:
    """The model in a blob: a codec message's `params`, or a safetensors file.

    Raises CodecError, IntegrityError or StateError for bytes that hold none.
    """
    if not blob.startswith(MAGIC):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.safetensors")
            file.write_bytes(blob)
            return load_safetensors(file)
    found = decode(blob).arrays.get("params")
    if not isinstance(found, Update):
        raise IntegrityError("this message holds no model: expected params")
    return found


def run_of(record: Mapping[str, Any], history: Sequence[dict[str, Any]], params: Update | None) -> Run:
    """A run's record as the Run that `simulate` would have given.

    Raises ConfigError for a job with parts that are not installed here.
    """
    file = config.parse(record["table"])
    width = record.get("features")
    features = tuple(width) if isinstance(width, list) else width
    learner, example = file.job.learner, None
    if features is not None:
        shape = features if isinstance(features, tuple) else (features,)
        example = np.zeros((2, *shape), np.float32)
    if features is not None and planned(record["table"]) is None:  # a plan stays where it was sent
        learner = prepare(file.job, Shape(features, record["outputs"]))
    history = list(history)
    stopped = (record["reason"] or "stopped") if record["state"] == "stopped" else ""
    stopped = stopped or next((r["stop"] for r in reversed(history) if r.get("stop")), "")
    empty = Update.of({}) if params is None else params
    return Run(file.job, int(record["seed"]), learner, empty, history, stopped, example)


def model_file(path: Path, params: Update, run: Callable[[], Any], example: Any = None) -> Path:
    """Write a model as *.safetensors, or as *.onnx by the learner of the run it came from."""
    if path.suffix not in (".safetensors", ".onnx"):
        raise ConfigError(f"export to a .safetensors or .onnx file, not {path.name!r}")
    if path.suffix == ".safetensors":
        from ...simulate.folder import write_model

        path.parent.mkdir(parents=True, exist_ok=True)
        write_model(path, params)
        return path
    remote = run()
    whole = run_of(remote.record, [], params)
    return whole.export(path, example)


def graph_file(path: Path, blob: bytes, manifest: Mapping[str, Any], root: bytes) -> Path:
    """Write the registry's ONNX graph, once a coordinator's signature is found to cover these bytes.

    Raises ProtocolError for another signature, IntegrityError for other bytes than the signed ones.
    """
    from ...privacy.keys import open_model
    from ...simulate.folder import write

    signed = open_model(json.dumps(manifest).encode(), root, now=None)
    found = decode(blob).arrays.get("onnx")
    graph = b"" if found is None or isinstance(found, Update) else found.tobytes()
    if hashlib.sha256(graph).hexdigest() != signed["sha256"]:
        raise IntegrityError("these are not the bytes that the coordinator signed: export the model again")
    write(path, graph)
    return path
