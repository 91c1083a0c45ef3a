"""A small plant for the tests: a contract, its rules, and what its presses say."""

from atoll.data.contract import Contract
from atoll.privacy.hazmat.suite import suite_of
from atoll.privacy.vault import Vault
from atoll.sense.judge import Rules
from atoll.sense.reading import Reading

TABLE = {
    "name": "press",
    "label": "fails",
    "columns": {
        "heat": {
            "unit": "degC",
            "low": -40,
            "high": 150,
            "stuck": 600,
            "from": {"degF": [5 / 9, -160 / 9]},
        },
        "load": {"missing": True},
        "state": {"kind": "category", "values": ["idle", "run"]},
        "fails": {"kind": "flag"},
    },
}
NOW = 1_800_000_000.0
KEY = b"the client's own key: 32 bytes.."


def contract() -> Contract:
    return Contract.of(TABLE)


def rules(**over) -> Rules:
    made = contract()
    stuck = {name: c.stuck for name, c in made.columns.items() if c.stuck is not None}
    return Rules(made.taken, tuple(made.columns), made.form, stuck, **over)


def vault(crypto: str = "intl") -> Vault:
    return Vault(KEY, suite_of(crypto))


def said(i: int, source: str = "press-7", **over) -> Reading:
    """The i-th thing a press says, one a second; no two alike."""
    values = {"heat": 20.5 + i % 97, "load": i / 8, "state": "run", "fails": i % 5 == 0, **over}
    return Reading(source, NOW + i, str(i), values)
