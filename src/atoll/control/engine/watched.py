"""What clients say of their watch, as a coordinator keeps it; and when enough ask for a federated run.

letter "watch" ─► read ─► events in the chained log, the state beside the member's session
                             └─► due: [renew.MODEL] of coordinator.toml says which job to submit
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..settings import Rerun
from ..store.store import Store
from .finished import slug

KINDS = ("calibrated", "raised", "cleared", "fault", "mended", "renewed", "kept", "asked")
OPEN = ("queued", "running", "paused", "stopping")
_MOST, _TEXT = 64, 200  # events and columns of one letter, characters


def read(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """{source, model, version, own, raised, score, asked, events: (number, kind, body)}; None for none."""
    model, score, events = said.get("model"), said.get("score"), said.get("events")
    if not isinstance(model, Mapping) or not isinstance(events, list) or not _number(score):
        return None
    counts = [model.get("version"), model.get("own"), said.get("asked")]
    if not all(isinstance(n, int) and 0 <= n <= 2**53 for n in counts):
        return None
    raised = said.get("raised")
    return {
        "source": str(said.get("source", ""))[:_TEXT],
        "model": str(model.get("name", ""))[:_TEXT],
        "version": counts[0],
        "own": counts[1],
        "asked": counts[2],
        "raised": [str(n)[:_TEXT] for n in raised[:_MOST]] if isinstance(raised, list) else [],
        "score": round(float(score), 4),  # type: ignore[arg-type]
        "events": [found for one in events[:_MOST] if (found := _event(one)) is not None],
    }


def _event(said: Any) -> tuple[int, str, dict[str, Any]] | None:
    if not isinstance(said, Mapping) or said.get("kind") not in KINDS:
        return None
    number, figures = said.get("number"), said.get("figures")
    if not isinstance(number, int) or not 0 < number <= 2**53:
        return None
    plain = figures if isinstance(figures, Mapping) else {}
    body: dict[str, Any] = {key: str(said.get(key, ""))[:_TEXT] for key in ("what", "why")}
    kept = {str(k)[:40]: round(float(v), 6) for k, v in list(plain.items())[:_MOST] if _number(v)}
    score = said.get("score")
    return number, str(said["kind"]), {**body, "score": score if _number(score) else 0.0, "figures": kept}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def due(rule: Rerun, model: str, told: Mapping[str, Mapping[str, Any]], store: Store, now: float) -> bool:
    """Whether to submit the rule's job. `told`: by member, what `read` made of its last letter.

    Members that ask about a version which is not the newest have not heard of the newest yet. A run of the
    same job that is open, or was submitted less than `pause` seconds ago, is waited for.
    """
    newest = max((m["version"] for m in store.models(model)), default=0)
    asking = [name for name, said in told.items() if said["model"] == model and said["asked"] == newest > 0]
    if len(asking) < rule.nodes:
        return False
    runs = [run for run in store.runs() if slug(run["name"]) == model]
    return not any(run["state"] in OPEN or run["created"] > now - rule.pause for run in runs)
