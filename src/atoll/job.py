"""A job: what to train, how, on whom and for how long. Values only, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from .core.errors import CompositionError, ConfigError
from .core.message import Learner
from .core.registry import nearest, part
from .learn.adaptive import BOUND, adaptive
from .learn.algorithm import Algorithm, as_algorithm, fedavg
from .learn.auto import compress
from .learn.exchange import Exchange, plain_sum
from .learn.per_row import PerRow
from .learn.select import Cohort, Everyone, Poisson
from .learn.server import mean
from .learn.small import small
from .learn.stop import Stop
from .privacy import dp
from .privacy.accountant import Placement, Plan
from .privacy.claim import Claim, drawn, solved
from .privacy.hazmat.suite import INTL, Crypto, suite_of


@dataclass(frozen=True)
class Tree:
    """Edges between the clients and the coordinator: `fanout` (4,) is four edges, (2, 3) two
    edges with three edges below each. Clients are dealt to the lowest edges in turn.
    """

    fanout: tuple[int, ...] = ()


@part("topology")
def flat() -> Tree:
    """Every client answers the coordinator."""
    return Tree()


@part("topology")
def tree(fanout: tuple[int, ...]) -> Tree:
    """Edges in between: `tree((4,))` is one level of four, `tree((2, 3))` two edges with three below each."""
    if not fanout or any(n < 1 for n in fanout):
        raise ConfigError(f"a tree needs the number of edges at each level, each at least 1, got {fanout}")
    return Tree(tuple(fanout))


@dataclass(frozen=True)
class Job:
    """What a federation is asked to do. Raises ConfigError or CompositionError when made.

    `learner`: an object with init, fit and evaluate. `algorithm`: a named one, a chain of
    transforms or a rule. `cohort`: who takes part in a round. `rounds`: at least 1. `every`:
    rounds between evaluations. `stop`: a rule for early stopping. `deadline`: seconds a round
    may take. `wait`: seconds it may wait while too few clients can be asked, None for as long as it takes.
    `max_weight`: the most rows one client may claim. `sites`: evaluate at the sites.
    `exchange`: how updates are summed, and who sees what of them. `privacy`: what it promises, made by
    `private`. `crypto`: the suite that hides them, "intl" or "gm" (SM3, SM4). `compression`: "auto" has each
    client send what pays on its link (`compress`), "none" what the algorithm says.
    """

    learner: Learner
    algorithm: Any = field(default_factory=fedavg)
    cohort: Cohort = field(default_factory=Everyone)
    rounds: int = 10
    every: int = 1
    stop: Stop | None = None
    topology: Tree = field(default_factory=Tree)
    deadline: float | None = None
    wait: float | None = None
    max_weight: float = 2.0**20
    sites: bool = True
    name: str = "job"
    privacy: Claim | None = None
    exchange: Exchange = field(default_factory=plain_sum)
    crypto: Crypto = "intl"
    compression: Literal["auto", "none"] = "none"

    def __post_init__(self) -> None:
        for method in ("init", "fit", "evaluate"):
            if not callable(getattr(self.learner, method, None)):
                raise ConfigError(
                    f"a learner has init, fit and evaluate; {type(self.learner).__name__} has no {method}()",
                    "$.learner",
                )
        object.__setattr__(self, "algorithm", as_algorithm(self.algorithm))
        self._check_slots()
        for name, least in (("rounds", 1), ("every", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"{name} must be a whole number of at least {least}, got {value!r}", f"$.{name}"
                )
        if not isinstance(self.sites, bool):
            raise ConfigError(f"sites is true or false, got {self.sites!r}", "$.sites")
        for name, seconds in (("deadline", self.deadline), ("wait", self.wait)):
            if seconds is not None and not seconds > 0:
                raise ConfigError(f"{name} must be above 0 seconds, got {seconds}", f"$.{name}")
        suite = suite_of(self.crypto, "$.crypto")
        if suite is not INTL and self.exchange.shows == "each":
            raise ConfigError(
                f'crypto = "{self.crypto}" says what hides updates, and here nothing does: set exchange to'
                " secure_sum",
                "$.crypto",
            )
        if not self.max_weight > 0:
            raise ConfigError(f"max_weight must be above 0, got {self.max_weight}", "$.max_weight")
        self._check_privacy()

    def _check_privacy(self) -> None:
        """Raise ConfigError for a promise that the rest of the job does not keep."""
        if self.privacy is not None:
            self.privacy.release(self.cohort, 1)
            self._check_buffers(self.privacy)
            if self.privacy.noise not in (placement(self.exchange), _alone(self.exchange)):
                raise ConfigError(
                    f"the promise was solved for {self.privacy.noise} noise, and the exchange makes it"
                    f" {placement(self.exchange)}: leave noise out, or promise again",
                    "$.privacy.noise",
                )
        if self.exchange.shows == "sum" and not self.sites and getattr(self.cohort, "asks", False):
            raise ConfigError(
                f"sites = false keeps to each site how the model does there, and {self.cohort} asks for it:"
                " let sites be true, or draw clients by sample(...)",
                "$.cohort",
            )
        if self.trained.private and self.sites:
            raise ConfigError(
                "each site would send how the model does on its rows, which no noise covers: set"
                " sites = false, and keep rows to test on where the coordinator is",
                "$.sites",
            )

    def _check_buffers(self, claim: Claim) -> None:
        """Raise ConfigError for a promise about buffers of updates that nobody can account."""
        if self.trained.buffer is None:
            return
        if drawn(self.cohort, claim.population)[1] != "all":
            raise ConfigError(
                f"nobody draws who is in a buffer of {self.algorithm.name}: clients come when they are done."
                " Use everyone(), and concurrency for how many are at work",
                "$.cohort",
            )
        if claim.adapt is not None:
            raise ConfigError(
                f"in a buffer of {self.algorithm.name} are updates of several models, each with the clip of"
                " its time: leave adapt out",
                "$.privacy.adapt",
            )

    def _check_slots(self) -> None:
        """A name where a value is needed is the usual mistake: "everyone" for everyone()."""
        if self.compression not in ("auto", "none"):
            raise ConfigError(
                f'compression is "auto" or "none", got {self.compression!r}: a code of your choice stands'
                " in the algorithm, as small(up=int4())",
                "$.compression",
            )
        slots = (
            ("cohort", hasattr(self.cohort, "pick"), "everyone(), sample(...) or power_of_choice(...)"),
            ("stop", self.stop is None or isinstance(self.stop, Stop), "early(...) or None"),
            (
                "exchange",
                hasattr(self.exchange, "collect"),
                "plain_sum(), secure_sum(...) or encrypted_sum(...)",
            ),
            ("topology", isinstance(self.topology, Tree), "flat() or tree(...)"),
        )
        for name, fits, makers in slots:
            if not fits:
                raise ConfigError(f"{name} is made by {makers}, got {getattr(self, name)!r}", f"$.{name}")

    def replace(self, **values: Any) -> Job:
        """The same job with other values. Raises ConfigError for a name it does not have."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in values:
            if name not in known:
                raise ConfigError(f"a job has no {name!r}: {nearest(name, known)}", f"$.{name}")
        return dataclasses.replace(self, **values)

    def describe(self) -> dict[str, str]:
        """Its values as text, for reports and to tell two jobs apart."""
        return {f.name: _text(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def private(
        self,
        *,
        epsilon: float,
        delta: float,
        clip: float,
        sigma: float | None = None,
        unit: Literal["client", "example"] = "client",
        population: int | None = None,
        rate: float | None = None,
        adapt: float | None = None,
        noise: Literal["local"] | None = None,
        exchange: Exchange | None = None,
    ) -> Job:
        """The same job with a promise: after all its rounds nobody who reads the models can tell, beyond
        (`epsilon`, `delta`), whether any one client took part.

        Updates are clipped to the L2 norm `clip` and noise is added to each sum: by the coordinator, which is
        trusted with it (*central*), or, where the job's `exchange` is a secure_sum(), by the clients under
        their masks (*distributed*), so that nobody sees a sum without noise; under encrypted_sum() as long
        as no client gives the key away. `noise="local"` has every client add it to its own update, in the
        open: nobody is trusted, and it takes much more of it. The noise is solved for, or `sigma` times the
        clip where it is given. Clients send no metrics. `population`: how many clients there are; only
        samples of a fixed size need it. `adapt`: `clip` is where the clip begins, and then it follows the
        updates, so that this share of them is shorter; how many are is learnt under the same noise.

        `unit="example"` hides single rows instead: a round is one step on rows that are drawn by a coin of
        probability `rate` each, every row's gradient is clipped, and the algorithm's server optimiser steps
        (fedavgm(lr, momentum)). `population` is then the number of rows of all sites together.

        Raises ConfigError for values that do not fit, CompositionError for an algorithm that noise cannot
        cover, PrivacyError for a sigma that is too small.
        """
        exchange = exchange or self.exchange
        claim = Claim(
            epsilon, delta, clip, sigma or 1.0, unit, population, noise or placement(exchange), rate, adapt
        )
        if sigma is None:
            claim = solved(claim, self.cohort, self.rounds)
        else:
            claim.check(self.cohort, self.rounds)
        return dataclasses.replace(self, privacy=claim, sites=False, exchange=exchange)

    def fits(self, clients: int) -> None:
        """Raise ConfigError where so many clients are too few for its rule, or too few or many for sums."""
        size = getattr(self.cohort, "size", None)
        asked = clients if size is None or isinstance(self.cohort, Poisson) else size(clients)
        least, most = getattr(self.exchange, "least", 0), getattr(self.exchange, "members", asked)
        if not least <= asked <= most:
            raise ConfigError(
                f"{asked} clients are asked in a round, and the exchange sums"
                f" {f'at least {least}' if asked < least else f'at most {most}'}: ask for another number, or"
                f" change {'least' if asked < least else 'members'}",
                "$.exchange",
            )
        if self.trained.rule.sees == "each":
            from .learn.robust import Gather
            from .learn.rules.rule import as_rule, holds

            if isinstance(self.trained.rule, Gather):
                rule = as_rule(self.trained.rule.rule)
                others = [c for c in range(clients) if c not in rule.knows]
                holds(rule, range(clients) if asked == clients else others[:asked])

    def epsilon(self) -> Plan:
        """What the promise costs: the composition, and ε towards both, before anything is spent.

        Raises ConfigError for a job that promises nothing.
        """
        if self.privacy is None:
            raise ConfigError("this job promises no privacy: job.private(epsilon=..., delta=..., clip=...)")
        return self.privacy.cost(self.cohort, self.rounds)

    @cached_property
    def trained(self) -> Algorithm:
        """Its algorithm, whatever form it was given in, with the noise of its promise."""
        algorithm: Algorithm = self.algorithm
        if self.compression == "auto":
            algorithm = small(algorithm, compress())
        algorithm = dataclasses.replace(algorithm, exchange=self.exchange, crypto=self.crypto)
        if self.privacy is None:
            return algorithm
        claim, local = self.privacy, self.privacy.noise == "local"
        if claim.rate is not None and claim.population is not None:
            if algorithm.wrap is not None:
                raise CompositionError(
                    f"{algorithm.name} changes how clients train, and for single rows they take one step:"
                    " use fedavg, fedavgm or fedadam"
                )
            share, wrap = mean(over=claim.rate * claim.population), PerRow(claim.rate, claim.clip)
            chain = dp.private(algorithm.chain, claim.clip, claim.sigma, share, rows=True, local=local)
            return dataclasses.replace(algorithm, chain=chain, wrap=wrap, weigh="equal")
        rate, _ = drawn(self.cohort, claim.population)
        share, bound = mean(share=rate), claim.clip
        if algorithm.buffer is not None:
            share = mean(over=algorithm.buffer.size)
        if claim.adapt is not None:
            algorithm, bound = adaptive(algorithm, claim.clip, claim.adapt), BOUND
        chain = dp.private(algorithm.chain, bound, claim.sigma, share, local=local)
        return dataclasses.replace(algorithm, chain=chain, weigh="equal")


def placement(exchange: Exchange) -> Placement:
    """Who adds noise where updates are summed so."""
    return "distributed" if exchange.shows == "sum" else "central"


def _alone(exchange: Exchange) -> Placement:
    """Who else may add it: where updates go one by one, each client."""
    return "local" if exchange.shows == "each" else placement(exchange)


def _text(value: Any) -> str:
    """A value's own text, without the address that Python gives plain objects and functions."""
    if isinstance(value, Algorithm):
        return str(value)
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def prepare(job: Job, data: Any, workers: int | None = None) -> Any:
    """The learner that runs: sized for the data where it asks to be, wrapped by the algorithm."""
    learner: Any = job.learner
    if hasattr(learner, "sized") and hasattr(data, "features"):
        learner = learner.sized(data.features, data.outputs)
    if workers is not None and hasattr(learner, "workers"):
        learner = dataclasses.replace(learner, workers=workers)
    return job.trained.wrap(learner) if job.trained.wrap else learner
