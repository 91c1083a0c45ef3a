"""A site's own say: whether it takes part in a piece of work. It decides; nobody above can overrule it.

refusal(policy, asked) -> the reason why not, "" for yes
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...core.errors import ConfigError
from ..settings import Policy


@dataclass(frozen=True)
class Asked:
    """What a policy may look at. `cohort`: members of this round; `rows`: rows of this site in it;
    `round`: from 0; `minute`: local minutes since midnight; `epsilon`: what the run would spend in all,
    None where it adds no noise; `summed`: whether others see sums of updates only; `crypto`: the suite that
    hides them.
    """

    job: str
    learner: str
    algorithm: str
    cohort: int
    rows: int
    round: int
    minute: int
    evaluate: bool = False
    epsilon: float | None = None
    summed: bool = False
    crypto: str = "intl"


def refusal(policy: Policy, asked: Asked) -> str:
    """Why this site refuses, in a sentence that its operator and the run's can act on; "" if it does not."""
    if reason := _unnamed(policy, asked):
        return reason
    if not asked.evaluate and asked.cohort < policy.min_cohort:
        return f"this site takes part in rounds of at least {policy.min_cohort}, this one has {asked.cohort}"
    if policy.max_rows is not None and asked.rows > policy.max_rows:
        return f"this site's policy lets {policy.max_rows} rows be trained on, this data set has more"
    if policy.max_rounds is not None and asked.round >= policy.max_rounds:
        return f"this site's policy ends a run after {policy.max_rounds} rounds"
    if policy.max_epsilon is not None and (asked.epsilon is None or asked.epsilon > policy.max_epsilon):
        spent = "no privacy bound" if asked.epsilon is None else f"epsilon {asked.epsilon:g}"
        return f"this site allows epsilon up to {policy.max_epsilon:g}, the job has {spent}"
    if policy.secure_sum and not asked.summed:
        return 'this site shows its updates to nobody: it takes part where exchange = "secure_sum"'
    if asked.crypto not in policy.crypto:
        required = " or ".join(policy.crypto) or "that nobody has"
        return f"this site's policy requires crypto {required}, the job has {asked.crypto}"
    if policy.hours and not inside(policy.hours, asked.minute):
        return f"this site takes part from {policy.hours.replace('-', ' to ')} local time"
    return ""


def _unnamed(policy: Policy, asked: Asked) -> str:
    """Why it runs nothing of these names."""
    if asked.learner == "plan" and not policy.plans:
        return (
            "this site runs no plans, which are networks that others have written:"
            " its operator may set plans = true under [policy]"
        )
    named = (("job", asked.job, policy.jobs), ("learner", asked.learner, policy.learners))
    for what, name, allowed in (*named, ("algorithm", asked.algorithm, policy.algorithms)):
        if not any(fnmatchcase(name, pattern) for pattern in allowed):
            return f"this site's policy allows no {what} {name!r}; it allows {', '.join(allowed) or 'none'}"
    return ""


def inside(hours: str, minute: int) -> bool:
    """Whether a minute of the day lies in "22:00-06:00"; the end is not included.

    Raises ConfigError for another form.
    """
    try:
        begin, end = (_minute(text) for text in hours.split("-"))
    except ValueError:
        raise ConfigError(f"hours are written 22:00-06:00, got {hours!r}", "$.policy.hours") from None
    return begin <= minute < end if begin <= end else minute >= begin or minute < end


def closed(hours: str, minute: int) -> int:
    """Minutes until `hours` begin, 0 while they last."""
    if not hours or inside(hours, minute):
        return 0
    return (_minute(hours.split("-", maxsplit=1)[0]) - minute) % 1440


def _minute(text: str) -> int:
    hour, minute = map(int, text.strip().split(":"))
    if not (0 <= hour <= 24 and 0 <= minute < 60):
        raise ValueError(text)
    return hour * 60 + minute
