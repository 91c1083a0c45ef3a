"""An algorithm: the job's one slot. A chain, a wrapper of the learner, a rule, a protocol, or
several of them under one name.

    fedavg  = mean()
    fedprox = a wrapper that pulls towards the model it was sent, and mean()
    fedbuff = a protocol of its own, and mean()
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from ..core.aggregate import Aggregator, Sum
from ..core.compose import check
from ..core.errors import CompositionError, ConfigError
from ..core.message import Learner
from ..core.protocol import Responder
from ..core.registry import part
from ..core.transform import Transform, chain
from ..privacy import dp
from .auto import fitted
from .exchange import Exchange, Plain
from .kernel import spread
from .robust import Buckets, Gather
from .rules.rule import Rule
from .server import adagrad, adam, mean, sgd, yogi

if TYPE_CHECKING:
    from .buffered import Buffered

Wrap: TypeAlias = Callable[[Learner], Any]


class Edge(Protocol):
    """Makes an edge's answer. `children`: who answers for which clients below it, as it is now.
    `online(now)`: whether the edge could deliver an answer at this moment.
    """

    def __call__(
        self,
        children: Mapping[str, Sequence[int]],
        algorithm: Algorithm,
        online: Callable[[float], bool] = ...,
    ) -> Responder: ...


@dataclass(frozen=True)
class Roles:
    """A protocol of its own instead of synchronous rounds: `coordinator(p, plan) -> Progress`.

    `client(local)`: what a client answers, None for its contribution as in learn/rounds.py.
    `edge(children, algorithm, online)`: what an edge answers, None for its children's sum; see Edge.
    `apart`: every client is a peer of its own; otherwise one peer may hold many and batch them.
    `buffer`: updates may wait at their clients until such a buffer is full (learn/waiting.py). `summed`: what
    is seen of clients is one sum a round, as in learn/rounds.py.
    """

    coordinator: Callable[..., Coroutine[Any, Any, Any]]
    client: Callable[..., Responder] | None = None
    edge: Edge | None = None
    apart: bool = True
    buffer: Buffered | None = None
    summed: bool = False


_ROUNDS = (
    "{} has rounds of its own, whose sums nobody accounts yet: use an algorithm of synchronous rounds, as"
    " fedavg or fedadam"
)


@dataclass(frozen=True)
class Algorithm:
    """What happens to updates between learner and model.

    `chain`: the two-sided transforms. `wrap`: changes how a client trains. `rule`: how replies
    become a total. `weigh`: "rows" (by each contribution's weight) or "equal". `protocol`: its
    own roles; None for synchronous rounds. `values`: its parameters, for reports. `exchange`: how updates
    are summed, and `crypto` the suite that hides them (privacy/hazmat/suite.py), which a job says. `aside`:
    the rule whose suspects are left out of rounds, no more of them than it withstands; None to name them only
    (learn/aside.py).
    """

    name: str
    chain: Transform = field(default_factory=mean)
    wrap: Wrap | None = None
    rule: Aggregator = field(default_factory=partial(Sum, spread=spread))
    weigh: Literal["rows", "equal"] = "rows"
    protocol: Roles | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    exchange: Exchange = field(default_factory=Plain)
    aside: Rule | None = None
    crypto: str = "intl"

    def __post_init__(self) -> None:
        shows = self.exchange.shows
        check(self.chain, self.rule.sees, shows, rings=getattr(self.rule, "rings", False))
        if shows == "sum":
            self._check_summed()
        object.__setattr__(self, "chain", fitted(dp.bounded(self.chain), self.rule.sees, shows))
        if self.private:
            self._check_private()
        if self.aside is not None and not self.watched:
            raise CompositionError(
                f"nobody sees single updates under this {self.name}, so there is no evidence about one"
                " client: leave set_aside out, or buckets"
            )

    @property
    def watched(self) -> bool:
        """Whether rounds show what each client sent, so that records of clients are kept."""
        return self.protocol is None and self.rule.sees == "each"

    @property
    def buffer(self) -> Buffered | None:
        """The buffer until which updates wait at their clients; None where they leave at once."""
        if self.protocol is None or self.exchange.shows == "each":
            return None
        return self.protocol.buffer

    @property
    def private(self) -> bool:
        """Whether noise hides single clients from whoever reads the models."""
        return dp.noisy(self.chain) is not None

    def _check_private(self) -> None:
        """Raise CompositionError where the noise is sized for another sum than this algorithm's."""
        if self.weigh != "equal":
            raise CompositionError(
                f"{self.name} weighs clients by their rows, and noise is sized for clients that weigh the"
                ' same: weigh="equal"'
            )
        if dp.local(
            self.chain
        ):  # every update is private by itself: what is made of them is anybody's affair
            if self.protocol is not None:
                raise CompositionError(_ROUNDS.format(self.name))
            return
        blind = self.exchange.shows == "sum" and isinstance(self.rule, Buckets)  # each bucket has all noise
        if not (blind or isinstance(self.rule, Sum)):
            raise CompositionError(
                f"noise is sized for a sum, and {type(self.rule).__name__} is another rule"
            )
        if self.protocol is not None and (self.buffer is None or dp.by_rows(self.chain)):
            raise CompositionError(_ROUNDS.format(self.name))

    def _check_summed(self) -> None:
        """Raise CompositionError where more than one plain sum would have to be seen."""
        turns = next((part for part in self.chain.steps if part.gives == "ring"), None)
        if turns is not None:
            raise CompositionError(f"a secure sum makes its own integers: leave {turns} out")
        if not isinstance(self.rule, (Sum, Buckets)):
            raise CompositionError(
                f"a secure sum shows sums, and {type(self.rule).__name__} is no rule over sums:"
                " use Sum or Buckets"
            )
        if isinstance(self.rule, Buckets) and not getattr(self.exchange, "buckets", True):
            raise CompositionError(
                f"{type(self.exchange).__name__} makes one sum of all: buckets go with secure_sum()"
            )
        if self.protocol is not None and not self.protocol.summed:
            self._check_buffer()

    def _check_buffer(self) -> None:
        """Raise CompositionError where updates cannot wait for a sum, or that sum would be of too few."""
        if self.buffer is None:
            raise CompositionError(
                f"{self.name} has rounds of its own, in which single updates are seen: use an algorithm of"
                " synchronous rounds, as fedavg or fedadam, or fedbuff()"
            )
        least = max(2, getattr(self.exchange, "least", 2))
        if self.buffer.size < least:
            raise CompositionError(
                f"a buffer of {self.name} holds {self.buffer.size}, and a sum is of {least} at least: use"
                f" fedbuff(size={max(least, 10)})"
            )
        if not isinstance(self.rule, Sum):
            raise CompositionError(
                f"{self.name} sums buffers of updates, and {type(self.rule).__name__} is another rule: use an"
                " algorithm of synchronous rounds"
            )

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.values.items())})"


