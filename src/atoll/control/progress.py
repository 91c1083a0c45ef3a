"""How a run goes: a bar with the time left on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..privacy.hazmat.suite import INTL, suite_of
from .table import size

Record = dict[str, Any]
Watch = Callable[[Record], None]
MILLION = 1_000_000
LINES = 20  # a long run prints no more where there is no terminal


def costs(job: Any, say: Callable[[str], str]) -> None:
    """Say on standard error what a promise of privacy costs; what hides updates, where it is not the usual
    suite; what an update costs and who reads it, where its exchange has to tell.
    """
    if job.privacy is not None:
        print(promised(job.privacy.unit, job.epsilon().epsilon, job.privacy.delta, say), file=sys.stderr)
    if job.crypto != INTL.name:
        print(f"{say('crypto')}: {job.crypto} ({suite_of(job.crypto).says})", file=sys.stderr)
    if not hasattr(job.exchange, "cost"):
        return
    sent, seconds = job.exchange.cost(MILLION)
    took = "" if seconds is None else f", {seconds:.2f} s CPU"
    print(f"{say('a million encrypted numbers')}: {size(sent)}{took}", file=sys.stderr)
    print(f"{say('who reads updates')}: {say(job.exchange.label)}", file=sys.stderr)


def promised(unit: str, epsilon: float, delta: float, say: Callable[[str], str]) -> str:
    """What hides one client, or one row, in a line."""
    whose = say("privacy of each client" if unit == "client" else "privacy of each row")
    return f"{whose}: epsilon {epsilon:.4g}, delta {delta:g}"


@contextmanager
def progress(rounds: int, say: Callable[[str], str], *, quiet: bool) -> Iterator[Watch]:
    """What `simulate(watch=...)` takes: shows each round's record on standard error."""
    if quiet:
        yield lambda record: None
    elif sys.stderr.isatty():
        with _bar(rounds, say) as watch:
            yield watch
    else:
        yield _lines(rounds, say)


def _lines(rounds: int, say: Callable[[str], str]) -> Watch:
    every = max(1, rounds // LINES)

    def watch(record: Record) -> None:
        done = record["round"]
        if record.get("metrics") and (done % every == 0 or done == rounds or record.get("stop")):
            print(f"{say('round')} {done:>4}/{rounds}  {_metrics(record)}", file=sys.stderr, flush=True)

    return watch


@contextmanager
def _bar(rounds: int, say: Callable[[str], str]) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    metrics = TextColumn("{task.fields[metrics]}", style="cyan")
    with Progress(*columns, metrics, console=Console(stderr=True)) as bar:
        task = bar.add_task(say("round"), total=rounds, metrics="")

        def watch(record: Record) -> None:
            bar.update(task, completed=record["round"])
            if record.get("metrics"):
                bar.update(task, metrics=_metrics(record))

        yield watch


def _metrics(record: Record) -> str:
    return "  ".join(f"{n} {v:.4f}" for n, v in record["metrics"].items() if isinstance(v, float))
