"""The PyTorch learner against loops over torch.optim, and its engines against each other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from atoll.adapt.torch import torch_learner
from atoll.core.errors import ConfigError, DataError, MisuseError, StateError
from atoll.core.message import Contribution, FitContext, Pull
from atoll.core.rng import Rng, shuffles
from atoll.core.update import Update

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


@dataclass
class Data:
    x: Any
    y: Any

    def __len__(self) -> int:
        return len(self.x)


class Mlp(nn.Module):
    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Any) -> Any:
        return self.two(torch.tanh(self.one(x)))


class Cnn(nn.Module):
    """A net as people write it: functions between layers, `view`, functional pooling and dropout."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        self.c1, self.c2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.f1, self.f2 = nn.Linear(8 * 49, 256), nn.Linear(256, 3)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        x = F.relu(self.f1(x.view(x.size(0), -1)))
        return self.f2(F.dropout(x, self.drop, training=self.training) if self.drop else x)


def table(n: int, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    return Data(rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n))


def images(n: int, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    return Data(rng.normal(size=(n, 1, 28, 28)).astype(np.float32), rng.integers(0, 3, n))


def context(client: int = 0, **more: Any) -> FitContext:
    return FitContext(Rng.of(5).at("client", client), client=client, **more)


def start(learner: Any) -> Update:
    return learner.init(np.random.default_rng(1))


def reference(
    module: Any, params: Update, data: Data, make: Any, *, epochs: int = 2, size: int = 5,
    clip: float | None = None, factor: Any = None, client: int = 0, loss: Any = F.cross_entropy,
    term: Any = None,
) -> Update:  # fmt: skip
    """The plain loop: torch.optim, the same order of rows, nothing else of ours."""
    module.load_state_dict({k: torch.tensor(v) for k, v in params.items()}, strict=False)
    module.train()
    optimizer = make(module.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if factor else None
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    for order in shuffles(np.array([context(client).key.key], np.uint64), epochs, len(data))[0]:
        for i in range(0, len(data), size):
            rows = torch.tensor(order[i : i + size])
            optimizer.zero_grad()
            value = loss(module(x[rows]), y[rows])
            (value if term is None else value + term(module)).backward()
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            if schedule:
                schedule.step()
    state = {k: v.numpy() for k, v in module.state_dict().items()}
    return Update.of({k: state[k] - params[k] for k in params})


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    a, b = (v.update if isinstance(v, Contribution) else v for v in (a, b))
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)
    assert max(np.abs(a[name]).max() for name in a) > 1e-3, "nothing moved: the comparison says nothing"


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMISERS = {
    "sgd": ({}, lambda p: SGD(p, 0.1)),
    "decay": ({"weight_decay": 0.1}, lambda p: SGD(p, 0.1, weight_decay=0.1)),
    "momentum": ({"momentum": 0.9}, lambda p: SGD(p, 0.1, momentum=0.9)),
    "nesterov": (
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        lambda p: SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
        lambda p: ADAM(p, 0.01, weight_decay=0.1),
    ),
    "adamw": (
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.99)},
        lambda p: ADAMW(p, 0.01, weight_decay=0.1, betas=(0.8, 0.99)),
    ),
}


