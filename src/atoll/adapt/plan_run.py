"""A plan's graphs at work: sessions of ONNX Runtime on one core, arrays in, arrays out, on time.

Params stay in the runtime's own arrays from one step to the next; what a step may take is limited.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, MisuseError, StateError
from ..core.message import Pull
from ..core.update import Update
from .plan import MEMORY, Plan

Arrays = Mapping[str, Any]


@lru_cache(maxsize=8)
def session(graph: bytes) -> Any:
    """The graph, ready to run. Raises ConfigError without ONNX Runtime, StateError where it cannot run it."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise ConfigError("following a plan needs ONNX Runtime: pip install 'atoll-fl[edge]'") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.strict_shape_type_inference", "1")  # its shapes are as it says
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # noqa: BLE001  its errors share no base of their own
        raise StateError(f"the plan's graph does not run here: {_line(error)}") from None


class Runner:
    """One graph of a plan, run again and again. `seconds`: what a run may take, on average.

    Raises StateError where a run fails or takes longer.
    """

    def __init__(self, plan: Plan, name: str, seconds: float) -> None:
        import onnxruntime as ort

        self._session = session(plan.graphs[name])
        self._value = ort.OrtValue.ortvalue_from_numpy
        self._options = ort.RunOptions()
        self.gives = [output.name for output in self._session.get_outputs()]
        self.takes = {i.name: i.shape for i in self._session.get_inputs()}
        self.seconds, self._name, self._late = seconds, name, False

    @contextmanager
    def timed(self, runs: int) -> Iterator[None]:
        """Within, so many runs have the time of so many."""
        timer = threading.Timer(max(1, runs) * self.seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> None:
        self._late = self._options.terminate = True

    def last(self) -> None:
        """Have the next run give back what the runtime keeps of memory for more of them."""
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def values(self, arrays: Arrays) -> dict[str, Any]:
        """Those of the arrays that the graph takes, as the runtime holds them."""
        found = {}
        for name, given in arrays.items():
            if name in self.takes:
                array = np.asarray(given, order="C")
                found[name] = self._value(array)
                found[name].array = array  # it is read in place, and has to live as long
        return found

    def __call__(self, values: Arrays) -> dict[str, Any]:
        """What the graph gives, by name, as the runtime holds it."""
        try:
            found = self._session.run_with_ort_values(self.gives, values, self._options)
        except Exception as error:  # noqa: BLE001
            if self._late:
                raise StateError(
                    f"the plan's {self._name} took more than {self.seconds:g} seconds a run, its limit here"
                ) from None
            raise StateError(f"the plan's {self._name} failed: {_line(error)}") from None
        return dict(zip(self.gives, found, strict=True))


class Steps:
    """Training from `params`, one step after the other; `params()` is where it stands.

    `moves`: which leaves may change, `pull`: extra terms of the objective; see core.message.FitContext.
    """

    def __init__(
        self,
        plan: Plan,
        params: Update,
        seconds: float,
        pull: Pull | None = None,
        moves: Callable[[str], bool] | None = None,
    ) -> None:
        if pull is not None and "pulled" not in plan.graphs:
            raise MisuseError("this plan was exported without the terms that pull local training")
        about = plan.about
        self.plan, self._start = plan, params
        self.runner = Runner(plan, "step" if pull is None else "pulled", seconds)
        may = {name: moves is None or moves(name) for name in about.moving}
        self._changed = [name for name in about.moving if may[name]]
        memory = {name: np.zeros(shape, np.float32) for name, shape in about.memory}
        fixed = {"moves": np.array([may[name] for name in about.trained], np.float32)}
        if pull is not None:
            anchor, slope = pull.anchor or params, pull.slope or params.zeros()
            fixed["mu"] = np.array(pull.mu, np.float32)
            for name in about.trained:
                fixed["anchor/" + name] = np.asarray(anchor[name], np.float32)
                fixed["slope/" + name] = np.asarray(slope[name], np.float32)
        self._fixed = self.runner.values(fixed)
        self._moving = self.runner.values(
            {name: np.asarray(params[name], np.float32) for name in params} | memory
        )
        self._next = [*self._changed, *memory]
        self.taken = 0

    def take(self, x: Any, y: Any, lr: float) -> float:
        """One step on at most `batch` rows; its mean loss."""
        self.taken += 1
        now = padded(self.plan, x, y) | {"lr": np.float32(lr), "t": np.float32(self.taken)}
        found = self.runner({**self._moving, **self._fixed, **self.runner.values(now)})
        for name in self._next:
            self._moving[name] = found["new/" + name]
        return float(found["loss"].numpy())

    def gradients(self, x: Any, y: Any) -> dict[str, Any]:
        """The first step's gradients, by leaf, as Adam has noted them; it is taken for that alone."""
        beta = 1 - self.plan.about.training.betas[0]
        self.take(x, y, 0.0)
        return {name: self._moving[f"{MEMORY}m/{name}"].numpy() / beta for name in self.plan.about.trained}

    def change(self) -> Update:
        """How far the params have come, float32."""
        buffer = np.zeros(self._start.layout.size, np.float32)
        for name in self._changed:
            part = buffer[self._start.layout.slices[name]]
            np.subtract(_seen(self._moving[name]), self._start[name].reshape(-1), out=part)
        return Update(self._start.layout, buffer)

    def params(self) -> Update:
        """The params by now, in the order of those it began with."""
        buffer = self._start.buffer.astype(np.float32)
        for name in self._changed:
            buffer[self._start.layout.slices[name]] = _seen(self._moving[name])
        return Update(self._start.layout, buffer)


def _seen(value: Any) -> NDArray[np.float32]:
    """The numbers of a tensor, read where they lie: `numpy()` would copy the largest once more."""
    room = (ctypes.c_float * math.prod(value.shape())).from_address(value.data_ptr())
    return np.ctypeslib.as_array(room)


def padded(plan: Plan, x: Any, y: Any, batch: int | None = None) -> dict[str, Any]:
    """Rows as a graph takes them: the last one repeated up to its batch, and a mask of 1 for real ones."""
    about = plan.about
    size = batch or about.batch
    if x.shape[1:] != about.row or not 1 <= len(x) <= size or len(x) != len(y):
        raise DataError(
            f"a step takes 1 to {size} rows of shape {about.row}, got {x.shape} and {len(y)} labels"
        )
    mask = (np.arange(size) < len(x)).astype(np.float32)
    if len(x) < size:
        fill = np.minimum(np.arange(size), len(x) - 1)
        x, y = x[fill], y[fill]
    return {"x": x, "y": y, "mask": mask}


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
