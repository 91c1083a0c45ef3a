"""The durable state of a coordinator or an edge: one schema, SQLite or PostgreSQL."""

from ...transport.drive import Answered, Closed, Resumed
from .audit import Verdict
from .blobs import Blobs
from .journal import MAIN, Journal
from .runs import FINAL, STATES
from .store import Store

__all__ = ["FINAL", "MAIN", "STATES", "Answered", "Blobs", "Closed", "Journal", "Resumed", "Store", "Verdict"]
