"""Each check passes what is right and names the law that a deliberately wrong part breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from atoll.core import metrics
from atoll.core.errors import CodecError
from atoll.core.message import Contribution, FitContext
from atoll.core.metrics import AUC, Confusion, Count, Histogram, Mean, MinMax, Quantiles
from atoll.core.update import Rows, Update
from atoll.data.examples import Examples
from atoll.learn.categories import Tally
from atoll.learn.dense import mlp
from atoll.testing import check_codec, check_learner, check_metric
from atoll.wire import codec
from atoll.wire.codec import Message

Rng = np.random.Generator

OURS = {
    "mean": lambda r: Mean(r.normal(), r.integers(1, 99)),
    "count": lambda r: Count(int(r.integers(99))),
    "minmax": lambda r: MinMax(r.normal(size=r.integers(3))),
    "histogram": lambda r: Histogram([-1, 0, 1], r.normal(size=9)),
    "confusion": lambda r: Confusion(3, r.integers(0, 3, 9), r.integers(0, 3, 9)),
    "quantiles": lambda r: Quantiles(r.lognormal(0, 9, 1500)),
    "tally": lambda r: Tally(r.integers(0, 9, 20).tolist()),
    "auc": lambda r: AUC(r.integers(0, 2, 1500), r.normal(size=1500)),
}


@pytest.mark.parametrize("kind", sorted(metrics.kinds.keys() & OURS.keys()))
def test_our_metrics_pass(kind: str) -> None:
    check_metric(OURS[kind])


def test_every_metric_of_ours_is_checked() -> None:
    assert OURS.keys() == {k for k, cls in metrics.kinds.items() if cls.__module__.startswith("atoll.")}


@dataclass(frozen=True)
class Wrong:
    """Correct integer addition; each subclass breaks one thing."""

    kind: ClassVar[str]
    x: Any

    @property
    def value(self) -> Any:
        return self.x

    def merge(self, other: Any) -> Any:
        return type(self)(self.x + other.x)

    def to_plain(self) -> list[Any]:
        return [self.x]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Any:
        return cls(plain[0])


class FloatSum(Wrong):
    """Float sums depend on their order in the last bits."""


class Minus(Wrong):
    def merge(self, other: Any) -> Any:
        return type(self)(self.x - other.x)


class Forgetful(Wrong):
    @classmethod
    def from_plain(cls, plain: list[Any]) -> Any:
        return cls(0)


class Textual(Wrong):
    def to_plain(self) -> list[Any]:
        return [str(self.x)]


class Greedy(Wrong):
    def merge(self, other: Any) -> Any:
        object.__setattr__(self, "x", self.x + 1)
        return type(self)(self.x + other.x)


class Unregistered(Wrong):
    kind = "unregistered"


def integer(r: Rng) -> int:
    return int(r.integers(1, 99))


@pytest.mark.parametrize(
    ("wrong", "data", "law"),
    [
        (FloatSum, lambda r: float(r.normal()), "associative"),
        (Minus, integer, "commutative"),
        (Forgetful, integer, "from_plain"),
        (Textual, integer, "numbers|int"),
        (Greedy, integer, "commutative|not change"),
        (Unregistered, integer, "registered"),
        (Wrong, lambda r: int(np.random.SeedSequence().entropy % 1000), "same data"),  # type: ignore[operator]
    ],
)
def test_a_wrong_metric_is_caught(wrong: Any, data: Any, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong is not Unregistered:
        monkeypatch.setattr(wrong, "kind", wrong.__name__, raising=False)
        monkeypatch.setitem(metrics.kinds, wrong.__name__, wrong)
    with pytest.raises(AssertionError, match=law):
        check_metric(lambda r: wrong(data(r)))


def test_a_right_metric_of_ones_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "kind", "right", raising=False)
    monkeypatch.setitem(metrics.kinds, "right", Wrong)
    check_metric(lambda r: Wrong(integer(r)))


def test_our_codec_passes() -> None:
    check_codec()


def unsteady(message: Message) -> Iterator[bytes]:
    unsteady.calls = getattr(unsteady, "calls", 0) + 1  # type: ignore[attr-defined]
    return codec.encode(Message(message.kind, {**message.head, "n": unsteady.calls}, message.arrays))  # type: ignore[attr-defined]


def lossy(data: bytes) -> Message:
    message = codec.decode(data)
    return Message(message.kind, {}, message.arrays, message.stream)


def lenient(data: bytes) -> Message:
    """Takes the first whole message and overlooks the rest."""
    got = codec.Decoder().feed(data)
    if not got:
        raise CodecError("nothing whole")
    return got[0]


def careless(data: bytes) -> Message:
    try:
        return codec.decode(data)
    except CodecError:
        raise KeyError("oops") from None


@pytest.mark.parametrize(
    ("encode", "decode", "law"),
    [
        (unsteady, codec.decode, "same bytes"),
        (codec.encode, lossy, "invert"),
        (codec.encode, lenient, "trailing"),
        (codec.encode, careless, "not KeyError"),
    ],
)
def test_a_wrong_codec_is_caught(encode: Any, decode: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_codec(encode, decode)


@dataclass
class Line:
    """A least-squares step, right; each subclass breaks one law."""

    kept: dict[str, Any] = field(default_factory=dict)

    def init(self, rng: Rng) -> Mapping[str, Any]:
        return {"w": rng.normal(size=3), "b": np.zeros(())}

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        x, y = data
        rows = ctx.rng.permutation(len(x))[:8]
        gap = x[rows] @ params["w"] + params["b"] - y[rows]
        seen = (ctx.state or 0) + 1
        step = {"w": -0.1 * gap @ x[rows], "b": -0.1 * gap.mean()}
        return Contribution(step, len(x), {"loss": float(gap @ gap)}, state=seen)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        x, y = data
        gap = x @ params["w"] + params["b"] - y
        return {"mse": float((gap**2).mean()), "spread": Quantiles(gap)}


class Changed(Line):
    """Right answers, changed by `turn` on the way out."""

    def turn(self, c: Contribution) -> Contribution:
        return c

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        return self.turn(super().fit(params, data, ctx))


class EmptyInit(Line):
    def init(self, rng: Rng) -> Mapping[str, Any]:
        return {}


class NanInit(Line):
    def init(self, rng: Rng) -> Mapping[str, Any]:
        return {"w": np.full(3, np.nan), "b": np.zeros(())}


class RandomInit(Line):
    def init(self, rng: Rng) -> Mapping[str, Any]:
        return {"w": np.random.default_rng().normal(size=3), "b": np.zeros(())}


class ListInit(Line):
    def init(self, rng: Rng) -> Any:
        return [np.zeros(3)]


class MovesParams(Line):
    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        made = super().fit(params, data, ctx)
        params.buffer = params.buffer + 1
        return made


class MovesData(Line):
    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        data[0][0] += 1
        return super().fit(params, data, ctx)


class EvaluateMovesData(Line):
    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        data[1][:] = 0
        return super().evaluate(params, data, ctx)


class Unseeded(Changed):
    def turn(self, c: Contribution) -> Contribution:
        return Contribution({n: a + np.random.default_rng().normal() for n, a in c.update.items()}, c.weight)


class Remembers(Changed):
    """Keeps its own count beside the state, so that a repeated round differs."""

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        made = super().fit(params, data, ctx)
        n = self.kept["n"] = self.kept.get("n", 0) + (ctx.round > 0)
        return Contribution(made.update.scale(1 + n), made.weight, state=0)


class MovesState(Line):
    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        made = super().fit(params, data, FitContext(ctx.key))
        if ctx.state:
            ctx.state["n"] += 1
        return Contribution(made.update, made.weight, state={"n": 1})


class Renames(Changed):
    def turn(self, c: Contribution) -> Contribution:
        return Contribution(c.update.rename(lambda n: n + "_"), c.weight)


class NegativeWeight(Changed):
    def turn(self, c: Contribution) -> Contribution:
        c.weight = -1
        return c


class NanUpdate(Changed):
    def turn(self, c: Contribution) -> Contribution:
        return Contribution(c.update.scale(np.nan), c.weight)


class NoSteps(Changed):
    def turn(self, c: Contribution) -> Contribution:
        return Contribution(c.update, c.weight, steps=0)


class NotOne(Changed):
    def turn(self, c: Contribution) -> Any:
        return c.update


class TextMetric(Changed):
    def turn(self, c: Contribution) -> Contribution:
        return Contribution(c.update, c.weight, {"loss": "low"})


class ArrayEvaluate(Line):
    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return {"mse": np.zeros(3)}


class NumberEvaluate(Line):
    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Any:
        return 0.5


class Batch(Line):
    def fit_many(self, params: Update, datas: Any, ctxs: Any) -> list[Contribution]:
        return [self.fit(params, d, c) for d, c in zip(datas, ctxs, strict=True)]


class OneStream(Batch):
    """Uses the first client's random numbers for all."""

    def fit_many(self, params: Update, datas: Any, ctxs: Any) -> list[Contribution]:
        return super().fit_many(params, datas, [ctxs[0]] * len(ctxs))


