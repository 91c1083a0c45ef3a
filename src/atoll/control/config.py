"""Job files: TOML with names and values, each resolved in the registry and checked by its path.

rounds = 30
[data]
name = "digits"
clients = 20
by = { name = "dirichlet", alpha = 0.3 }
[learner]
name = "softmax"
[algorithm]
name = "fedavg"
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.registry import build, call, nearest, parts
from ..data.contract import Contract
from ..data.divide import partition
from ..data.load import load_data
from ..data.pipeline import Pipeline, Recipe, breaks, by_range
from ..data.sites import Sites
from ..job import Job, placement
from ..privacy.claim import Claim, solved
from ..simulate.faults import World
from .settings import rollout

_PARTS = ("learner", "algorithm", "cohort", "stop", "topology", "exchange")
_VALUES = ("rounds", "every", "deadline", "wait", "max_weight", "sites", "name", "crypto", "compression")
_KEYS = (*_PARTS, *_VALUES, "data", "privacy", "world", "seed", "workers", "rollout")
_SPLIT = ("clients", "by", "holdout", "standardise", "contract", "pipeline")


@dataclass(frozen=True)
class JobFile:
    """A job file that has been read: the `job`, its data's table, world, seed and worker count."""

    job: Job
    data: Mapping[str, Any]
    world: World | None
    seed: int
    workers: int | None
    table: Mapping[str, Any]

    @cached_property
    def contract(self) -> Contract | None:
        """What the rows are to be, None for what they are. Raises ConfigError with the path in it."""
        values = self.data.get("contract")
        if values is None:
            return None
        try:
            return Contract.of(values)
        except ConfigError as error:
            text = str(error).removeprefix(f"{error.path}: ")
            raise ConfigError(text, f"$.data.contract{error.path.removeprefix('$')}") from None

    @cached_property
    def recipe(self) -> Recipe | None:
        """What a pipeline's figures are to be taken from; None where the file says them, or there is none.

        Raises ConfigError with the path in it.
        """
        said = self.data.get("pipeline")
        if not isinstance(said, Mapping) or "steps" in said or self.contract is None:
            return None
        made: Recipe = call(Recipe, said, "$.data.pipeline")
        made.check(self.contract)
        return made

    @property
    def fits(self) -> bool:
        """Whether somebody has to look at rows before there is a pipeline."""
        return self.recipe is not None and (self.recipe.moments or self.recipe.median)

    @cached_property
    def fitting(self) -> Job:
        """The job that looks at them. Raises ConfigError where it cannot."""
        assert self.contract is not None and self.recipe is not None  # noqa: S101, PT018  asked where it fits
        from ..statistics import fitting  # they simulate, which members do not

        return fitting(self.job, self.contract, self.recipe)

    @cached_property
    def pipeline(self) -> Pipeline | None:
        """What members do to raw rows, as far as the file and its contract say it; None where they do not.

        Raises ConfigError with the path in it.
        """
        said = self.data.get("pipeline")
        if said is None:
            return None
        if self.contract is None:
            raise ConfigError("a pipeline goes by a contract: name one", "$.data.contract")
        if said == "range":
            return by_range(self.contract)
        if isinstance(said, Mapping) and "steps" in said:
            made = Pipeline.of(said, "$.data.pipeline")
            if tuple(step.name for step in made.steps) != self.contract.features:
                raise ConfigError("its steps are not the contract's columns", "$.data.pipeline.steps")
            return made
        if self.recipe is not None:
            return None if self.fits else self.recipe.made(self.contract, None, None, None)
        raise ConfigError('expected "range", or a table of fill, scale and encode', "$.data.pipeline")

    def _kept(self, sites: Sites) -> Sites:
        """The sites once they keep the contract and their rows went through the pipeline."""
        contract, pipeline = self.contract, self.pipeline
        if contract is None:
            return sites
        for name, rows in zip(sites.names, sites, strict=True):
            if reason := breaks(rows, sites.classes, contract):
                raise DataError(f"site {name!r} does not keep the contract {contract.name!r}: {reason}")
        if self.recipe is not None and pipeline is None:
            from ..statistics import fit_pipeline

            pipeline = fit_pipeline(sites, contract, **asdict(self.recipe))
        return sites if pipeline is None else pipeline.sites(sites)

    def sites(self, *, raw: bool = False) -> Sites:
        """Load the data and deal it to clients, by the file's seed; `raw`: before its pipeline."""
        table = dict(self.data)
        table.pop("contract", None)
        table.pop("pipeline", None)
        split = {k: table.pop(k) for k in _SPLIT if k in table}
        if "name" not in table:
            raise ConfigError('name the data, as in name = "digits"', "$.data.name")
        _known(table)
        try:
            dataset = load_data(table.pop("name"), **table)
            if "by" in split:
                split["by"] = build("partition", split["by"], "$.by")
            scale = split.pop("standardise", None)
            dealt = partition(dataset, seed=self.seed, **split)
            if scale is not None:
                from ..statistics import standardise

                dealt = standardise(dealt, scale)
            return dealt if raw else self._kept(dealt)
        except ConfigError as error:  # its path starts at the data
            text = str(error).removeprefix(f"{error.path}: ")
            raise ConfigError(text, f"$.data{error.path.removeprefix('$')}") from None