@pytest.mark.parametrize("engine", ["plain", "loop", "vmap"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_equal_torch(name: str, engine: str) -> None:
    values, make = OPTIMISERS[name]
    learner = torch_learner(Mlp, epochs=2, batch_size=5, engine=engine, **values)
    params, datas = start(learner), [table(23), table(23, 1)]
    got = learner.fit_many(params, datas, [context(0), context(1)])
    for client, (data, contribution) in enumerate(zip(datas, got, strict=True)):
        close(contribution, reference(Mlp(), params, data, make, client=client))
        assert (contribution.weight, contribution.steps) == (23, 10)


@pytest.mark.parametrize("engine", ["plain", "loop", "vmap"])
def test_clip_and_schedules_equal_torch(engine: str) -> None:
    halves = lambda step: 0.5**step  # noqa: E731
    learner = torch_learner(Mlp, clip=0.3, schedule=halves, epochs=2, batch_size=5, engine=engine)
    params, data = start(learner), table(23)
    got = learner.fit_many(params, [data, table(23, 1)], [context(0), context(1)])
    close(got[0], reference(Mlp(), params, data, lambda p: SGD(p, 0.1), clip=0.3, factor=halves))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("cosine", lambda t: 0.5 * (1 + np.cos(np.pi * t / 10))),
        ("step", lambda t: 0.1 ** (3 * t // 10)),
    ],
)
def test_named_schedules(name: str, factor: Any) -> None:
    learner = torch_learner(Mlp, schedule=name, epochs=2, batch_size=5)
    params, data = start(learner), table(23)
    close(
        learner.fit(params, data, context()),
        reference(Mlp(), params, data, lambda p: SGD(p, 0.1), factor=factor),
    )


def test_rate_decays_over_rounds() -> None:
    learner = torch_learner(Mlp, decay=0.5, epochs=2, batch_size=5)
    params, data = start(learner), table(23)
    got = learner.fit(params, data, context(round=3))
    close(got, reference(Mlp(), params, data, lambda p: SGD(p, 0.1 / 8)))


def test_losses_by_name_and_by_function() -> None:
    rng = np.random.default_rng(0)
    data = Data(rng.normal(size=(23, 6)).astype(np.float32), rng.normal(size=(23, 3)).astype(np.float32))
    for loss in ("mse", lambda out, y: ((out - y) ** 2).mean()):
        for engine in ("loop", "vmap"):
            learner = torch_learner(Mlp, loss=loss, epochs=2, batch_size=5, engine=engine)
            params = start(learner)
            got = learner.fit_many(params, [data, data], [context(), context()])
            close(got[0], reference(Mlp(), params, data, lambda p: SGD(p, 0.1), loss=F.mse_loss))
            close(got[1], got[0])


def test_cnn_rewritten_equals_torch() -> None:
    data = images(23)
    for engine in ("plain", "loop", "vmap"):
        learner = torch_learner(Cnn, weight_decay=0.01, epochs=1, batch_size=5, engine=engine)
        params = start(learner)
        got, _ = learner.fit_many(params, [data, images(23, 1)], [context(0), context(1)])
        close(got, reference(Cnn(), params, data, lambda p: SGD(p, 0.1, weight_decay=0.01), epochs=1))
    with learner.net.borrow(plain=False) as work:
        assert work.fused == {"f1.weight", "f1.bias"}
        assert work.channels_last
        assert sum("lean_max_pool2d" in str(n.target) for n in work.lean.graph.nodes) == 2


def test_a_tied_layer_does_not_update_itself() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(256, 256)

        def forward(self, x: Any) -> Any:
            return self.a(torch.relu(self.a(x)))

    rng = np.random.default_rng(0)
    data = Data(rng.normal(size=(11, 256)).astype(np.float32), rng.integers(0, 256, 11))
    learner = torch_learner(Tied, engine="loop", epochs=2, batch_size=5)
    params = start(learner)
    close(learner.fit(params, data, context()), reference(Tied(), params, data, lambda p: SGD(p, 0.1)))


def test_ragged_clients_agree_between_engines() -> None:
    datas = [table(n, n) for n in (1, 4, 5, 6, 9, 10, 23, 23, 25)]
    ctxs = [context(i) for i in range(len(datas))]
    for values in ({}, {"momentum": 0.9}, {"optimizer": "adam", "lr": 0.01}, {"batch_size": None}):
        learner = torch_learner(Mlp, **{"epochs": 3, "batch_size": 5, **values})
        params = start(learner)
        plain = replace(learner, engine="plain").fit_many(params, datas, ctxs)
        for engine in ("loop", "vmap", "auto"):
            for a, b in zip(
                replace(learner, engine=engine).fit_many(params, datas, ctxs), plain, strict=True
            ):
                close(a, b)
                assert (a.weight, a.steps) == (b.weight, b.steps)
                assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], abs=1e-5)


@pytest.mark.parametrize("engine", ["plain", "loop", "vmap"])
def test_pull(engine: str) -> None:
    """The gradient of mu/2 ||w - anchor||² + <slope, w> is what autograd says it is."""
    learner = torch_learner(Mlp, epochs=2, batch_size=5, engine=engine)
    params, data = start(learner), table(23)
    anchor, slope = params.scale(0.5), params.scale(0.1)
    for pull, where in ((Pull(0.7), params), (Pull(0.7, anchor, slope), anchor)):

        def term(module: Any, pull: Pull = pull, where: Update = where) -> Any:
            total = 0.0
            for name, w in module.named_parameters():
                total = total + pull.mu / 2 * ((w - torch.tensor(where[name])) ** 2).sum()
                if pull.slope is not None:
                    total = total + (w * torch.tensor(pull.slope[name])).sum()
            return total

        ctxs = [context(0, pull=pull), context(1, pull=pull)]
        got = learner.fit_many(params, [data, table(23, 1)], ctxs)
        close(got[0], reference(Mlp(), params, data, lambda p: SGD(p, 0.1), term=term))


