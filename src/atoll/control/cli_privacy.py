"""Commands about privacy: `atoll privacy plan`, and at a site `atoll privacy open|recover|status`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from .cli_ops import chosen, connected, group, remote, when

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    inner = group(commands, "privacy", "what a promise of privacy costs", say)
    c = command("plan", _plan, "solve for the one value that is left out", inner)
    text = "the job whose promise is shown, instead of values"
    c.add_argument("job", type=Path, nargs="?", metavar="JOB.toml", help=say(text))
    c.add_argument("--delta", type=float, metavar="D", help=say("the chance that the promise fails"))
    c.add_argument("--epsilon", type=float, metavar="E", help=say("how much one member may show, in all"))
    c.add_argument("--sigma", type=float, metavar="S", help=say("noise over the clip"))
    c.add_argument("--rate", type=float, metavar="Q", help=say("the part of all members in one round"))
    c.add_argument("--rounds", type=int, metavar="T", help=say("number of rounds"))
    c.add_argument("--population", type=int, metavar="N", help=say("how many members there are"))
    c.add_argument(
        "--sampling",
        choices=["poisson", "fixed", "all"],
        default="poisson",
        help=say("how a round draws them"),
    )
    c.add_argument("--size", type=int, metavar="D", help=say("numbers in the model"))
    text = "what is hidden: whole clients, or single rows, which are then the members"
    c.add_argument("--unit", choices=["client", "example"], default="client", help=say(text))
    text = "who adds it: the coordinator, the clients under masks, or each to its own update"
    c.add_argument("--noise", choices=["central", "distributed", "local"], default="central", help=say(text))
    text = "of distributed noise: members who may tell the noise that they added"
    c.add_argument("--colluders", type=int, metavar="C", help=say(text))

    c = command("report", _report, "what a run promised, and who could see what", inner, remote(say))
    c.add_argument("which", nargs="?", metavar="RUN", help=say("the run's id; the newest without"))
    c = command("open", _open, "open a data set's budget, at its site", inner)
    c.add_argument("id", metavar="ID", help=say("the id that client.toml gives the data set's budget"))
    c.add_argument("--epsilon", type=float, required=True, metavar="E", help=say("what all jobs may spend"))
    c.add_argument("--delta", type=float, required=True, metavar="D", help=say("what all jobs may spend"))
    _folder(c, say)
    text = "count what a newer copy of a budget's ledger had spent, as its receipts say"
    c = command("recover", _recover, text, inner)
    c.add_argument("id", metavar="ID", help=say("the id that client.toml gives the data set's budget"))
    _folder(c, say)
    text = "what was spent of the budgets of a site, what is left, and what is believed of the coordinator"
    c = command("status", _status, text, inner)
    _folder(c, say)


def _report(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        found = chosen(fed, args.which).report()
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in {**found, "ended": when(found["ended"])}.items():
        if not isinstance(value, dict):
            print(f"{say(name)}: {say('none') if value is None else value}")
    for name, value in (found["promise"] or {}).items():
        print(f"    {say(name)}: {_cell(value)}")
    return 0


def _folder(c: Any, say: Say) -> None:
    c.add_argument("--folder", type=Path, metavar="DIR", help=say("the client's folder"))
    text = "the client's settings, which say who keeps its key; client.toml in its folder without"
    c.add_argument("--config", type=Path, metavar="FILE.toml", help=say(text))


def _site(args: argparse.Namespace) -> tuple[Path, Any]:
    """The client's folder, and what opens its files."""
    from . import settings
    from .engine.safe import opened

    path = args.config or settings.beside(args.folder, settings.Client)
    found = settings.Client() if path is None else settings.read(path, settings.Client)
    folder = args.folder or Path(found.folder)
    return folder, opened(structs.replace(found, folder=str(folder)))


def _open(args: argparse.Namespace, say: Say) -> int:
    from ..privacy.ledger import Ledger

    made = Ledger.create(*_site(args), args.id, epsilon=args.epsilon, delta=args.delta)
    print(json.dumps(_row(made)) if args.json else f"{say('budget')}: {made.id}, {made.path}")
    return 0


def _recover(args: argparse.Namespace, say: Say) -> int:
    from .engine.spent import recover

    row = _row(recover(*_site(args), args.id))
    if args.json:
        print(json.dumps(row))
    else:
        print(f"{say('budget')}: {row['budget']}, {say('left')}: epsilon {_cell(row['left'])}")
    return 0


def _status(args: argparse.Namespace, say: Say) -> int:
    from ..privacy.ledger import ledgers
    from .table import table

    hub = (args.folder or Path()) / "pki"
    if (hub / "identity").exists():  # a coordinator's folder: it has no budgets, and no key of a store
        rows, believed = [], _trust(hub)
    else:
        folder, vault = _site(args)
        rows, believed = [_row(made) for made in ledgers(folder, vault)], _trust(folder)
    if args.json:
        print(json.dumps({"budgets": rows, "trust": believed}))
        return 0
    if rows:
        names = ("budget", "epsilon", "left", "delta", "delta left", "runs")
        table([say(name) for name in names], [[_cell(row[name]) for name in names] for row in rows])
    elif not hub.exists():
        print(say("no budgets here: atoll privacy open ID --epsilon E --delta D"))
    if believed is not None:
        print(f"{say('trust')}: {say(believed)}")
    return 0


