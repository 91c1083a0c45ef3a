"""Bad input ends in an error of ours that says where and what to do, or in a documented tolerance."""

from pathlib import Path

import numpy as np
import pytest

import atoll as at
from atoll.control import config
from atoll.data import arrays

RNG = np.random.default_rng(0)


def rows(n: int, width: int = 3, classes: int = 2):
    return RNG.normal(size=(n, width)).astype(np.float32), np.arange(n) % classes


def job(**values):
    return at.Job(**{"learner": at.softmax(), "rounds": 2, **values})


class Fixed:
    """A learner whose answers a test chooses."""

    def __init__(self, contribution=None, metrics=None, first=None) -> None:
        self.contribution, self.metrics, self.first = contribution, metrics, first

    def init(self, rng):
        return {"w": np.zeros(2)} if self.first is None else self.first

    def fit(self, params, data, ctx):
        return self.contribution(data)

    def evaluate(self, params, data, ctx):
        return {"loss": 0.0} if self.metrics is None else self.metrics


PROMISE = {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0}
JOBS = [
    ({"rouns": 3}, "$.rouns", "did you mean 'rounds'"),
    ({"pipeline": "range"}, "$.pipeline", "stands under [data]"),
    ({"learner": {"name": "mpl"}}, "$.learner.name", "did you mean 'mlp'"),
    ({"learner": {"name": "mlp", "hiden": [3]}}, "$.learner.hiden", "did you mean 'hidden'"),
    ({"learner": {"name": "mlp", "lr": "fast"}}, "$.learner.lr", "expected a number, got 'fast'"),
    ({"learner": {"name": "mlp", "lr": -1.0}}, "$.learner", "lr"),
    ({"learner": {"name": "mlp", "hidden": 64}}, "$.learner.hidden", "expected a list, each a whole number"),
    ({"learner": 3}, "$.learner", "expected a table or a name"),
    ({"algorithm": "fedagv"}, "$.algorithm.name", "did you mean 'fedavg'"),
    ({"cohort": {"name": "sample", "fraction": 2.0}}, "$.cohort", "at most 1"),
    ({"topology": {"name": "tree", "fanout": [0]}}, "$.topology", "at least 1"),
    ({"stop": {"name": "early", "patience": 0}}, "$.stop", "patience"),
    ({"world": {"compute": {"name": "lognorm"}}}, "$.world.compute.name", "did you mean 'lognormal'"),
    ({"world": {"loss": 1.5}}, "$.world", "below 1"),
    ({"world": {"compute": 3}}, "$.world.compute", "expected a delay"),
    ({"name": "../up"}, "$.name", "without slashes"),
    ({"rounds": 0}, "$.rounds", "at least 1"),
    ({"seed": "x"}, "$.seed", "whole number"),
    ({"workers": 0}, "$.workers", "at least 1"),
    ({"data": {"standardise": "all"}, "privacy": PROMISE}, "$.data.standardise", "no noise covers"),
]


@pytest.mark.parametrize(("change", "path", "says"), JOBS, ids=[j[1] for j in JOBS])
def test_a_wrong_job_names_the_place_and_the_fix(change, path: str, says: str) -> None:
    with pytest.raises(at.ConfigError) as wrong:
        config.parse({"learner": "softmax", **change})
    assert wrong.value.path == path
    assert says in str(wrong.value)


DATA = [
    ({"name": "digitz"}, "$.data.name", "did you mean 'digits'"),
    ({"name": "wine", "client": 3}, "$.data.client", "did you mean 'clients'"),
    ({"name": "wine", "clients": 5, "by": {"name": "dirichlet", "alpa": 1}}, "$.data.by.alpa", "'alpha'"),
    ({"name": "wine", "clients": 5, "by": {"name": "dirichlet", "alpha": 0}}, "$.data.by.alpha", "above 0"),
    ({"name": "wine", "clients": 2.5}, "$.data.clients", "whole number"),
    ({"name": "wine", "clients": 500}, "$.data.clients", "use fewer clients"),
    ({"name": "wine", "holdout": 1.0}, "$.data.holdout", "[0, 1)"),
    ({}, "$.data.name", "name the data"),
]


@pytest.mark.parametrize(("data", "path", "says"), DATA, ids=[d[1] for d in DATA])
def test_wrong_data_in_a_job_names_the_place(data, path: str, says: str) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(at.ConfigError) as wrong:
        config.parse({"learner": "softmax", "data": data}).sites()
    assert wrong.value.path == path
    assert says in str(wrong.value)


OPTIONS = [
    (("partition", "digits"), "--clients: say how many"),
    (("partition", "digits", "--clients", 3, "--by", "dirichlet,alpha=-1"), "--by.alpha: alpha must be"),
    (("describe", "digitz"), "DATA: no data is called 'digitz': did you mean 'digits'"),
]


