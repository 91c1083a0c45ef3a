"""What this machine's sensors say: battery, mains, temperature, whether the link is metered, energy used.

    /sys/class/power_supply    mains, batteries          /sys/class/powercap   energy of processors (RAPL)
    /sys/class/thermal, hwmon  temperatures              nmcli                 NetworkManager on links

Elsewhere than on Linux psutil is asked. `root` is where /sys and /proc stand, for tests. What cannot be read
is None, and what follows from that is decided in power.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..settings import Power
from .power import Seen

Source = Literal["rapl", "battery", "estimate"]
_NMCLI = ("nmcli", "--terse", "--fields", "GENERAL.DEVICE,GENERAL.METERED", "device", "show")
_COLD, _HOT = -40.0, 150.0  # °C; what says otherwise is no temperature


def _command(words: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5.0, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


@dataclass(frozen=True)
class Sensors:
    """`link`: as in the settings; `run`: runs a command and gives its output, "" where that fails."""

    link: str = "auto"
    root: Path = Path("/")
    run: Callable[[tuple[str, ...]], str] = field(default=_command)

    def __call__(self) -> Seen:
        """What they say now; it may block for a moment."""
        mains, battery = self._supply()
        metered = {"metered": True, "free": False}.get(self.link)
        if self.link == "auto":
            metered = self._metered()
        return Seen(mains, battery, max(self._temperatures(), default=None), metered)

    def _supply(self) -> tuple[bool, float | None]:
        folder = self.root / "sys/class/power_supply"
        if not folder.is_dir():
            return _asked() if self.root == Path("/") else (True, None)
        kinds = {place: _text(place / "type") for place in sorted(folder.iterdir())}
        online = [_text(p / "online") == "1" for p, kind in kinds.items() if kind in ("Mains", "USB")]
        batteries = [
            p for p, kind in kinds.items() if kind == "Battery" and _text(p / "scope") != "Device"
        ]  # a mouse has one, too
        charge = [share for p in batteries if (share := _charge(p)) is not None]
        draining = any(_text(p / "status") == "Discharging" for p in batteries)
        return any(online) or not (batteries and (online or draining)), min(charge, default=None)

    def _temperatures(self) -> Iterator[float]:
        places = [
            *(self.root / "sys/class/thermal").glob("thermal_zone*/temp"),
            *(self.root / "sys/class/hwmon").glob("hwmon*/temp*_input"),
        ]
        for place in places:
            value = _number(place)
            if value is not None and _COLD < value / 1000 < _HOT:
                yield value / 1000

    def _metered(self) -> bool | None:
        """Whether NetworkManager says so of the device that the default route leads over."""
        routes = [line.split() for line in _text(self.root / "proc/net/route").splitlines()[1:]]
        devices = {words[0] for words in routes if len(words) > 1 and words[1] == "00000000"}
        said: dict[str, str] = {}
        name = ""
        for line in self.run(_NMCLI).splitlines():
            key, _, value = line.partition(":")
            if key == "GENERAL.DEVICE":
                name = value
            elif key == "GENERAL.METERED":
                said[name] = value
        found = [said.get(device, "unknown") for device in sorted(devices)]
        if any(text.startswith("yes") for text in found):
            return True
        return False if found and all(text.startswith("no") for text in found) else None

    # -- energy ---------------------------------------------------------------------------------

    def energy(self) -> dict[Path, float]:
        """Joules on each processor's counter; {} where there are none, or they may not be read."""
        places = (self.root / "sys/class/powercap").glob("intel-rapl:[0-9]*")
        found = {p: _number(p / "energy_uj") for p in places if p.name.count(":") == 1}
        return {} if None in found.values() else {p: (uj or 0.0) / 1e6 for p, uj in found.items()}

    def drain(self) -> float | None:
        """Watts that the battery gives now, None where it gives none or does not say."""
        for place in sorted((self.root / "sys/class/power_supply").glob("*")):
            if _text(place / "type") == "Battery" and _text(place / "status") == "Discharging":
                power, volts, amps = (_number(place / f"{n}_now") for n in ("power", "voltage", "current"))
                if power is not None:
                    return abs(power) / 1e6
                if volts is not None and amps is not None:
                    return abs(volts * amps) / 1e12
        return None


@dataclass(frozen=True)
class Energy:
    """What a task took, of the whole machine: `source` "rapl" (its processors) or "battery" is measured,
    "estimate" is seconds times the `watts` of the settings.
    """

    joules: float
    source: Source


class Meter:
    """From here on: `used(seconds)` is the energy since, None where nobody can say."""

    def __init__(self, sensors: Sensors, power: Power) -> None:
        self._sensors, self._watts = sensors, power.watts
        self._began, self._drain = sensors.energy(), sensors.drain()

    def used(self, seconds: float) -> Energy | None:
        """After so many seconds of work."""
        ended, drain = self._sensors.energy(), self._sensors.drain()
        if ended and ended.keys() == self._began.keys():
            return Energy(sum(_since(p, self._began[p], ended[p]) for p in ended), "rapl")
        if drain is not None and self._drain is not None:
            return Energy((drain + self._drain) / 2 * seconds, "battery")
        return Energy(self._watts * seconds, "estimate") if self._watts else None


async def metered(
    sensors: Sensors, power: Power, work: Callable[[], Awaitable[Mapping[str, Any]]]
) -> dict[str, Any]:
    """What the work says that it took, with `joules` and their `source` where this machine measures them."""
    meter, began = await asyncio.to_thread(Meter, sensors, power), time.monotonic()
    took = dict(await work())
    used = await asyncio.to_thread(meter.used, time.monotonic() - began)
    if used is None or used.source == "estimate":
        return took
    return {**took, "joules": used.joules, "source": used.source}


def _since(place: Path, began: float, ended: float) -> float:
    """A counter begins anew when it is full."""
    full = 0.0 if ended >= began else (_number(place / "max_energy_range_uj") or 0.0) / 1e6
    return ended - began + full


def _charge(place: Path) -> float | None:
    share = _number(place / "capacity")
    if share is not None:
        return share / 100
    now, full = _number(place / "energy_now"), _number(place / "energy_full")
    return now / full if now is not None and full else None


def _asked() -> tuple[bool, float | None]:
    """What psutil says, where there is no /sys."""
    import psutil

    found = getattr(psutil, "sensors_battery", lambda: None)()
    if found is None:
        return True, None
    return found.power_plugged is not False, found.percent / 100


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
