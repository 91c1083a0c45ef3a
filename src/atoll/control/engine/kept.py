"""What the gate let through, as text for the journal: a restart folds from it and asks the gate nothing."""

from __future__ import annotations

import msgspec

from ...wire.body import Checked, Section, layout_of
from ...wire.values import Values


class _Kept(msgspec.Struct):
    values: Values
    sections: list[Section]
    leaves: list[tuple[str, list[int]]]


def plain_kept(checked: Checked) -> str:
    """As JSON."""
    leaves = [(name, list(shape)) for name, shape in checked.layout.leaves]
    return msgspec.json.encode(_Kept(checked.values, list(checked.sections), leaves)).decode()


def kept_plain(text: str) -> Checked:
    """From `plain_kept`."""
    kept = msgspec.json.decode(text, type=_Kept)
    return Checked(kept.values, kept.sections, layout_of(kept.leaves))