def _trust(folder: Path) -> str | None:
    """What the certificates there say of the coordinator; None where there are none yet."""
    from ..core.errors import StateError
    from ..privacy.keys import Identity
    from ..privacy.report import trust

    try:
        return trust(Identity.open(folder / "identity").chain)
    except StateError:
        return None


def _row(made: Any) -> dict[str, Any]:
    left = made.left
    return {
        "budget": made.id,
        "epsilon": made.epsilon,
        "left": left[0],
        "delta": made.delta,
        "delta left": left[1],
        "runs": len(made.spent),
    }


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plan(args: argparse.Namespace, say: Say) -> int:
    from ..privacy.claim import REPLACED

    found, unit, population, clients, colluders = _of_job(args) if args.job else _of_values(args)
    population = args.population or population
    if unit == "client" and population:
        clients = max(1, round(found.release.rate * population))
    alone = unit == "client" and found.release.noise == "local"
    sigma = found.release.sigma * (REPLACED if alone else 1)
    each = _each(found.release, sigma, clients, colluders)
    warned = _warnings(found, sigma if each is None else each, population, clients, args.size)
    if args.json:
        values = {"unit": unit, "population": population, "sigma": sigma, "each": each}
        print(json.dumps({**dataclasses.asdict(found), **values, "warnings": warned}))
        return 0
    print(found)
    if alone:
        print(f"{say('noise over the clip')}: {sigma:g}")
    elif each is not None:
        print(f"{say('noise over the clip that each member adds')}: {each:.4g}")
    for text in warned:
        print(f"{say('warning')}: {text}")
    return 0


def _each(release: Any, sigma: float, clients: int | None, colluders: int) -> float | None:
    """What each member of a secure sum adds to distributed noise, over the clip, so that those who must stay,
    less colluders, add enough. Raises ConfigError where nobody is left.
    """
    from ..core.errors import ConfigError
    from ..learn.integers import Hidden
    from ..privacy.graph import threshold

    if release.noise != "distributed" or not clients:
        return None
    members = max(2, clients)
    crew = Hidden(sigma, 1.0, colluders).crew(members)
    if colluders < 0 or crew < 1:
        raise ConfigError(
            f"of {members} members {threshold(members)} must stay, and somebody's noise must hide them:"
            f" --colluders is from 0 to {threshold(members) - 1}, got {colluders}"
        )
    return float(sigma / crew**0.5)


def _warnings(
    found: Any, each: float, population: int | None, clients: int | None, size: int | None
) -> list[str]:
    """`each`: what each of a round's `clients` adds over the clip, where they add noise."""
    from ..privacy import accountant

    if not population:
        return []
    if found.release.noise != "central":  # the sum has the noise of all who are in it
        louder = dataclasses.replace(found.release, sigma=each * (clients or 1) ** 0.5)
        size = None if found.release.noise == "local" else size
        found = dataclasses.replace(found, release=louder)
    return accountant.warnings(found, population, size)


def _of_values(args: argparse.Namespace) -> tuple[Any, str, int | None, int | None, int]:
    from ..core.errors import ConfigError
    from ..privacy import accountant
    from ..privacy.claim import REPLACED

    if args.delta is None:
        raise ConfigError("give --delta: the chance that the promise fails, well below one in all members")
    rows, rate, sampling, sigma = args.unit == "example", args.rate, args.sampling, args.sigma
    if args.colluders is not None and args.noise != "distributed":
        raise ConfigError("--colluders tell noise that clients add: it goes with --noise distributed")
    if rows and sampling != "poisson":
        raise ConfigError("rows are drawn by a coin each: --unit example goes with --sampling poisson")
    if args.noise != "central" and rate is None and not rows:
        rate = 1.0  # sampling hides nobody from who sees whose update it is, or from the other members
    if args.noise == "local" and not rows:
        if rate != 1:
            raise ConfigError(
                "with --noise local the coordinator sees whose update it is, so that being drawn hides no"
                " client: leave --rate out"
            )
        sigma = None if sigma is None else sigma / REPLACED
    found = accountant.plan(
        delta=args.delta,
        epsilon=args.epsilon,
        sigma=sigma,
        rate=rate,
        rounds=args.rounds,
        sampling=sampling,
        population=args.population,
        noise=args.noise,
    )
    made = accountant.cost(found.release, args.delta, seen=not rows)
    return made, args.unit, args.population, None, args.colluders or 0


def _of_job(args: argparse.Namespace) -> tuple[Any, str, int | None, int | None, int]:
    """Its plan and unit, how many members and clients there are, where the file says so, and how many of
    these collude.
    """
    from . import config

    file = config.read(args.job)
    found, claim = file.job.epsilon(), file.job.privacy
    assert claim is not None  # noqa: S101  or it has no epsilon
    clients = file.data.get("clients")
    clients = clients if isinstance(clients, int) else None
    population = claim.population or (clients if claim.unit == "client" else None)
    colluders = getattr(file.job.exchange, "colluders", 0) if args.colluders is None else args.colluders
    return found, claim.unit, population, clients, colluders