def as_algorithm(given: Algorithm | Transform | Aggregator) -> Algorithm:
    """A bare chain or rule as an algorithm; an algorithm as it is."""
    if isinstance(given, Algorithm):
        return given
    if isinstance(given, Transform):
        return Algorithm(str(given), given, weigh="equal" if dp.noisy(given) else "rows")
    if isinstance(given, (Gather, Buckets, Sum)) or hasattr(given, "sees"):
        return Algorithm(type(given).__name__.lower(), rule=given)
    raise ConfigError(
        "an algorithm is a named one such as fedavg(), a chain of transforms or a rule,"
        f" got {type(given).__name__}"
    )


@part("algorithm")
def fedavg(weigh: Literal["rows", "equal"] = "rows") -> Algorithm:
    """Average the clients' models by their rows (McMahan et al. 2017, alg. 1)."""
    return Algorithm("fedavg", weigh=weigh, values={"weigh": weigh})


@part("algorithm")
def fedavgm(lr: float = 1.0, momentum: float = 0.9) -> Algorithm:
    """FedAvg with momentum on the server (Hsu, Qi, Brown 2019, §4.3)."""
    return Algorithm("fedavgm", chain(sgd(lr, momentum), mean()), values={"lr": lr, "momentum": momentum})


@part("algorithm")
def fedadagrad(lr: float = 0.1, b1: float = 0.0, tau: float = 1e-3) -> Algorithm:
    """Adagrad on the server (Reddi et al. 2021, alg. 2)."""
    return Algorithm(
        "fedadagrad", chain(adagrad(lr, b1, tau), mean()), values={"lr": lr, "b1": b1, "tau": tau}
    )


@part("algorithm")
def fedadam(lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Algorithm:
    """Adam on the server (Reddi et al. 2021, alg. 2)."""
    values = {"lr": lr, "b1": b1, "b2": b2, "tau": tau}
    return Algorithm("fedadam", chain(adam(**values), mean()), values=values)


@part("algorithm")
def fedyogi(lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Algorithm:
    """Yogi on the server (Reddi et al. 2021, alg. 2)."""
    values = {"lr": lr, "b1": b1, "b2": b2, "tau": tau}
    return Algorithm("fedyogi", chain(yogi(**values), mean()), values=values)


@part("algorithm")
def fedsgd(lr: float = 0.1) -> Algorithm:
    """One full-batch gradient per client, averaged; one step on the server (McMahan et al. 2017, §2).

    Needs a learner with `lr`, `epochs` and `batch_size`.
    """
    return Algorithm("fedsgd", chain(sgd(lr), mean()), wrap=_gradient, values={"lr": lr})


def _gradient(learner: Any) -> Any:
    """The learner that takes one full-batch step of rate 1: its update is minus the gradient."""
    try:
        return replace(learner, lr=1.0, epochs=1, batch_size=None, momentum=0.0, decay=1.0)
    except TypeError:
        raise ConfigError(
            "fedsgd sets lr, epochs, batch_size, momentum and decay, which"
            f" {type(learner).__name__} does not have: use fedavg, or write fit so that its update"
            " is minus the gradient"
        ) from None
