"""The process that learns, counting how often each failpoint is reached: written to a file when it ends.

python -m tests.federation.learner FILE
"""

import json
import os
import sys
from pathlib import Path

from atoll.control.engine import learner
from atoll.wire import failpoint

MANY = 10**9


def main(file: Path) -> None:
    failpoint.arm(",".join(f"{name}:{MANY}:kill" for name in failpoint.NAMES))
    end = os._exit

    def ended(code: int) -> None:
        file.write_text(json.dumps(reached()))
        end(code)

    os._exit = ended
    learner.main()


def reached() -> dict[str, int]:
    return {name: MANY - place.left for name, place in failpoint._armed.items() if place.left < MANY}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