class Short(Batch):
    def fit_many(self, params: Update, datas: Any, ctxs: Any) -> list[Contribution]:
        return super().fit_many(params, datas, ctxs)[1:]


class Weightless(Batch):
    def fit_many(self, params: Update, datas: Any, ctxs: Any) -> list[Contribution]:
        return [Contribution(c.update, 1, c.metrics) for c in super().fit_many(params, datas, ctxs)]


class Table(Line):
    """Gives its gradient as the rows it touched."""

    ids = (1, 2)

    def init(self, rng: Rng) -> Mapping[str, Any]:
        return {"table": rng.normal(size=(3, 2)), "b": np.zeros(())}

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        values = ctx.rng.normal(size=(len(self.ids), 2))
        return Contribution({"table": Rows(np.array(self.ids), values), "b": np.zeros(())}, 1)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return {}


class RowOutside(Table):
    ids = (1, 3)


class Clipped(Line):
    """Line, for data with x and y, and with gradients clipped one by one."""

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        return super().fit(params, (data.x, data.y), ctx)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Any:
        return super().evaluate(params, (data.x, data.y), ctx)

    def clipped(self, params: Update, data: Any, norm: float) -> Update:
        each = [self._gradient(params, x) for x in data.x]
        return sum((g.scale(min(1.0, norm / g.norm())) for g in each), params.zeros())

    def _gradient(self, params: Update, x: Any) -> Update:
        return params.map(lambda buffer: buffer + float(np.square(x).sum()))


