"""A PyTorch module as federated leaves, and the working copies that run it.

Leaves are the float entries of `state_dict`, under its names and in its order. Integer entries
(BatchNorm's num_batches_tracked) are constants: every fit starts them anew, so that a fit is a
function of what it is given.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..core.errors import ConfigError, DataError, MisuseError, StateError
from ..core.update import Layout, Leaf, Update
from .torch_lean import IMAGE, NORMS, PLAIN, Knobs, Traced, infer, rewrite

# Norms that follow the statistics of a site's own features; FedBN keeps them at home.
SITE_NORMS = (*NORMS, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NO_HEAD = (*SITE_NORMS, nn.GroupNorm, nn.LayerNorm)


WARN = 1  # of PyTorch's debug mode: the deterministic way of an operation, a warning where there is none
FILLING: Any = torch.utils.deterministic


@contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread: more do not help small batches, and would change the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """One thread, and on a GPU sums in the same order every time; PyTorch warns of what has no such way."""
    with one_thread():
        if device.type != "cuda":
            yield
            return
        before = torch.get_deterministic_debug_mode(), FILLING.fill_uninitialized_memory
        try:
            torch.set_deterministic_debug_mode(max(before[0], WARN))
            FILLING.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_deterministic_debug_mode(before[0])
            FILLING.fill_uninitialized_memory = before[1]


@contextmanager
def own_draws(device: torch.device, *, on: bool = True) -> Iterator[None]:
    """What is drawn inside moves no generator of the caller's, neither the CPU's nor the GPU's."""
    with torch.random.fork_rng(devices=_gpus(device), enabled=on):
        yield


def seed_draws(device: torch.device, seed: int) -> None:
    """Let every generator that a module on `device` may draw from begin at `seed`."""
    torch.default_generator.manual_seed(seed)
    for gpu in _gpus(device):
        torch.cuda.default_generators[gpu].manual_seed(seed)


def _gpus(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


class Net:
    """A module's structure: `layout` of its leaves and a pool of working copies."""

    def __init__(self, module: Any, dtype: str, device: str, weights: str | Path | None, bn: str) -> None:
        self.make: Callable[[], Any] | None = None if isinstance(module, nn.Module) else module
        self.dtype, self.bn = getattr(torch, dtype), bn
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "device='cuda' needs a GPU and a CUDA build of torch, and there is none: use 'cpu'"
            )
        if self.device.type == "cuda":  # read when cuBLAS starts; without it, it may add in any order
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.module = module if isinstance(module, nn.Module) else self._build(0)
        self.module = copy.deepcopy(self.module).to("cpu", self.dtype)
        floats = _floats(self.module)
        if not floats:
            raise ConfigError("the module has no float leaves: there is nothing to train")
        self.layout = Layout(tuple(Leaf(name, tuple(t.shape)) for name, t in floats.items()))
        self.weights = None if weights is None else _pretrained(weights, self.layout)
        self.traced = Traced(copy.deepcopy(self.module).train())
        moving, still = self.traced.graph, Traced(copy.deepcopy(self.module).eval()).graph
        self.graphs = None if moving is None or still is None else (moving, still)
        self.verdicts: dict[Any, bool] = {}  # by loss: does the stacked engine agree with the loop?
        self._idle: dict[bool, deque[Work]] = {False: deque(), True: deque()}

    @property
    def numpy_dtype(self) -> Any:
        """The numbers' type for numpy."""
        return np.float64 if self.dtype is torch.float64 else np.float32

    @property
    def convolves(self) -> bool:
        """Whether any layer is a convolution."""
        return any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in self.module.modules())

    @property
    def apart(self) -> bool:
        """Whether clients may run in threads: all its randomness is ours, nothing else is shared."""
        return self.traced.known((*PLAIN, *IMAGE, *NORMS))

    def _build(self, seed: int) -> nn.Module:
        with own_draws(self.device):
            seed_draws(self.device, seed)
            module = self.make() if self.make else None
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise ConfigError(f"module must be an nn.Module or a function giving one, it returned {kind}")
        return module

    def init(self, rng: np.random.Generator) -> Update:
        """First values: pretrained, else the given instance's own, else drawn under `rng`."""
        seed = int(rng.integers(1 << 63))
        if self.weights is not None:
            return Update.of({name: self.weights[name] for name in self.layout.slices})
        module = self.module if self.make is None else self._build(seed).to("cpu", self.dtype)
        return Update.of({name: t.detach().numpy() for name, t in _floats(module).items()})

    def loaded(self, params: Mapping[str, Any]) -> nn.Module:
        """A fresh copy of the module, as it is, with these values."""
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, leaf in _floats(module).items():
                _write(leaf, params[name])
        return module

    def check(self, params: Mapping[str, Any]) -> Update:
        """`params` as an Update. Raises MisuseError where leaves differ from the module's."""
        params = Update.of(params)
        mine, theirs = self.layout.shapes, params.layout.shapes
        if mine != theirs:
            odd = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n))
            have, got = mine.get(odd, "none"), theirs.get(odd, "none")
            raise MisuseError(f"params do not fit the module at leaf {odd!r}: it has {have}, got {got}")
        return params

    @contextmanager
    def borrow(self, *, plain: bool) -> Iterator[Work]:
        """A working copy for this thread, rewritten or plain, given back at the end."""
        try:
            work = self._idle[plain].pop()
        except IndexError:
            work = Work(self, plain=plain)
        try:
            yield work
        finally:
            self._idle[plain].append(work)

    def norm_leaves(self) -> frozenset[str]:
        """Names of the leaves that belong to layers normalising by a site's own statistics."""
        owners = {name for name, m in self.module.named_modules() if isinstance(m, SITE_NORMS)}
        return frozenset(n for n in self.layout.slices if n.rpartition(".")[0] in owners)

    def head_leaves(self) -> frozenset[str]:
        """Names of the leaves of the last layer that has parameters and is no norm."""
        layers = [(n, m) for n, m in self.module.named_modules() if [*m.parameters(recurse=False)]]
        last = [n for n, m in layers if not isinstance(m, NO_HEAD)][-1]
        return frozenset(n for n in self.layout.slices if n.rpartition(".")[0] == last)