@pytest.mark.parametrize(("words", "says"), OPTIONS, ids=[o[1] for o in OPTIONS])
def test_a_wrong_option_is_called_as_on_the_command_line(atoll, words, says: str) -> None:
    pytest.importorskip("sklearn")
    said = atoll("data", *words)
    assert said.code == 2
    assert says in said.err


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(at.DataError, match=r"gone\.csv: no such file"):
        at.load_data(tmp_path / "gone.csv", target="y")


def test_an_empty_client_is_refused_by_name_or_allowed_on_purpose() -> None:
    with pytest.raises(at.DataError, match=r"site 'site 1' has no rows.*empty=True"):
        at.Sites.of([rows(5), rows(0)])
    sites = at.Sites.of([rows(5), rows(0)], empty=True)
    run = at.simulate(job(), sites, seed=1)
    alone = at.simulate(job(), at.Sites.of([sites[0]]), seed=1)
    assert run.params == alone.params  # it weighs nothing


def test_a_client_with_one_class_takes_part() -> None:
    one = rows(6)[0], np.zeros(6, int)
    run = at.simulate(job(), at.Sites.of([rows(6), one]))
    assert [r["clients"] for r in run.history[1:]] == [2, 2]


def test_missing_cells_are_refused_before_training_by_site_and_column() -> None:
    x, y = rows(5)
    x[3, 1] = np.nan
    with pytest.raises(at.DataError, match=r"site 'site 1', column '1'.*missing=\"mean\"") as wrong:
        at.simulate(job(), at.Sites.of([rows(5), (x, y)]))
    assert "nan" not in str(wrong.value)


def test_wrong_shapes_are_refused_by_site() -> None:
    with pytest.raises(at.DataError, match=r"site 'site 1' has rows of shape \(4,\)"):
        at.Sites.of([rows(5), rows(5, width=4)])
    with pytest.raises(at.DataError, match="site 'site 0'"):
        at.Sites.of([(rows(5)[0], rows(4)[1])])


def test_a_label_no_other_site_has_is_fine_and_one_outside_the_classes_is_not() -> None:
    third = rows(4)[0], np.full(4, 2)
    assert at.simulate(job(), at.Sites.of([rows(6), third])).params["layer0.bias"].shape == (3,)
    with pytest.raises(at.DataError, match=r"site 'site 1': a label lies outside 0\.\.1"):
        at.Sites.of([rows(6), third], outputs=2)
    with pytest.raises(at.DataError, match="site 'site 0'"):
        at.Sites.of([(rows(4)[0], np.full(4, -1))])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_fails_its_client_only(weight: float) -> None:
    learner = Fixed(lambda weight: at.Contribution({"w": np.ones(2)}, weight=weight))
    run = at.simulate(job(learner=learner), [weight, 1.0])
    assert all("weight must be finite and at least 0" in r["failed"][0] for r in run.history[1:])
    assert run.params["w"].tolist() == [2.0, 2.0]


def test_weights_of_zero_change_nothing() -> None:
    learner = Fixed(lambda _: at.Contribution({"w": np.ones(2)}, weight=0.0))
    assert at.simulate(job(learner=learner), [0, 1]).params["w"].tolist() == [0.0, 0.0]


def test_a_heavy_client_weighs_no_more_than_the_cap() -> None:
    learner = Fixed(lambda data: at.Contribution({"w": np.full(2, data[0])}, weight=data[1]))
    run = at.simulate(job(learner=learner, rounds=1, max_weight=2.0), [(1.0, 1e9), (4.0, 1.0)])
    assert run.params["w"].tolist() == [2.0, 2.0]  # (2 * 1 + 1 * 4) / 3


def test_more_clients_than_rows() -> None:
    with pytest.raises(at.ConfigError, match="use fewer clients"):
        at.partition(at.Dataset("tiny", at.Examples(*rows(4)), classes=("a", "b")), clients=5)


def test_chains_in_a_wrong_order_say_the_right_one() -> None:
    with pytest.raises(at.CompositionError, match=r"put sgd\(.*\) before mean\(\)"):
        job(algorithm=at.chain(at.mean(), at.sgd()))
    with pytest.raises(at.CompositionError, match=r"add mean\(\)"):
        job(algorithm=at.chain(at.transform("signs")))


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"cohort": "everyone"}, "$.cohort"),
        ({"stop": "early"}, "$.stop"),
        ({"topology": (2,)}, "$.topology"),
        ({"learner": at.softmax}, "$.learner"),
        ({"rounds": 2.5}, "$.rounds"),
        ({"sites": 3}, "$.sites"),
        ({"deadline": 0}, "$.deadline"),
        ({"max_weight": 0}, "$.max_weight"),
    ],
)
def test_a_job_refuses_values_of_another_kind(values, path: str) -> None:
    with pytest.raises(at.ConfigError) as wrong:
        job(**values)
    assert wrong.value.path == path


