"""A job made in Python as the table of a job file: what a federation can be sent.

Only names and values travel, so each part of the job must be one that can be named: the table is
made from the part's own values, built again as the other side will build it, and compared with the
part one has. What does not come out the same is refused here, before anything is sent.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ...core.errors import AtollError, ConfigError
from ...core.registry import Part, build, parts
from ...job import Job
from ...learn.algorithm import Algorithm
from ...learn.exchange import Plain

_PARTS = ("learner", "algorithm", "cohort", "stop", "topology")
_VALUES = ("rounds", "every", "deadline", "wait", "max_weight", "sites", "name", "crypto")
_PLAIN = (bool, int, float, str, list, tuple, dict)


def table(job: Job) -> dict[str, Any]:
    """The job file's values. Raises ConfigError, with the path, for a part that no name stands for."""
    found: dict[str, Any] = {}
    for kind in _PARTS:
        value = getattr(job, kind)
        if value is not None:
            found[kind] = _named(kind, value)
    if not isinstance(job.exchange, Plain):
        found["exchange"] = _named("exchange", job.exchange)
    if job.compression != "none":  # members of versions before it know no such key
        found["compression"] = job.compression
    if job.privacy is not None:
        found["privacy"] = job.privacy.values()
    return found | {key: value for key in _VALUES if (value := getattr(job, key)) is not None}


def _named(kind: str, value: Any) -> dict[str, Any]:
    found = []
    for part in parts(kind):
        if isinstance(value, Algorithm) and part.name != value.name:
            continue
        given = {"name": part.name, **_values(part, value)}
        try:
            same = _text(build(kind, given)) == _text(value)
        except AtollError:
            continue
        if same:
            found.append(given)
    if found:
        return min(found, key=len)  # softmax, rather than an mlp without hidden layers
    raise ConfigError(
        f"no installed {kind} makes this {type(value).__name__}, and code does not travel: register a"
        f' function that makes it with @part("{kind}") in a package that all sites install,'
        " and name it in a job file",
        f"$.{kind}",
    )


def _values(part: Part, value: Any) -> dict[str, Any]:
    """What the part's own parameters may have been: attributes of their names, but for its defaults."""
    takes = inspect.signature(part.make).parameters
    held: Mapping[str, Any] = value.values if isinstance(value, Algorithm) else _fields(value)
    found = {}
    for name, parameter in takes.items():
        mine = getattr(held.get(name), "table", held.get(name))  # a part that another takes says it itself
        if name in held and mine != parameter.default and mine is not None and isinstance(mine, _PLAIN):
            found[name] = list(mine) if isinstance(mine, tuple) else mine
    return found


def _fields(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dict(getattr(value, "__dict__", {}))


def _text(value: Any) -> str:
    if isinstance(value, Algorithm):
        return f"{value} {value.chain}"
    return f"{type(value).__qualname__} {value!r}"
