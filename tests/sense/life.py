"""One life of a node that takes readings in and tells what it acknowledged; it may be killed anywhere.

python -m tests.sense.life FOLDER take: sends batches 0..BATCHES-1, from the first unacknowledged on.
python -m tests.sense.life FOLDER label: takes all readings, then labels in batches, all from the first on.
python -m tests.sense.life FOLDER folder: reads FOLDER/in until no file is left there.
python -m tests.sense.life FOLDER mqtt:PORT: listens to a broker for ever, for labels too.
python -m tests.sense.life FOLDER wipe: wipes the store.
python -m tests.sense.life FOLDER replay: judges again what is aside, by a contract that takes more heat.
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from atoll.sense.folder import watch
from atoll.sense.intake import Feed
from atoll.sense.judge import Rules
from atoll.sense.labels import Join
from atoll.sense.mqtt import listen
from atoll.sense.place import wipe
from atoll.sense.reading import Reading
from atoll.sense.source import Folder, Mqtt
from atoll.sense.store import Store
from tests.sense.plant import NOW, contract, rules, said, vault

BATCHES, SIZE = 6, 40
FINAL = 5.0


def join(**over) -> Join:
    made = contract()
    values = {
        "form": made.form,
        "place": 3,
        "number": made.columns["fails"].number,
        "column": "fails",
        **over,
    }
    return Join(**values)


def main(folder: Path, what: str) -> None:
    if what == "wipe":
        wipe(folder, "press")
        return
    if what.startswith("mqtt:"):
        asyncio.run(listening(folder, int(what.removeprefix("mqtt:"))))
    if what == "replay":
        more = contract()
        heat = msgspec.structs.replace(more.columns["heat"], high=500.0)
        made = msgspec.structs.replace(more, columns={**more.columns, "heat": heat})
        with Store.open(folder, "press", vault(), Rules(made.taken, tuple(made.columns), made.form)) as store:
            store.replay(NOW)
        return
    if what == "label":
        labelling(folder)
        return
    if what == "folder":
        asyncio.run(emptied(folder))
        return
    told = folder / "told.txt"
    begin = len(told.read_text().splitlines()) if told.exists() else 0
    with Store.open(folder, "press", vault(), rules(late=60)) as store:
        for batch in range(begin, BATCHES):
            readings = [said(i) for i in range(batch * SIZE, (batch + 1) * SIZE)]
            store.take([*readings, said(batch, heat=999.0)], NOW, {"file": batch})
            with told.open("a") as file:
                file.write(f"{batch}\n")


def labelling(folder: Path) -> None:
    with Store.open(folder, "press", vault(), rules(late=FINAL), join=join(final=FINAL)) as store:
        everything = range(BATCHES * SIZE)
        store.take([said(i, fails=None) for i in everything], NOW)
        for begin in everything[::SIZE]:
            some = [
                Reading("press-7", NOW, str(i), {"fails": i % 3 == 0}) for i in range(begin, begin + SIZE)
            ]
            store.label([*some, Reading("press-7", NOW, "x", {"fails": "broken"})], NOW)


async def emptied(folder: Path) -> None:
    with Store.open(folder, "press", vault(), rules()) as store:
        feed = Feed(store, pause=0.0)
        running = asyncio.create_task(feed.run())
        watching = asyncio.create_task(watch(Folder(path=".", every=0.01), folder / "in", feed))
        while [*(folder / "in").glob("*.csv")]:  # noqa: ASYNC110  what other tasks do
            await asyncio.sleep(0.01)
        watching.cancel()
        running.cancel()


async def listening(folder: Path, port: int) -> None:
    with Store.open(folder, "press", vault(), rules(), join=join(final=0.0)) as store:
        feed = Feed(store, clock=lambda: NOW, pause=0.0)
        told = Feed(store, clock=lambda: NOW, pause=0.0, of=feed)
        said, labels = (
            Mqtt(url=f"mqtt://127.0.0.1:{port}", topic=f"plant/{{source}}/{what}")
            for what in ("data", "label")
        )
        ways = listen(said, folder, feed, "node"), listen(labels, folder, told, "node-labels")
        await asyncio.gather(*ways, feed.run(), told.run())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
