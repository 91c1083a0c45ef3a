"""What a challenger must do to win (challenge.py)."""

from __future__ import annotations

import msgspec


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`least`: rows. `margin`: of the champion's mean loss, in [0, 1). `alpha` in (0, 1): the most that
    chance may explain.
    """

    least: int = 60
    margin: float = 0.01
    alpha: float = 0.01
