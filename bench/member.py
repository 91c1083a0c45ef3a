"""A real coordinator that knows the part `instant`: python -m bench.member FILE.toml"""

from __future__ import annotations

import sys
from pathlib import Path

from atoll.control import settings
from atoll.control.engine import coordinator

from . import instant  # noqa: F401  registers the part


def main(config: str) -> int:
    """Run it with the settings in a file."""
    return coordinator.main(settings.read(Path(config), settings.Server))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
