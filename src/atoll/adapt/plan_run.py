"""A plan's graphs at work: sessions of ONNX Runtime on one core, arrays in, arrays out, on time.

A step writes into arrays of ours, two of a kind in turns: the runtime would keep what lies among its own
until the last of them is gone. What a step may take is limited.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, MisuseError, StateError
from ..core.message import Pull
from ..core.update import Update
from ..wire.heap import leave_code
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
        made = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # noqa: BLE001  its errors share no base of their own
        raise StateError(f"the plan's graph does not run here: {_line(error)}") from None
    leave_code()  # loading and optimising take more of the runtime than running
    return made


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
        self.seconds, self._name, self._late, self._left = seconds, name, False, 0

    @contextmanager
    def timed(self, runs: int) -> Iterator[None]:
        """Within, so many runs have the time of so many; with the last the runtime gives back the memory that
        it keeps for more of them.
        """
        self._left = runs
        timer = threading.Timer(max(1, runs) * self.seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> None:
        self._late = self._options.terminate = True

    def values(self, arrays: Arrays) -> dict[str, Any]:
        """Those of the arrays that the graph takes, as the runtime holds them."""
        found = {}
        for name, given in arrays.items():
            if name in self.takes:
                array = np.asarray(given, order="C")
                found[name] = self._value(array)
                found[name].array = array  # it is read in place, and has to live as long
        return found

    def __call__(self, values: Arrays, into: Arrays | None = None, gives: str = "") -> dict[str, Any]:
        """What the graph gives, by name, as the runtime holds it; `into`: only these outputs, there, and what
        it `gives` beside.
        """
        self._left -= 1
        if self._left == 0:
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            if into is None:
                found = self._session.run_with_ort_values(self.gives, values, self._options)
                return dict(zip(self.gives, found, strict=True))
            bound = self._session.io_binding()
            for name, value in values.items():
                bound.bind_ortvalue_input(name, value)
            bound.bind_output(gives)
            for name, value in into.items():
                bound.bind_ortvalue_output(name, value)
            self._session.run_with_iobinding(bound, self._options)
            return {gives: bound.get_outputs()[0]}
        except Exception as error:  # noqa: BLE001
            if self._late:
                raise StateError(
                    f"the plan's {self._name} took more than {self.seconds:g} seconds a run, its limit here"
                ) from None
            raise StateError(f"the plan's {self._name} failed: {_line(error)}") from None


class _Room(NamedTuple):
    """Where a step writes: params, flat, and with the optimiser's memory as the runtime takes them."""

    flat: NDArray[np.float32]
    values: dict[str, Any]


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
        memory = self._memory()
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
        self._at: _Room | None = None  # before the first step it is where it began
        self._spare: _Room | None = None
        self.taken = 0

    def take(self, x: Any, y: Any, lr: float) -> float:
        """One step on at most `batch` rows; its mean loss."""
        self.taken += 1
        now = padded(self.plan, x, y) | {"lr": np.float32(lr), "t": np.float32(self.taken)}
        room = self._spare or self._room()
        given = {**self._moving, **self._fixed, **self.runner.values(now)}
        found = self.runner(given, {"new/" + name: value for name, value in room.values.items()}, "loss")
        self._at, self._spare = room, self._at
        self._moving |= room.values
        return float(found["loss"].numpy())

    def gradients(self, x: Any, y: Any) -> dict[str, Any]:
        """The first step's gradients, by leaf, as Adam has noted them; it is taken for that alone."""
        beta = 1 - self.plan.about.training.betas[0]
        self.take(x, y, 0.0)
        return {name: self._moving[f"{MEMORY}m/{name}"].numpy() / beta for name in self.plan.about.trained}

    def change(self) -> Update:
        """How far the params have come, float32."""
        start, now = self._start, self._at
        buffer = np.zeros(start.layout.size, np.float32) if self._spare is None else self._spare.flat
        self._spare = None  # it is the caller's now
        for name in self._changed if now is not None else ():
            part = start.layout.slices[name]
            np.subtract(now.flat[part], start[name].reshape(-1), out=buffer[part])  # type: ignore[union-attr]
        return Update(start.layout, buffer)

    def params(self) -> Update:
        """The params by now, in the order of those it began with."""
        buffer, now = self._start.buffer.astype(np.float32), self._at
        for name in self._changed if now is not None else ():
            part = self._start.layout.slices[name]
            buffer[part] = now.flat[part]  # type: ignore[union-attr]
        return Update(self._start.layout, buffer)

    def _memory(self) -> dict[str, NDArray[np.float32]]:
        return {name: np.zeros(shape, np.float32) for name, shape in self.plan.about.memory}

    def _room(self) -> _Room:
        """Zeros where nothing may change."""
        layout = self._start.layout
        flat = np.zeros(layout.size, np.float32)
        leaves = {n: flat[layout.slices[n]].reshape(layout.shapes[n]) for n in self._changed}
        return _Room(flat, self.runner.values(leaves | self._memory()))


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