class Work:
    """A copy of the module, weights in place; `lean` trains it (None: `module`), `infer` asks it."""

    def __init__(self, net: Net, *, plain: bool) -> None:
        self.net = net
        self.module = copy.deepcopy(net.module).to(net.device).train()
        self.parameters = dict(self.module.named_parameters())
        self.asks = {name: p.requires_grad for name, p in self.parameters.items()}
        self.knobs = Knobs(net.device)
        graphs = None if plain else net.graphs
        lean = rewrite(self.module, graphs[0], self.knobs) if graphs else None
        self.lean = lean[0] if lean else None
        fused = [f"{name}.{part}" for name in (lean[1] if lean else ()) for part in ("weight", "bias")]
        self.fused = {name for name in fused if name in self.parameters}
        self.apart = net.apart and self.lean is not None  # draws from its own generator alone
        self.channels_last = self.lean is not None and any(
            type(m) is nn.Conv2d for m in self.module.modules()
        )
        if self.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.infer = infer(self.module, graphs[1]) if graphs else self.module
        self.norms = [m for m in self.module.modules() if isinstance(m, NORMS)]
        for norm in self.norms:
            norm.register_forward_pre_hook(_lonely)
            norm.register_forward_hook(_again)
        self.floats = _floats(self.module)
        self.counters = {n: t.clone() for n, t in self.module.named_buffers() if not t.is_floating_point()}
        self._out: dict[Any, Tensor] = {}

    def load(self, params: Update) -> None:
        """Put `params` into the module and start its counters anew."""
        with torch.no_grad():
            for name, leaf in self.floats.items():
                _write(leaf, params[name])
            for name, start in self.counters.items():
                self.module.get_buffer(name).copy_(start)

    def read(self, dtype: Any) -> np.ndarray[Any, Any]:
        """The leaves' present values, in the layout's order: (size,)."""
        buffer = np.empty(self.net.layout.size, dtype)
        for name, leaf in self.floats.items():
            buffer[self.net.layout.slices[name]].reshape(leaf.shape)[...] = leaf.detach().cpu().numpy()
        return buffer

    def training(self, *, on: bool) -> None:
        """Training or evaluation mode; frozen norms stay in evaluation mode."""
        self.module.train(on)
        if on and self.net.bn == "frozen":
            for norm in self.norms:
                norm.eval()

    def batch(self, x: Tensor) -> Tensor:
        """A batch in the memory order this copy works in."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def output(self, x: np.ndarray[Any, Any]) -> Tensor:
        """What the module gives for a row of `x`: (1, ...). Raises DataError where it takes no such rows."""
        key = (x.shape[1:], x.dtype)
        if key not in self._out:
            self.training(on=False)
            try:
                with torch.no_grad():
                    self._out[key] = self.infer(self.batch(torch.tensor(x[:1], device=self.net.device)))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError, ValueError) as error:
                why = str(error).splitlines()[0]
                raise DataError(f"the module takes no rows of shape {key[0]}, {key[1]}: {why}") from None
        return self._out[key]


def _lonely(norm: Any, inputs: tuple[Any, ...]) -> None:
    """One value per channel has no variance: such a batch is normalised by the running statistics."""
    norm.lonely = norm.training and inputs[0].numel() == inputs[0].shape[1]
    if norm.lonely:
        norm.training = False


def _again(norm: Any, _inputs: Any, _output: Any) -> None:
    if norm.lonely:
        norm.training = True


def _floats(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    for name, leaf in state.items():
        if not isinstance(leaf, Tensor) or leaf.is_complex():
            raise ConfigError(f"leaf {name!r} of the module is no real tensor: federated leaves are")
        if is_lazy(leaf):
            raise ConfigError(f"leaf {name!r} has no shape yet: run the lazy module once on an example first")
    return {name: leaf for name, leaf in state.items() if leaf.is_floating_point()}


def _write(leaf: Tensor, values: np.ndarray[Any, Any]) -> None:
    if leaf.device.type == "cpu":
        np.copyto(leaf.detach().numpy(), values, casting="same_kind")
    else:
        leaf.copy_(torch.from_numpy(np.array(values)))


def _pretrained(path: str | Path, layout: Layout) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path} is no readable safetensors file: {error}") from None
    for name, shape in layout.leaves:
        if name not in found:
            raise StateError(f"{path} has no leaf {name!r}; the module needs {', '.join(layout.slices)}")
        if tuple(found[name].shape) != shape:
            found_shape = tuple(found[name].shape)
            raise StateError(f"{path}: leaf {name!r} has shape {found_shape}, the module needs {shape}")
        if not bool(torch.isfinite(found[name]).all()):
            raise StateError(f"{path}: leaf {name!r} holds NaN or infinite values")
    extra = sorted(n for n, t in found.items() if n not in layout.slices and t.is_floating_point())
    if extra:
        raise StateError(f"{path} has leaves the module lacks: {', '.join(extra)}")
    kinds = {
        name: torch.float64 if found[name].dtype is torch.float64 else torch.float32 for name in layout.slices
    }
    return {name: found[name].to(kind).numpy() for name, kind in kinds.items()}
