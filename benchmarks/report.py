"""What a run found: tables for people, and plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.scenarios import DRIBBLE_PIECE, GROWTH, GROWTH_IN_FLIGHT, TRAFFIC

Findings = dict[str, Any]
Row = dict[str, Any]

_TRANSPORTS: Final = ("plain", "tls")

CROWDED: Final = 0.05
"""Share of the time that a server may wait for its core before its figures are in doubt."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield a Markdown table's lines, with columns that line up."""
    texts = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for number, row in enumerate(texts):
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def middle(rows: Sequence[Row], key: str) -> float:
    """Return the median of one figure."""
    return float(median(row[key] for row in rows))


def _rounds(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def lines(findings: Findings) -> Iterator[str]:
    """Yield the whole report, line by line."""
    about = findings["about"]
    yield f"{about['cpu']}; " + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    yield "server and load on " + ("a core each" if about["cores_apart"] else "ONE core together")
    waited = [row["waited"] for row in findings["traffic"]]
    if waited and median(waited) > CROWDED:
        yield f"CROWDED: the servers waited {median(waited):.0%} of the time for their core;"
        yield "give the benchmark a machine of its own"
    for part in (_traffic, _tls_price, _upgrades, _storm, _growth, _dribble):
        text = list(part(findings))
        while text and not text[-1]:
            text.pop()
        if text:
            yield ""
            yield from text


def _traffic(findings: Findings) -> Iterator[str]:
    for transport in _TRANSPORTS:
        rows = []
        for traffic in TRAFFIC:
            here = {"scenario": traffic.name, "transport": transport}
            relay = _rounds(findings["traffic"], **here, server="relay")
            stock = _rounds(findings["traffic"], **here, server="baseline")
            if not relay or not stock:
                continue
            costs = middle(relay, "cpu_us"), middle(stock, "cpu_us")
            ratios = [a["cpu_us"] / b["cpu_us"] for a, b in zip(relay, stock, strict=True)]
            rows.append(
                [
                    f"{traffic.name}: {traffic.shape}",
                    f"{costs[0] / costs[1]:.2f}",
                    f"{min(ratios):.2f} - {max(ratios):.2f}",
                    *map(_number, costs),
                    _number(middle(relay, "frames_per_second")),
                    f"{middle(relay, 'p50_ms'):.2f} / {middle(relay, 'p99_ms'):.2f}",
                    f"{middle(stock, 'p50_ms'):.2f} / {middle(stock, 'p99_ms'):.2f}",
                ]
            )
        if rows:
            rounds = findings["about"]["rounds"]
            yield f"CPU per routed frame, {transport}, median of {rounds}; p50 / p99 round trip"
            yield ""
            head = ["scenario", "ratio", "its rounds", "relay us", "stock us", "frames/s"]
            yield from table([*head, "relay ms", "stock ms"], rows)
            yield ""


def _tls_price(findings: Findings) -> Iterator[str]:
    prices = []
    for traffic in TRAFFIC:
        costs = [
            _rounds(findings["traffic"], scenario=traffic.name, transport=transport, server="relay")
            for transport in _TRANSPORTS
        ]
        if all(costs):
            price = middle(costs[1], "cpu_us") / middle(costs[0], "cpu_us")
            prices.append(f"{traffic.name} {price:.2f}")
    if prices:
        yield "the relay's TLS figure over its plain one: " + ", ".join(prices)


def _upgrades(findings: Findings) -> Iterator[str]:
    rows = []
    for transport in _TRANSPORTS:
        for server in ("relay", "baseline"):
            found = _rounds(findings["upgrades"], transport=transport, server=server)
            if found:
                figures = [middle(found, key) for key in ("cpu_us", "per_second", "kib")]
                rows.append([server, transport, *map(_number, figures)])
    if rows:
        count = findings["upgrades"][0]["connections"]
        yield f"Upgrades, and {count:,} idle connections"
        yield ""
        yield from table(
            ["server", "transport", "CPU us per upgrade", "upgrades/s", "KiB per idle connection"],
            rows,
        )


def _storm(findings: Findings) -> Iterator[str]:
    rows = [
        [
            row["transport"],
            *(f"{row[key]:.2f}" for key in ("listening", "half", "back", "cpu")),
            row["dials"],
            row["early_4404"],
            row["wrong_4404"],
            row["4409"],
            row["other"] + row["lost"],
        ]
        for row in findings["storm"]
    ]
    if rows:
        yield f"A storm: the relay is killed and restarted under {findings['storm'][0]['count']:,}"
        yield "phones and their binaries; seconds from the kill until the relay listens, until half"
        yield "of the phones and until all of them have had an answer again, and its CPU by then"
        yield ""
        head = ["transport", "listening", "half", "all", "CPU s", "dials", "4404 before its binary"]
        yield from table([*head, "wrong 4404", "4409", "lost or wrong"], rows)


def _growth(findings: Findings) -> Iterator[str]:
    rows = [
        [transport, f"{connections:,}", f"{cost:.1f}", f"{ratio:.2f}", f"{segments:.1f}"]
        for transport, connections, cost, ratio, segments in growth_costs(findings)
    ]
    if rows:
        yield f"CPU per frame as connections grow; {GROWTH_IN_FLIGHT} frames in flight, phones in"
        yield f"turn, so that all are used; and beside it, in turn, a relay that has {GROWTH[0]}"
        yield ""
        head = ["transport", "connections", "relay us", f"to {GROWTH[0]}", "segments a frame"]
        yield from table(head, rows)


def _dribble(findings: Findings) -> Iterator[str]:
    rows = [
        [row["server"], *(f"{step['cpu_us']:.0f}" for step in row["steps"])]
        for row in findings["dribble"]
    ]
    if rows:
        sizes = [step["size"] // 1024 for step in findings["dribble"][0]["steps"]]
        yield f"CPU us per KiB of messages that come in pieces of {DRIBBLE_PIECE} bytes, plain"
        yield ""
        yield from table(["server", *(f"{size} KiB" for size in sizes)], rows)


def growth_cost(step: Row) -> tuple[float, float, float]:
    """Return a frame's microseconds, their ratio to those with few connections, its segments."""
    costs = [window["many"]["cpu_us"] for window in step["windows"]]
    segments = [window["many"]["segments"] for window in step["windows"]]
    ratios = [each["many"]["cpu_us"] / each["few"]["cpu_us"] for each in step["windows"]]
    return median(costs), median(ratios), median(segments)


def growth_costs(findings: Findings) -> list[tuple[str, int, float, float, float]]:
    """Return (transport, connections) with what `growth_cost` says of them."""
    return [
        (row["transport"], step["connections"], *growth_cost(step))
        for row in findings["growth"]
        for step in row["steps"]
    ]


def plot(findings: Findings, folder: Path) -> None:
    """Draw what there is to draw into ``folder``."""
    import matplotlib as mpl  # noqa: PLC0415 - only for plots

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "relay", "font.size": 9, "svg.fonttype": "none"})
    folder.mkdir(parents=True, exist_ok=True)
    if findings["traffic"]:
        _plot_ratios(findings, folder / "performance-frames.svg")
    if findings["growth"]:
        _plot_growth(findings, folder / "performance-growth.svg")