class ClippedTogether(Clipped):
    """Clips a batch to twice its rows: one among others moves it by more."""

    def clipped(self, params: Update, data: Any, norm: float) -> Update:
        total = sum((self._gradient(params, x) for x in data.x), params.zeros())
        return total.scale(2 * len(data.x) * norm / max(total.norm(), 1e-12))


def rows() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)), rng.normal(size=20)


@pytest.mark.parametrize("right", [Line, Changed, Batch, Table])
def test_a_right_learner_passes(right: Any) -> None:
    check_learner(right(), rows())


def test_rows_must_be_clipped_one_by_one() -> None:
    """Also of learners of ours, with many parameters and few."""
    data = Examples(*rows())
    check_learner(Clipped(), data)
    check_learner(mlp(hidden=(4,), loss="squared", features=3, outputs=1), data)
    with pytest.raises(AssertionError, match="a row changed clipped"):
        check_learner(ClippedTogether(), data)


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (EmptyInit, "at least one array"),
        (NanInit, "init must return finite"),
        (RandomInit, "init with the same seed"),
        (ListInit, "init must return a mapping"),
        (MovesParams, "change the params"),
        (MovesData, "fit must not change the data"),
        (EvaluateMovesData, "evaluate must not change the data|same metrics twice"),
        (Unseeded, "fit with the same seed"),
        (Remembers, "equal state"),
        (MovesState, "change the state"),
        (Renames, "leaves of the params"),
        (RowOutside, "leaves of the params.*rows"),
        (NegativeWeight, "weight must be"),
        (NanUpdate, "contribution must hold finite"),
        (NoSteps, "steps"),
        (NotOne, "return a Contribution"),
        (TextMetric, "'loss' must be a number"),
        (ArrayEvaluate, "'mse' must be a number"),
        (NumberEvaluate, "evaluate must give metrics as a mapping"),
        (OneStream, "equal fit one by one"),
        (Short, "one contribution per client"),
        (Weightless, "weights and steps"),
    ],
)
def test_a_wrong_learner_is_caught(wrong: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_learner(wrong(), rows())
