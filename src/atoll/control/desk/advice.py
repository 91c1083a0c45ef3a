"""What a failure at a site most likely means, and what its operator or the run's may do about it.

A traceback names the error on its last line. The table below is read from top to bottom; the first
pattern that stands in that line gives the advice.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Advice(NamedTuple):
    """`cause`: the error in one line. `fix`: what to do, in a sentence."""

    cause: str
    fix: str


_RULES: tuple[tuple[str, str], ...] = (
    (r"ModuleNotFoundError: No module named '(\w+)", "install \\1 at this site, or use a learner it has"),
    (r"no (\w+) is called '([\w.-]+)'", "install the package with the part \\2 at this site"),
    (r"offers no data called", "name the data set in this site's client.toml, or leave the site out"),
    (r"policy|this site (takes part|allows)", "change the job, or ask this site to allow it in client.toml"),
    (
        r"MemoryError|out of memory|Cannot allocate",
        "use a smaller batch or model, or a site with more memory",
    ),
    (r"ENOSPC|No space left|disk is full", "free disk space at this site; it then goes on by itself"),
    (
        r"not finite|diverged|NaN or an infinity",
        "lower the learning rate, or standardise the columns",
    ),
    (r"FileNotFoundError|there is no file", "correct the file's path in this site's client.toml"),
    (r"PermissionError|Permission denied", "let the user that runs the client read this file"),
    (r"DataError", "compare this site's columns, classes and missing cells with the other sites'"),
    (r"CERTIFICATE|certificate", "run atoll doctor at this site: its certificate may have ended"),
    (r"IntegrityError|CodecError", "check the network between; the transfer is tried again by itself"),
    (r"ConfigError|CompositionError", "correct the job as the message says and submit it again"),
    (
        r"Gone|TimeoutError|too late|deadline",
        "see that the site is up and its line fast, or raise deadline",
    ),
    (r"ProtocolError", "upgrade this site's atoll to the coordinator's version; if it stays, drain the site"),
)
_OTHER = "run the job at this site alone (atoll simulate) to see it fail there"


def advise(text: str) -> Advice:
    """The cause and the fix for what a site reported: a reason, or a whole traceback."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    cause = _cause(lines)
    for pattern, fix in _RULES:
        if found := re.search(pattern, cause):
            return Advice(cause, found.expand(fix) if "\\" in fix else fix)
    return Advice(cause, _OTHER)


def _cause(lines: list[str]) -> str:
    """The last line that names an error, else the last line there is."""
    for line in reversed(lines):
        if re.match(r"[\w.]+(Error|Exception|Refused|Gone|Interrupt|Exit)\b", line):
            return line
    return lines[-1] if lines else "no reason was given"
