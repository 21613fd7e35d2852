"""``python -m benchmarks``: start the servers and the load, take turns, print a table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.measure import (
    Bench,
    Cores,
    Server,
    acknowledging_loopback,
    allow_many_files,
    cpu_seconds,
    versions,
)
from benchmarks.report import Row
from benchmarks.scenarios import (
    CROWD_IDS,
    CROWD_PHONES,
    DRIBBLE,
    DRIBBLE_PIECE,
    EXTRAS,
    GROWTH,
    GROWTH_IN_FLIGHT,
    NAMES,
    TRAFFIC,
)

_SERVERS: Final = ("relay", "baseline")
_BEGAN: Final = time.monotonic()


def progress(text: str) -> None:
    """Say on standard error what is going on."""
    sys.stderr.write(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}\n")
    sys.stderr.flush()


def measure_traffic(bench: Bench, given: argparse.Namespace, tls: bool) -> list[dict[str, Any]]:
    """Take rounds in turn, the relay and the baseline one after the other in each."""
    chosen = [traffic for traffic in TRAFFIC if traffic.name in given.only]
    found: list[dict[str, Any]] = []
    if not chosen:
        return found
    transport = _transport(tls)
    with bench.server("relay", tls) as relay, bench.server("baseline", tls) as baseline:
        for number in range(given.rounds):
            for traffic in chosen:
                costs = []
                for server in (relay, baseline):
                    job = asdict(traffic) | {"warm_up": given.seconds / 3, "seconds": given.seconds}
                    scenario = job.pop("name")
                    result = bench.result("traffic", server, **job)
                    costs.append(result["cpu_us"])
                    place = {"scenario": scenario, "transport": transport, "server": server.name}
                    found.append(place | {"round": number} | result)
                progress(
                    f"{transport} round {number + 1}/{given.rounds} {traffic.name}: relay "
                    f"{costs[0]:.1f} us, stock {costs[1]:.1f} us, ratio {costs[0] / costs[1]:.2f}"
                )
    return found


def measure_upgrades(bench: Bench, given: argparse.Namespace, tls: bool) -> list[dict[str, Any]]:
    """Open a crowd on fresh servers, in turn."""
    found = []
    job = {"ids": CROWD_IDS, "phones": CROWD_PHONES, "settle": 0.5}
    if given.quick:
        job["ids"] //= 5
    for number in range(1 if given.quick else min(3, given.rounds)):
        for name in _SERVERS:
            with bench.server(name, tls) as server:
                result = bench.result("upgrades", server, **job)
            place = {"transport": _transport(tls), "server": name, "round": number}
            found.append(place | result)
            progress(
                f"{_transport(tls)} upgrades {name}: {result['cpu_us']:.0f} us each, "
                f"{result['per_second']:.0f}/s, {result['kib']:.1f} KiB per idle connection"
            )
    return found


def measure_storm(bench: Bench, given: argparse.Namespace, tls: bool) -> list[dict[str, Any]]:
    """Kill the relay under a crowd, restart it on the same port, and wait for everyone."""
    server = bench.start("relay", tls)
    servers: list[Server] = [server]
    killed = listening = cpu = 0.0
    row: dict[str, Any] = {}
    try:
        ids = CROWD_IDS // 5 if given.quick else CROWD_IDS
        for row in bench.load("storm", server, ids=ids, phones=CROWD_PHONES):
            if "up" in row:
                killed = time.monotonic()
                server.kill()
                servers.append(bench.start("relay", tls, server.port))
                listening = time.monotonic() - killed
            elif not cpu:
                cpu = cpu_seconds(servers[-1].pid)
    finally:
        for each in servers:
            each.kill()
    row |= {"transport": _transport(tls), "listening": listening, "cpu": cpu}
    row |= {"half": row["half"] - killed, "back": row["back"] - killed}
    progress(f"{row['transport']} storm: all {row['count']} phones back in {row['back']:.2f} s")
    return [row]


def measure_growth(bench: Bench, given: argparse.Namespace, tls: bool) -> list[dict[str, Any]]:
    """Let the crowd grow, and take the cost of a frame at each size, and for few beside it."""
    sizes = GROWTH[:2] if given.quick else GROWTH
    rows = [_grow(bench, given, tls, sizes)]
    if given.quick:
        return rows
    with acknowledging_loopback() as bench.enter:
        if bench.enter:
            rows.append(_grow(bench, given, tls, (sizes[0], sizes[-1])))
        else:
            progress("growth where all is acknowledged at once: no network can be made for it")
    bench.enter = ()
    return rows


def _grow(bench: Bench, given: argparse.Namespace, tls: bool, sizes: Sequence[int]) -> Row:
    job = {
        "connections": sizes,
        "phones": CROWD_PHONES,
        "in_flight": GROWTH_IN_FLIGHT,
        "size": 256,
        "windows": 5,
        "seconds": given.seconds / 2,
    }
    way = _transport(tls) + (", acknowledged at once" if bench.enter else "")
    steps = []
    with bench.server("relay", tls) as few, bench.server("relay", tls) as server:
        job["few"] = {"url": few.url, "pid": few.pid}
        for line in bench.load("growth", server, **job):
            if "connections" in line:
                cost, ratio, segments = report.growth_cost(line)
                progress(
                    f"growth, {way}: {line['connections']} connections, {cost:.1f} us, "
                    f"ratio {ratio:.2f}, {segments:.1f} segments"
                )
            else:
                steps = line["steps"]
    return {"transport": way, "steps": steps}


def measure_dribble(bench: Bench, given: argparse.Namespace, tls: bool) -> list[dict[str, Any]]:
    """Send messages in small pieces, and take the cost of a KiB at each size; plain only."""
    if tls:
        return []
    job = {"sizes": DRIBBLE, "piece": DRIBBLE_PIECE, "messages": 2 if given.quick else 8}
    found = []
    for name in _SERVERS:
        with bench.server(name, tls) as server:
            steps = bench.result("dribble", server, **job)["steps"]
        found.append({"server": name, "steps": steps})
        progress(f"dribble {name}: " + ", ".join(f"{each['cpu_us']:.0f} us/KiB" for each in steps))
    return found


def _transport(tls: bool) -> str:
    return "tls" if tls else "plain"


_EXTRAS: Final[dict[str, Callable[[Bench, argparse.Namespace, bool], list[dict[str, Any]]]]] = {
    "upgrades": measure_upgrades,
    "storm": measure_storm,
    "growth": measure_growth,
    "dribble": measure_dribble,
}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown CPU"


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What a frame costs, as a ratio to stock Autobahn."
    )
    options.add_argument("--quick", action="store_true", help="under a minute, and rough")
    options.add_argument("--rounds", type=int, help="rounds of each scenario [3]")
    options.add_argument("--seconds", type=float, help="seconds of each round [1.5]")
    options.add_argument(
        "--only", action="append", choices=NAMES, help="a scenario; can be repeated [all]"
    )
    options.add_argument("--transport", choices=("plain", "tls", "both"), default="both")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options.add_argument("--plots", type=Path, metavar="DIR", help="draw plots there")
    options.add_argument(
        "--relay-option", action="append", default=[], help="an option for the relay"
    )
    given = options.parse_args(arguments)
    given.only = given.only or list(NAMES)
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.seconds = given.seconds or (0.6 if given.quick else 1.5)
    return given


def main() -> None:
    """Run what was asked for."""
    given = read_options()
    allow_many_files()
    cores = Cores.choose()
    findings: dict[str, Any] = {
        "about": {
            "cpu": _cpu_model(),
            "versions": versions(),
            "cores_apart": cores.apart,
            "rounds": given.rounds,
            "seconds": given.seconds,
        },
        "traffic": [],
        **{name: [] for name in EXTRAS},
    }
    transports = {"plain": [False], "tls": [True], "both": [False, True]}[given.transport]
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        bench = Bench(Path(folder), cores, given.relay_option)
        for tls in transports:
            findings["traffic"] += measure_traffic(bench, given, tls)
        for name in EXTRAS:
            if name in given.only:
                for tls in transports:
                    findings[name] += _EXTRAS[name](bench, given, tls)
    sys.stdout.write("\n".join(report.lines(findings)) + "\n")
    if given.json:
        given.json.write_text(json.dumps(findings, indent=1) + "\n")
    if given.plots:
        report.plot(findings, given.plots)
    progress("done")


if __name__ == "__main__":
    main()