@pytest.mark.parametrize(
    ("data", "seed", "path"), [(None, 0, "$.data"), ([], 0, "$.data"), ([1], "x", "$.seed")]
)
def test_simulate_refuses_what_is_no_data_or_no_seed(data, seed, path: str) -> None:
    with pytest.raises(at.ConfigError) as wrong:
        at.simulate(job(), data, seed)
    assert wrong.value.path == path


def test_a_learner_that_breaks_the_contract_is_told_so() -> None:
    with pytest.raises(at.MisuseError, match="named arrays"):
        at.simulate(job(learner=Fixed(first=[1, 2])), [0])
    sites = at.Sites.of([rows(3)], tests=[rows(3)])
    with pytest.raises(at.MisuseError, match="metrics by name"):
        at.simulate(job(learner=Fixed(metrics=0.5)), sites)


def test_a_stop_rule_on_a_metric_that_nobody_evaluates() -> None:
    stop = at.early(metric="acuracy")
    with pytest.raises(at.ConfigError, match="did you mean 'accuracy'"):
        at.simulate(job(stop=stop), at.Sites.of([rows(5)], tests=[rows(3)]))
    with pytest.raises(at.ConfigError, match="no rows are kept to test on"):
        at.simulate(job(stop=stop), at.Sites.of([rows(5)]))


def test_a_learner_that_always_fails_ends_the_run_with_its_reason() -> None:
    def broken(_):
        raise ValueError("the disk is on fire")

    with pytest.raises(at.QuorumError, match="the disk is on fire"):
        at.simulate(job(learner=Fixed(broken), rounds=5), [0, 1])


class Sites(list):
    """Clients with test rows of their own, and none that the coordinator holds."""

    def __init__(self, clients) -> None:
        super().__init__(clients)
        self.tests = self


class Unseen(Fixed):
    """Trains; evaluating fails at the clients in `at`."""

    def __init__(self, fails) -> None:
        super().__init__(lambda _: at.Contribution({"w": np.ones(2)}))
        self.fails = fails

    def evaluate(self, params, data, ctx):
        if ctx.client in self.fails:
            raise KeyError("temperature")
        return {"loss": 0.5}


def test_a_site_that_cannot_evaluate_stands_in_the_record_with_its_reason(tmp_path: Path) -> None:
    clients, faulty = Sites([[0], [1], [2]]), job(learner=Unseen({1}))
    run = at.simulate(faulty, clients, out=tmp_path / "a")
    for record in run.history:
        assert record["sites"] == {0: {"loss": 0.5}, 2: {"loss": 0.5}}
        assert list(record["sites_failed"]) == [1]
        assert "KeyError: 'temperature'" in record["sites_failed"][1]
    assert at.simulate(faulty, clients, out=tmp_path / "a", resume=True).history == run.history


@pytest.mark.parametrize(("world", "when"), [(None, 0), (at.World(delay=at.constant(0.1)), 2)])
def test_a_model_that_nobody_can_evaluate_ends_the_run_with_the_reason(world, when: int) -> None:
    with pytest.raises(at.QuorumError, match=rf"(?s)the model of round {when}.*in evaluate.*'temperature'"):
        at.simulate(job(learner=Unseen({0, 1}), rounds=5), Sites([[0], [1]]), world=world)


def test_a_traceback_begins_where_the_users_code_does() -> None:
    def broken(_):
        raise ValueError("no")

    with pytest.raises(at.QuorumError) as ended:
        at.simulate(job(learner=Fixed(broken), rounds=1), [0])
    lines = str(ended.value).splitlines()
    assert "nobody contributed in round 1." in lines[0]
    assert __file__ in lines[1] and not any("learn/local.py" in line for line in lines)


def test_an_answer_of_fit_that_is_none_and_leaves_of_another_shape_are_told() -> None:
    answers = {"fit answers with Contribution": {"w": np.ones(2)}}
    answers |= {r"w\[3\] where the model has w\[2\]": at.Contribution({"w": np.ones(3)})}
    answers |= {r"v\[2\] where the model has w\[2\]": at.Contribution({"v": np.ones(2)})}
    for says, answer in answers.items():
        with pytest.raises(at.QuorumError, match=says):
            at.simulate(job(learner=Fixed(lambda _, a=answer: a)), [0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: at.softmax(lr="fast"), "lr must be a number"),
        (lambda: at.mlp(hidden=64), "a list of widths"),
        (lambda: at.World(compute=3), "compute is a delay"),
        (lambda: at.simulate(job(), at.Sites.of([rows(5)]), world={"loss": 0.1}), "World"),
        (lambda: at.simulate(job(), arrays(*rows(5))), "give partition"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_was_expected(call, says: str) -> None:
    with pytest.raises(at.ConfigError, match=says):
        call()
