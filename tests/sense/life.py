"""One life of a node that takes readings in and tells what it acknowledged; it may be killed anywhere.

python -m tests.sense.life FOLDER: sends batches 0..BATCHES-1, from the first that was not acknowledged on.
"""

import sys
from pathlib import Path

from atoll.sense.store import Store, wipe
from tests.sense.plant import NOW, rules, said, vault

BATCHES, SIZE = 6, 40


def main(folder: Path, what: str) -> None:
    if what == "wipe":
        wipe(folder, "press")
        return
    told = folder / "told.txt"
    begin = len(told.read_text().splitlines()) if told.exists() else 0
    with Store.open(folder, "press", vault(), rules(late=60)) as store:
        for batch in range(begin, BATCHES):
            readings = [said(i) for i in range(batch * SIZE, (batch + 1) * SIZE)]
            store.take([*readings, said(batch, heat=999.0)], NOW, {"file": batch})
            with told.open("a") as file:
                file.write(f"{batch}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
