"""`atoll new DIR`: a small project that runs, with comments where one would change it.

Its data are made up: four factories whose machines run at different loads and fail by one rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..core.errors import StateError
from ..core.rng import Rng
from ..simulate.folder import write

SITES = ("north", "east", "south", "west")
ROWS = 80
_TEMPLATE = Path(__file__).with_name("template")
_FILES = {
    "job.toml": "job.toml",
    "parts.py": "parts.py.txt",
    "README.md": "README.md",
    "client.toml": "client.toml",  # and for real machines
    "topology.toml": "topology.toml",
}


def make(folder: Path) -> list[Path]:
    """Write the project; its files. Raises StateError if the folder holds anything, or cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StateError(f"{folder} is not empty: name a folder that does not exist yet")
    made = []
    for name, template in _FILES.items():
        write(folder / name, (_TEMPLATE / template).read_bytes())
        made.append(folder / name)
    for k, site in enumerate(SITES):
        path = folder / "data" / f"site-{site}.csv"
        write(path, "\n".join(["load,heat,vibration,fails", *_rows(k), ""]).encode())
        made.append(path)
    return made


def _rows(site: int) -> Iterator[str]:
    """Machines of one site as CSV; each site works in another range, the rule is the same."""
    rng = Rng.of(2024).at("starter", site).generator()
    x = rng.normal([0.0, 0.4 * site - 0.6, 0.0], [0.4 + 0.3 * site, 0.6, 1.3 - 0.25 * site], (ROWS, 3))
    strain = x @ [1.5, 1.0, 2.0] + rng.normal(0.0, 0.5, ROWS)
    for (load, heat, vibration), fails in zip(x, strain > 0, strict=True):
        yield f"{load:.3f},{heat:.3f},{vibration:.3f},{'yes' if fails else 'no'}"
