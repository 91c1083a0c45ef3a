"""How the labels of a store that is opened meet its readings and windows: as they did before, or found anew
where the rule is another.
"""

from __future__ import annotations

from ..core.errors import StateError
from .boxes import Boxes
from .file import File
from .labels import Join, Labels
from .series import Series

_RULE = "the rule that labels join by"
_SERIES = "the rule that windows are labelled by"


def joining(file: File, join: Join | None, *, taking: bool, owner: bool) -> Labels | None:
    """The labels of a store, None where there are none. `taking`: it is written to; `owner`: by its client,
    who alone changes a rule. Raises StateError where another would have to.
    """
    if join is None or not (taking or _has_labels(file)):
        return None
    held = Labels(file.sql, join, file.seal)
    rule, series = file.place(_RULE), file.place(_SERIES)
    if not (taking and owner):
        if taking and rule != join.rule:
            raise StateError("labels join by another rule than before: start the client with it first")
        held.series = None if series is None else Series(file.sql, series[0], series[1], file.device)
        return held
    wanted = None if join.final is None else Series(file.sql, join.form, join.final, file.device)
    if (join.rule, None if wanted is None else wanted.rule) != (rule, series):
        _found(file, held, wanted, anew=rule != join.rule)
    held.series = wanted
    return held


def _found(file: File, held: Labels, series: Series | None, *, anew: bool) -> None:
    """Find whose the labels are, where that is `anew`, and the windows that are labelled."""
    boxes = Boxes(file, None)
    with file.reading() as sql:
        sql.execute("BEGIN IMMEDIATE")
        if anew:
            held.rebuild(boxes.bare())
            file.note(_RULE, held.join.rule)
        if series is not None:
            series.rebuild(boxes.bare())
        file.note(_SERIES, None if series is None else series.rule)
        sql.commit()


def _has_labels(file: File) -> bool:
    """Whether its file has tables for them: who wrote it last may have known of none."""
    with file.reading() as sql:
        return sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'labels'").fetchone() is not None