def _known(table: Mapping[str, Any]) -> None:
    """Refuse a key that neither the data set nor the division among clients takes."""
    for part in parts("data"):
        if part.name == table["name"]:
            takes = [*signature(part.make).parameters, *_SPLIT]
            for key in table:
                if key != "name" and key not in takes:
                    raise ConfigError(f"unknown key {key!r}: {nearest(key, takes)}", f"$.data.{key}")


def read(path: Path, changes: Sequence[str] = ()) -> JobFile:
    """Read a job file; `changes` are "key.path=value" overrides, values in TOML.

    Raises ConfigError that names the file, the path in it and the nearest valid name.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file {path}: give the path of a job file, or make one with atoll new"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for change in changes:
        override(table, change)
    data = table.get("data")
    if isinstance(data, dict) and isinstance(data.get("contract"), str):  # it travels with the job
        data["contract"] = Contract.read(path.parent / data["contract"]).table()
    return parse(table)


def parse(table: Mapping[str, Any]) -> JobFile:
    """A job from the values of a job file. Raises ConfigError with the path of what is wrong."""
    for key in table:
        if key not in _KEYS:
            advice = "it stands under [data]" if key in _SPLIT else nearest(key, _KEYS)
            raise ConfigError(f"unknown key {key!r}: {advice}", f"$.{key}")
    if "learner" not in table:
        raise ConfigError('a job needs a learner, as in [learner] name = "softmax"', "$.learner")
    for key in (*_PARTS, "data", "world"):
        if key in table and not isinstance(table[key], (str, Mapping)):
            raise ConfigError(f"expected a table or a name, got {table[key]!r}", f"$.{key}")
    name = table.get("name", "job")
    if not isinstance(name, str) or not name.strip(". ") or {"/", "\\"} & set(name):
        raise ConfigError(f"a name is text that can name a folder, without slashes, got {name!r}", "$.name")
    made = {key: build(key, table[key], f"$.{key}") for key in _PARTS if key in table}
    made |= {key: table[key] for key in _VALUES if key in table}
    world = build("world", {"name": "world", **table["world"]}, "$.world") if "world" in table else None
    data = table.get("data", {})
    if "rollout" in table:
        rollout(table["rollout"])  # of machines: a simulation serves nobody
    made_file = JobFile(
        _promised(Job(**made), table.get("privacy")),
        {"name": data} if isinstance(data, str) else data,
        world,
        _whole(table, "seed", 0, -(2**63)) or 0,
        _whole(table, "workers", None, 1),
        table,
    )
    _ = made_file.pipeline, made_file.contract  # wrong ones are refused before anything runs
    _ = made_file.fits and made_file.fitting
    if made_file.job.privacy is not None and "standardise" in made_file.data:
        raise ConfigError(
            "the job promises privacy, and no noise covers the figures that standardise takes of rows: use"
            ' a contract and pipeline = "range", or leave it out',
            "$.data.standardise",
        )
    return made_file


def _promised(job: Job, table: Any) -> Job:
    """The job with the promise of its table: one that says its sigma is taken at its word."""
    if table is None:
        return job
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a table with epsilon, delta and clip, got {table!r}", "$.privacy")
    claim = call(Claim, {"sigma": 1.0, "noise": placement(job.exchange), **table}, "$.privacy")
    if "sigma" not in table:
        claim = solved(claim, job.cohort, job.rounds)
    return dataclasses.replace(job, privacy=claim, sites=False)


def override(table: dict[str, Any], change: str, where: str = "--set") -> None:
    """Set `a.b.c=value` in a nested table; a value that is not TOML is taken as text.

    Raises ConfigError, naming `where` the change came from, if it is none.
    """
    path, found, text = change.partition("=")
    if not found or not path:
        raise ConfigError(f"{where} takes key=value, as in algorithm.mu=0.01, got {change!r}")
    *above, last = path.strip().split(".")
    for key in above:
        inner = table.setdefault(key, {})
        if not isinstance(inner, (str, dict)):
            raise ConfigError(f"{where} {change}: {key} is a value and has nothing inside")
        table[key] = table = {"name": inner} if isinstance(inner, str) else inner
    try:
        table[last] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        table[last] = text.strip()


def flat(table: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """(key.path, value as TOML) of every value of a nested table, in its order."""
    found = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{above}{key}.")
        else:
            found.append((above + key, _toml(value)))
    return found


def dump(table: Mapping[str, Any]) -> str:
    """The table as a TOML file of dotted keys: `override` reads each line again."""
    return "".join(f"{key} = {value}\n" for key, value in flat(table))


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _whole(table: Mapping[str, Any], key: str, default: int | None, least: int) -> int | None:
    value = table.get(key, default)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ConfigError(f"expected a whole number, at least {least}, got {value!r}", f"$.{key}")
    return value


def own_parts(path: Path) -> None:
    """Load a file the user named on the command line: it registers parts of their own."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: --parts takes a Python file")
    spec = importlib.util.spec_from_file_location("own_parts", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: --parts takes a *.py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_parts"] = module
    spec.loader.exec_module(module)
