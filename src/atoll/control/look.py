"""`atoll data ...`: what a data set holds, how it would be dealt to clients, how unlike they are."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.registry import build
from ..data import Dataset, Sites, heterogeneity, load_data, partition
from ..simulate.folder import write
from .config import override
from .table import table

Say = Callable[[str], str]


def describe(args: argparse.Namespace, say: Say) -> int:
    """Rows, input, target, sites and missing cells of a data set."""
    found = load(args)
    sites = None if found.sites is None else len(np.unique(found.sites))
    plain = {
        "name": found.name,
        "rows": len(found.train),
        "test_rows": len(found.test or ()),
        "input": list(found.train.x.shape[1:]),
        "task": found.task,
        "classes": list(found.classes),
        "columns": list(found.features),
        "sites": sites,
        "missing": found.missing,
        "source": found.source,
        "licence": found.licence,
    }
    print(json.dumps(plain) if args.json else found)
    return 0


def deal(args: argparse.Namespace, say: Say) -> int:
    """Who gets what: rows and labels of each client; with --out a CSV file each."""
    sites = _deal(args)
    rows: list[dict[str, Any]] = [
        {"client": name, "rows": len(sites[k]), "test_rows": len(sites.tests[k]) if sites.tests else 0}
        | {"labels": _labels(sites, k)}
        for k, name in enumerate(sites.names)
    ]
    if args.out is not None:
        _write(sites, args.out)
    if args.json:
        print(json.dumps({"clients": rows}))
        return 0
    cells = [
        (
            r["client"],
            str(r["rows"]),
            str(r["test_rows"]),
            " ".join(f"{k}:{n}" for k, n in r["labels"].items()),
        )
        for r in rows
    ]
    table([say("client"), say("rows"), say("test rows"), say("labels")], cells)
    return 0


def unlike(args: argparse.Namespace, say: Say) -> int:
    """How unlike the clients are, in figures, and an algorithm to start with; with --draw a picture."""
    found = heterogeneity(_deal(args))
    if args.draw is not None:
        try:
            found.draw(args.draw)
        except OSError as error:
            raise ConfigError(f"cannot write {args.draw}: {error.strerror or error}", "--draw") from None
    advice = found.recommend()
    measures = ("label_tv", "label_js", "label_iid", "gini", "cv", "shift", "one_label")
    plain: dict[str, Any] = {"clients": len(found.names), "rows": int(found.sizes.sum())}
    plain |= {name: getattr(found, name) for name in measures}
    plain |= {"algorithm": advice.algorithm, "reason": advice.reason}
    print(json.dumps(plain, default=float) if args.json else found)
    return 0


def load(args: argparse.Namespace) -> Dataset:
    """The data set that `args.source`, with `args.target` and `args.site`, names."""
    options = {k: v for k, v in (("target", args.target), ("site", args.site)) if v is not None}
    with _options():
        return load_data(args.source, **options)


def _deal(args: argparse.Namespace) -> Sites:
    by: dict[str, Any] = {}
    if args.by is not None:
        by["name"], *values = args.by.split(",")
        for value in values:
            override(by, value, "--by")
    made = build("partition", by, "--by") if by else None
    dataset = load(args)
    with _options():
        return partition(dataset, clients=args.clients, by=made, seed=args.seed)


@contextmanager
def _options() -> Iterator[None]:
    """Errors name options, where in a job file they would name keys."""
    try:
        yield
    except ConfigError as error:
        text = str(error).removeprefix(f"{error.path}: ")
        raise ConfigError(text, error.path.replace("$.name", "DATA").replace("$.", "--")) from None


def _labels(sites: Sites, k: int) -> dict[str, int]:
    if sites.task != "classes":
        return {}
    found, counts = np.unique(sites[k].y, return_counts=True)
    names = [str(sites.classes[int(f)]) if sites.classes else str(int(f)) for f in found]
    return dict(zip(names, map(int, counts), strict=True))


def _write(sites: Sites, out: Path) -> None:
    """One CSV file per client, of its training and then its test rows."""
    columns = list(sites.columns) or [f"x{i}" for i in range(sites.x[0].size)]
    for k, name in enumerate(sites.names):
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, "label"])
        for rows in (sites[k], *sites.tests[k : k + 1]):
            labels = [sites.classes[y] for y in rows.y] if sites.classes else rows.y.tolist()
            flat = rows.x.reshape(len(rows), -1).tolist()
            writer.writerows([*row, label] for row, label in zip(flat, labels, strict=True))
        write(out / f"{name.replace('/', '_')}.csv", text.getvalue().encode())
