"""Rounds that some clients may poison: momentum at the clients, then a robust rule over what they send.

Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization", §5:

    client i   m_i <- β m_i + (1 - β) Δ_i,   at first m_i = Δ_i;    sends m_i
    server     w <- w + rule(m_1 … m_n)

What honest clients send then differs less from one another, from round to round an attack can no longer
hide in their noise, and its small steps no longer add up unseen.
"""

from __future__ import annotations

from ..core.errors import ConfigError
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain, transform
from ..core.update import Update
from .algorithm import Algorithm
from .quantise import dense
from .robust import Buckets, Gather
from .rules.coordinate import within
from .rules.krum import krum
from .rules.nnm import nnm
from .rules.rule import Rule, as_rule
from .rules.trust import level
from .server import mean


@part("transform")
def momentum(beta: float = 0.9) -> Transform:
    """A client sends a running mean of its updates: `beta` in [0, 1) of the last, the rest of the new one.

    It is kept by each client, and counts rounds in which the client took part and was used.
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"beta must be at least 0 and below 1, got {beta}")
    name = f"momentum({beta:g})"

    def out(update: Update, m: State, ctx: Context) -> tuple[Update, State]:
        dense(update, name)
        sent = update if m is None else m.scale(beta) + update.scale(1 - beta)
        return sent, sent

    return transform(name, out, init=lambda params: None, keeps="out")


@part("rule")
def recommended(f: float = 0.2) -> Rule:
    """The rule that withstood most of what we tried: level(within(nnm(f, krum(f)))).

    `f`: how many clients may be malicious, a count or a share below 0.5. Needs n >= 2f + 3. Mixing makes
    honest updates alike where their data differ; equal lengths expose those who hold back; and coordinates
    that honest clients leave alone stay alone, which shuts backdoors.
    """
    return level(within(nnm(f, krum(f))))


@part("algorithm")
def robust(
    rule: Rule | None = None, momentum: float = 0.0, buckets: int | None = None, *, set_aside: bool = False
) -> Algorithm:
    """Averaging that a part of the clients cannot poison: `rule` in place of the mean.

    `rule`: by default recommended(0.2), for up to a fifth malicious clients. `momentum`: at the clients, in
    [0, 1). `buckets`: the rule sees the means of so many random groups, never one client's update. Every
    client counts the same: who could claim rows could claim influence.

    Who seems to lie is named in each round's record; with `set_aside` such clients are left out from the next
    round on, and of later runs of a federation until an administrator reinstates them.
    """
    used = recommended() if rule is None else as_rule(rule)
    if buckets is not None and buckets < 1:
        raise ConfigError(f"buckets must be at least 1, got {buckets}")
    steps = chain(mean(), _momentum(momentum)) if momentum else mean()
    values = {"rule": used, "momentum": momentum, "buckets": buckets, "set_aside": set_aside}
    seen = Gather(used) if buckets is None else Buckets(buckets, used)
    aside = used if set_aside else None
    return Algorithm("robust", steps, rule=seen, weigh="equal", values=values, aside=aside)


_momentum = momentum  # the parameter above has its name