@pytest.mark.parametrize("engine", ["plain", "loop", "vmap"])
def test_leaves_that_may_not_move_stay(engine: str) -> None:
    learner = torch_learner(Mlp, epochs=2, engine=engine)
    params = start(learner)
    ctxs = [context(i, moves=lambda name: name.startswith("two")) for i in range(2)]
    for got in learner.fit_many(params, [table(23), table(23, 1)], ctxs):
        assert not got.update["one.weight"].any()
        assert np.abs(got.update["two.weight"]).max() > 1e-3


@pytest.mark.parametrize("engine", ["plain", "loop", "vmap"])
def test_nothing_moves_where_nothing_may(engine: str) -> None:
    learner = torch_learner(Mlp, engine=engine)
    ctxs = [context(i, moves=lambda _: False) for i in range(2)]
    for got in learner.fit_many(start(learner), [table(23), table(23, 1)], ctxs):
        assert got.update.norm() == 0


def test_bytes_do_not_depend_on_workers() -> None:
    datas, ctxs = [images(n, n) for n in (12, 7, 1, 9)], [context(i) for i in range(4)]
    results = []
    for workers in (1, 2, 3, 3, 3):  # threads that start together must not disturb each other
        learner = torch_learner(lambda: Cnn(0.5), batch_size=5, workers=workers)
        assert learner.lanes == workers
        got = learner.fit_many(start(learner), datas, ctxs)
        results.append([c.update.buffer.tobytes() for c in got])
    assert all(r == results[0] for r in results)


def test_dropout_is_seeded_by_client_and_round() -> None:
    for engine in ("plain", "loop"):
        learner = torch_learner(lambda: Cnn(0.5), batch_size=5, engine=engine)
        params, data = start(learner), images(10)
        before = torch.random.get_rng_state()
        one, two = (learner.fit(params, data, context()) for _ in range(2))
        assert one.update == two.update
        assert torch.equal(before, torch.random.get_rng_state())
        assert learner.fit(params, data, context(1)).update != one.update


def test_init_is_drawn_under_the_seed_and_an_instance_keeps_its_values() -> None:
    learner = torch_learner(Mlp)
    assert learner.init(np.random.default_rng(3)) == learner.init(np.random.default_rng(3))
    assert learner.init(np.random.default_rng(3)) != learner.init(np.random.default_rng(4))
    module = Mlp()
    given = torch_learner(module).init(np.random.default_rng(3))
    np.testing.assert_array_equal(given["one.weight"], module.one.weight.detach().numpy())


def test_evaluate() -> None:
    learner = torch_learner(Mlp)
    params, data = start(learner), table(1100)
    module = Mlp()
    module.load_state_dict({k: torch.tensor(v) for k, v in params.items()})
    out, y = module(torch.tensor(data.x)), torch.tensor(data.y)
    got = learner.evaluate(params, data, context())
    assert got["loss"] == pytest.approx(F.cross_entropy(out, y).item(), abs=1e-6)
    assert got["accuracy"] == pytest.approx((out.argmax(1) == y).float().mean().item(), abs=1e-6)
    assert torch_learner(Mlp, loss="mse").evaluate(params, Data(data.x, data.x[:, :3]), context()).keys() == {
        "loss"
    }


def normed() -> Any:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_batchnorm_statistics_are_leaves_like_others() -> None:
    learner = torch_learner(normed, epochs=2, batch_size=5)
    params, data = start(learner), table(20)
    assert learner.norm_leaves() == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert learner.head_leaves() == {"3.weight", "3.bias"}
    assert learner.chosen == "loop"
    for engine in ("plain", "loop"):
        got = replace(learner, engine=engine).fit(params, data, context())
        close(got, reference(normed(), params, data, lambda p: SGD(p, 0.1)))
        assert got.update["1.running_mean"].any()
    frozen = torch_learner(normed, bn="frozen").fit(params, data, context())
    assert not frozen.update["1.running_mean"].any()
    assert frozen.update["1.weight"].any()


