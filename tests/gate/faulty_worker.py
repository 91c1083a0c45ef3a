"""The gate's worker, with faults planted for some requests: what a bug in a parser might do."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from atoll.control.gate import gate_worker
from atoll.control.gate.gate_worker import Case, Verdict

BOMB, HANG, KILL, NONSENSE, WRITE, SLOW, LEAK = range(1000, 1007)
look = gate_worker.look
LEFT: list[bytearray] = []


def faulty(case: Case, tick) -> Verdict:
    match case.want.request:
        case 1000:
            held = [bytearray(64 << 20) for _ in range(64)]  # 4 GiB
            return Verdict(case.number, refused=f"held {len(held)} pieces")
        case 1001:
            threading.Event().wait()
        case 1002:
            os.kill(os.getpid(), signal.SIGKILL)
        case 1003:
            os.write(1, b"\x04\x00\x00\x00what")
        case 1004:
            try:
                Path(case.path).with_name("written").write_bytes(b"x")
            except OSError as error:
                return Verdict(case.number, refused=f"cannot write: {error.strerror}")
        case 1006:
            LEFT.append(bytearray(90 << 20))
        case 1005:
            for _ in range(20):  # longer than the patience, but with signs of life
                threading.Event().wait(0.1)
                tick()
    return look(case, tick)


if __name__ == "__main__":
    gate_worker.look = faulty
    gate_worker.TICK = 0.05
    gate_worker.main(int(sys.argv[1]))
