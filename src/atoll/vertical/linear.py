"""Linear regression on split columns: the guest holds labels and some columns, the host the others.

PLAIN: NOTHING IS HIDDEN HERE. The host sees every residual, the guest every partial prediction;
from enough of them each can work out the other's columns. It shows that the world carries a
two-party protocol; use it only among parties who may see each other's data.

Conjugate gradients on the normal equations (Hestenes, Stiefel 1952, "Methods of conjugate gradients
for solving linear systems", §10, in the form called CGLS), X = [Xg, Xh] split by columns:

    q = Xg pg + Xh ph          a = gamma / |q|²        w += a p        r -= a q
    s = X' r, by each party    gamma' = |sg|² + |sh|²  p = s + (gamma' / gamma) p

It minimises |y - Xw|² and ends at the pooled least-squares solution, after at most as many steps as
there are columns but for rounding. Each step the guest sends r (n,) and two numbers, the host Xh ph
(n,) and one number. The guest's intercept is a column of ones. Both roles stand here side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..core.errors import DataError
from ..core.protocol import Party
from ..core.update import Array


class Fit(NamedTuple):
    """`w`: the guest's coefficients (columns,), `intercept`, `steps` taken."""

    w: Array
    intercept: float
    steps: int


async def guest(
    p: Party, X: Array, y: Array, host: str, *, tol: float = 1e-12, steps: int | None = None
) -> Fit:
    """The guest's role: X (n, d) its columns, y (n,) the labels.

    Ends when |X'r| has fallen to `tol` times its first size, or after `steps` (None: four times the
    columns of both). Raises DataError where the parties' rows differ, Gone if the host stops.
    """
    X = np.column_stack([np.ones(len(X)), _table(X)])
    r = np.asarray(y, np.float64)
    if r.shape != (len(X),):
        raise DataError(f"labels must be one for each of the {len(X)} rows, got shape {r.shape}")
    await p.send(host, "rows", len(X))
    steps = steps or 4 * (X.shape[1] + await p.recv(host, "columns"))
    w, pg = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    gamma = first = 0.0
    for step in range(steps + 1):
        await p.send(host, "residual", r)  # (n,)
        s = X.T @ r
        new = float(s @ s) + await p.recv(host, "size")
        first = first or new
        beta = new / gamma if gamma else 0.0
        over = new <= tol**2 * first or step == steps
        await p.send(host, "direction", None if over else beta)
        if over:
            break
        gamma, pg = new, s + beta * pg
        q = X @ pg + await p.recv(host, "prediction")  # (n,)
        a = gamma / float(q @ q)
        await p.send(host, "length", a)
        w, r = w + a * pg, r - a * q
    return Fit(w[1:], float(w[0]), step)


async def host(p: Party, X: Array, guest: str) -> Array:
    """The host's role: X (n, d) its columns; its coefficients (d,)."""
    X = _table(X)
    rows = await p.recv(guest, "rows")
    if rows != len(X):
        raise DataError(f"the guest has {rows} rows and the host {len(X)}: align them first")
    await p.send(guest, "columns", X.shape[1])
    w, ph = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    while True:
        s = X.T @ await p.recv(guest, "residual")
        await p.send(guest, "size", float(s @ s))
        beta = await p.recv(guest, "direction")
        if beta is None:
            return w
        ph = s + beta * ph
        await p.send(guest, "prediction", X @ ph)
        w = w + await p.recv(guest, "length") * ph


def _table(X: Array) -> Array:
    table = np.asarray(X, np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise DataError(f"columns must be a table of finite numbers, got shape {table.shape}")
    return table