def test_one_row_alone_does_not_break_batchnorm() -> None:
    learner = torch_learner(normed, batch_size=5)
    params = start(learner)
    for n in (1, 6):
        got = learner.fit(params, table(n), context())
        assert got.update.finite()
        assert got.update["3.bias"].any()
    loss = learner.evaluate(params, table(1), context())["loss"]
    assert np.isfinite(loss)


def test_a_fit_leaves_nothing_behind() -> None:
    """Two clients one after the other: the second knows nothing of the first (BatchNorm's counter too)."""
    counting = lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))  # noqa: E731
    learner = torch_learner(counting, momentum=0.9)
    params = start(learner)
    alone = learner.fit(params, table(20), context())
    learner.fit(params, table(31, 1), context(1))
    assert learner.fit(params, table(20), context()).update == alone.update


def test_untraceable_modules_run_as_they_are() -> None:
    class Branching(Mlp):
        def forward(self, x: Any) -> Any:
            h = self.one(x)
            return self.two(torch.relu(h) if h.sum().item() > 0 else torch.tanh(h))

    learner = torch_learner(Branching, epochs=2, batch_size=5)
    params, data = start(learner), table(23)
    assert (learner.chosen, learner.lanes) == ("loop", 1)
    close(learner.fit(params, data, context()), reference(Branching(), params, data, lambda p: SGD(p, 0.1)))
    for refused in (learner, torch_learner(lambda: Cnn(0.5)), torch_learner(Mlp).contrastive(1.0)):
        with pytest.raises(ConfigError, match="engine='vmap' cannot run"):
            replace(refused, engine="vmap")


def test_what_a_forward_draws_is_drawn_anew() -> None:
    """Tracing must not freeze noise a module makes by itself."""

    class Noisy(Mlp):
        def forward(self, x: Any) -> Any:
            return super().forward(x + torch.randn(6))

    learner = torch_learner(Noisy, epochs=2, batch_size=5)
    params, data = start(learner), table(23)
    with learner.net.borrow(plain=False) as work:
        assert work.lean is None
    one, two = (learner.fit(params, data, context()) for _ in range(2))
    assert one.update == two.update
    assert learner.fit(params, data, context(1)).update != one.update


def test_thread_settings_and_generators_are_left_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        state = torch.random.get_rng_state()
        learner = torch_learner(Cnn, workers=2)
        params = start(learner)
        learner.fit_many(params, [images(9), images(9)], [context(0), context(1)])
        learner.evaluate(params, images(9), context())
        assert torch.get_num_threads() == 3
        assert torch.equal(state, torch.random.get_rng_state())
    finally:
        torch.set_num_threads(before)


