"""A real coordinator or client that knows the part `instant`.

python -m bench.member coordinator|client FILE.toml
"""

from __future__ import annotations

import sys
from pathlib import Path

from atoll.control import settings

from . import instant  # noqa: F401  registers the part


def main(role: str, config: str) -> int:
    """Run that member with the settings in a file."""
    if role == "coordinator":
        from atoll.control.engine import coordinator

        return coordinator.main(settings.read(Path(config), settings.Server))
    from atoll.control.engine import agent

    return agent.main(settings.read(Path(config), settings.Client))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
