"""`atoll predict`, `fed.predict`: rows to a client's prediction service, or through an ONNX model here."""

from __future__ import annotations

import csv
import http.client
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from ...core.errors import ConfigError, DataError, Gone, Refused, StateError
from ..pinning import loopback

TIMEOUT = 30.0  # seconds
MOST = 64 << 20  # bytes of an answer
BATCH = 256  # rows of one request


def predict(rows: Any, at: str | None, model: Path | None, leave: Sequence[str] = ()) -> dict[str, Any]:
    """{predictions, model} of a CSV file's rows or of rows of numbers: by a service, or by a file here; and
    `classes`, where predictions are their numbers and the model names them.

    Raises as `read_rows`, and `ask` or `local`.
    """
    if (at is None) == (model is None):
        raise ConfigError(
            "predict by a client's service (--at URL) or by a file (--model FILE.onnx): give one"
        )
    wanted = read_rows(Path(rows), leave) if isinstance(rows, (str, Path)) else _rows(rows)
    if at is None:
        return local(cast("Path", model), wanted)
    found = ask(at, wanted)
    one = {key: (found["model"] or {}).get(key) for key in ("name", "version")}
    listed: list[dict[str, Any]] = []
    with suppress(Gone):  # a service of another make tells no names
        listed = models(at)
    of = next((m for m in listed if one.items() <= m.items()), {})
    return found | _named(of.get("classes", ()), found["predictions"])


def _named(classes: Sequence[str], predictions: Sequence[Any]) -> dict[str, Any]:
    numbers = all(isinstance(p, int) and 0 <= p < len(classes) for p in predictions)
    return {"classes": list(classes)} if classes and numbers else {}


def _rows(rows: Any) -> list[Any]:
    try:
        found = np.asarray(rows, np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim < 2 or not found.size or not np.isfinite(found).all():
        raise DataError("expected rows of finite numbers, as in [[1.0, 2.0], [3.0, 4.0]], or a CSV file")
    return list(found.tolist())


def read_rows(path: Path, leave: Sequence[str] = ()) -> list[list[float]]:
    """The rows of a CSV file with a header (`-`: standard input), without the columns in `leave`.

    Raises DataError, naming the column, for what is no finite number; ConfigError for no such column.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: give a CSV file with a header ({error})") from None
    head, *lines = [row for row in csv.reader(text.splitlines()) if row] or [[]]
    for name in leave:
        if name not in head:
            raise ConfigError(f"{path} has no column {name!r}: it has {', '.join(head[:20])}")
    kept = [k for k, name in enumerate(head) if name not in leave]
    if not lines or not kept:
        raise DataError(f"{path} holds no rows: expected a header and at least one line below it")
    return [[_number(row, k, head, at) for k in kept] for at, row in enumerate(lines, 2)]


def _number(row: Sequence[str], k: int, head: Sequence[str], line: int) -> float:
    try:
        value = float(row[k])
    except (ValueError, IndexError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"line {line}, column {head[k]!r}: expected a finite number; leave the column out with --leave"
        )
    return value


def ask(url: str, rows: Sequence[Sequence[float]], ticket: str = "") -> dict[str, Any]:
    """{predictions, model} of the prediction service at `url`. `ticket`: by which `tell` names them.

    Raises Gone where nobody answers, Refused with its reason where it refuses the rows.
    """
    found: list[Any] = []
    model: Any = None
    more = {"ticket": ticket} if ticket else {}
    for batch in _batches(rows):
        values = _post(url, "/v1/predict", {"rows": batch, **more})
        try:
            found += _first(values["predictions"])
        except (KeyError, TypeError):
            raise Gone(f"no prediction service answers at {url}") from None
        model = values.get("model")
    return {"predictions": found, "model": model}


def tell(url: str, ticket: str, labels: Sequence[float]) -> bool:
    """The truth of rows asked about; whether it counted, for a model on trial. Raises as `ask`."""
    return bool(_post(url, "/v1/feedback", {"ticket": ticket, "labels": list(labels)}).get("counted"))


def _post(url: str, path: str, body: Any) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"expected the URL of a prediction service, as in http://127.0.0.1:9000, got {url!r}"
        )
    if parts.scheme == "http" and not loopback(parts.hostname):
        raise ConfigError(f"{url} would send rows in the clear: predict at the site itself, or over https://")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
    try:
        connection.request("POST", path, json.dumps(body), _JSON)
        answer = connection.getresponse()
        text = answer.read(MOST)
        if answer.status != 200:
            raise Refused(_reason(text, answer.status))
        return dict(json.loads(text))
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        raise Gone(f"no prediction service answers at {url}: {error}; see `predict` in client.toml") from None
    finally:
        connection.close()


def _first(predictions: Any) -> list[Any]:
    """A model's first answer for each row: the label, the number; its scores stand beside."""
    if isinstance(predictions, dict):
        predictions = predictions.get("label") or next(iter(predictions.values()))
    return list(predictions)


def models(url: str) -> list[dict[str, Any]]:
    """The models that a prediction service serves: name, version. Raises Gone where nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/v1/models")
        return list(json.loads(connection.getresponse().read(MOST))["models"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise Gone(f"no prediction service answers at {url}: {error}; see `predict` in client.toml") from None
    finally:
        connection.close()


_JSON = {"Content-Type": "application/json"}


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _reason(body: bytes, status: int) -> str:
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return f"the prediction service answered with status {status}"


def local(path: Path, rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The same from an ONNX file here. Raises ConfigError for a file that holds no model for such rows."""
    from ...serve.model import Model

    try:
        made = Model(path.read_bytes(), str(path))
        found = next(iter(made.run(np.asarray(rows, np.float32)).values())).tolist()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except StateError as error:
        raise ConfigError(f"{path} does not take these rows of {len(rows[0])} numbers: {error}") from None
    model = {"name": path.stem, "version": None}
    return {"predictions": found, "model": model} | _named(made.classes, found)