def test_torch_is_imported_late_and_its_absence_explained() -> None:
    code = (
        "import sys, atoll.adapt.torch as t\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try: t.torch_learner(object)\n"
        "except t.ConfigError as e: assert 'pip install atoll-fl[torch]' in str(e)\n"
        "else: raise SystemExit('no error')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_engine_rule_is_by_structure() -> None:
    assert torch_learner(Mlp).chosen == "vmap"
    assert torch_learner(lambda: Mlp(5000)).chosen == "loop"
    assert torch_learner(Cnn).chosen == "loop"


def test_moon_equals_its_formula() -> None:
    plain = torch_learner(Mlp, epochs=1, batch_size=5)
    moon = plain.contrastive(mu=2.0, temperature=0.5)
    params, data = start(plain), table(20)
    first = moon.fit(params, data, context())
    close(first, plain.fit(params, data, context()))  # no previous params, no term
    np.testing.assert_allclose(
        first.state["one.weight"], params["one.weight"] + first.update["one.weight"], atol=1e-6
    )
    second = moon.fit(params, data, context(state=first.state))

    def z(p: Any, x: Any) -> Any:
        return torch.tanh(F.linear(x, p["one.weight"], p["one.bias"]))

    w = {k: torch.tensor(v, requires_grad=True) for k, v in params.items()}
    glob, prev = ({k: torch.tensor(v) for k, v in p.items()} for p in (params, first.state))
    for rows in shuffles(np.array([context().key.key], np.uint64), 1, 20)[0].reshape(4, 5):
        x, y = torch.tensor(data.x[rows]), torch.tensor(data.y[rows])
        near = torch.exp(F.cosine_similarity(z(w, x), z(glob, x)) / 0.5)
        far = torch.exp(F.cosine_similarity(z(w, x), z(prev, x)) / 0.5)
        loss = F.cross_entropy(F.linear(z(w, x), w["two.weight"], w["two.bias"]), y)
        loss = loss - 2.0 * torch.log(near / (near + far)).mean()
        for p, g in zip(w.values(), torch.autograd.grad(loss, [*w.values()]), strict=True):
            p.data -= 0.1 * g
    close(second, Update.of({k: v.detach().numpy() - params[k] for k, v in w.items()}))
    assert second.update != first.update


def test_pretrained_weights(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    module, path = Mlp(), tmp_path / "w.safetensors"
    good = {k: v.detach().clone() for k, v in module.state_dict().items()}
    save_file(good, path)
    params = torch_learner(Mlp, weights=path).init(np.random.default_rng(0))
    np.testing.assert_array_equal(params["two.bias"], good["two.bias"].numpy())
    wrong = {
        "no leaf 'two.bias'": {k: v for k, v in good.items() if k != "two.bias"},
        "has shape": {**good, "two.bias": torch.zeros(4)},
        "NaN": {**good, "two.bias": torch.full((3,), float("nan"))},
        "lacks: three": {**good, "three": torch.zeros(1)},
    }
    for message, leaves in wrong.items():
        save_file(leaves, path)
        with pytest.raises(StateError, match=message):
            torch_learner(Mlp, weights=path)
    path.write_bytes(b"no such thing")
    with pytest.raises(StateError, match="no readable safetensors"):
        torch_learner(Mlp, weights=path)


BAD_DATA = {
    "NaN or infinite": lambda d: Data(np.where(d.x > 1, np.nan, d.x), d.y),
    "as many rows": lambda d: Data(d.x[:-1], d.y),
    "rows of shape": lambda d: Data(d.x[:, :4], d.y),
    r"0\.\.2": lambda d: Data(d.x, d.y + 1),
    "whole numbers": lambda d: Data(d.x, d.y + 0.5),
    "must hold numbers": lambda d: Data(d.x.astype(str), d.y),
    "shaped": lambda d: Data(d.x, np.zeros((len(d.x), 2), int)),
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_bad_data_is_refused(message: str) -> None:
    learner = torch_learner(Mlp)
    params, data = start(learner), BAD_DATA[message](table(20))
    for call in (learner.fit, learner.evaluate, lambda p, d, c: learner.fit_many(p, [d, d], [c, c])):
        with pytest.raises(DataError, match=message):
            call(params, data, context())


def test_an_empty_client_has_no_say() -> None:
    learner = torch_learner(Mlp)
    params, empty = start(learner), Data(np.zeros((0, 6), np.float32), np.zeros(0, int))
    for got in (
        learner.fit(params, empty, context()),
        learner.fit_many(params, [empty, table(9)], [context()] * 2)[0],
    ):
        assert (got.weight, got.steps, got.update.norm()) == (0.0, 0, 0.0)


def test_wrong_params_are_refused() -> None:
    learner = torch_learner(Mlp)
    with pytest.raises(MisuseError, match=r"'one.weight'"):
        learner.fit({"one.weight": np.zeros(3)}, table(5), context())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "cross_entrpy"}, "did you mean 'cross_entropy'"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"engine": "fast"}, "choose from"),
        ({"schedule": "linear"}, "schedule"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"clip": 0.0}, "clip must be"),
        ({"optimizer": "adam", "momentum": 0.9}, "belong to 'sgd'"),
        ({"nesterov": True}, "nesterov needs"),
        ({"bn": "local"}, "bn is"),
        ({"dtype": "bfloat16"}, "dtype is"),
        ({"module": lambda: 3}, "returned int"),
        ({"module": nn.Flatten}, "no float leaves"),
        ({"module": lambda: nn.LazyLinear(3)}, "has no shape yet"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        torch_learner(**{"module": Mlp, **values})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        torch_learner(Mlp, device="cuda")


def test_float64() -> None:
    learner = torch_learner(lambda: Mlp().double(), dtype="float64", epochs=2, batch_size=5)
    params, data = start(learner), Data(table(23).x.astype(np.float64), table(23).y)
    assert params.buffer.dtype == np.float64
    close(
        learner.fit(params, data, context()),
        reference(Mlp().double(), params, data, lambda p: SGD(p, 0.1)),
        1e-12,
    )