def _plot_ratios(findings: Findings, file: Path) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(6, 2.8), layout="constrained")
    for offset, transport in enumerate(_TRANSPORTS):
        places, heights = [], []
        for place, traffic in enumerate(TRAFFIC):
            here = {"scenario": traffic.name, "transport": transport}
            relay = _rounds(findings["traffic"], **here, server="relay")
            stock = _rounds(findings["traffic"], **here, server="baseline")
            if relay and stock:
                places.append(place + (offset - 0.5) * 0.38)
                heights.append(middle(relay, "cpu_us") / middle(stock, "cpu_us"))
        if places:
            bars = axes.bar(places, heights, 0.36, label=transport)
            axes.bar_label(bars, fmt="%.2f")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(TRAFFIC)), [traffic.name for traffic in TRAFFIC])
    axes.set_ylim(0, 1.25)
    axes.set_ylabel("CPU per frame, stock Autobahn = 1")
    axes.legend(ncols=2, loc="upper right", frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _plot_growth(findings: Findings, file: Path) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(6, 2.8), layout="constrained")
    costs = growth_costs(findings)
    for transport in _TRANSPORTS:
        points = [(count, cost) for name, count, cost, *_ in costs if name == transport]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=transport)
    axes.set_xlabel("connections")
    axes.set_ylabel("us of CPU per frame")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
