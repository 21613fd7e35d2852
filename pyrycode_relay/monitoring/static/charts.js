// The status page: the charts of the last hour.
"use strict";

const SHORTEST = 60; // seconds that a chart spans at least
const MINUTE = 6; // samples

// Mean of the round trips in the minute before each sample; null if no ping was answered in it.
function roundTrip(leg) {
  return (history, latest) => {
    const pings = [...history[`pings_${leg}`], latest[`pings_${leg}`]];
    const seconds = [...history[`ping_seconds_${leg}`], latest[`ping_seconds_${leg}`]];
    const sum = (column, end) => column.slice(Math.max(0, end - MINUTE), end).reduce((one, other) => one + other, 0);
    return pings.map((_, index) => (sum(pings, index + 1) ? sum(seconds, index + 1) / sum(pings, index + 1) : null));
  };
}

// series: the name in status.json, or a function of it; and the words for a person.
const CHARTS = [
  {
    title: "Connected",
    show: count,
    series: [["phones", "phones"], ["binaries", "binaries"]],
    least: 4,
    aside: (data) => {
      const waiting = data.numbers.binaries_in_grace;
      return waiting ? `${count(waiting)} more in grace: their binaries may still come back.` : "No binary is in grace.";
    },
  },
  {
    title: "Frames per second",
    show: rate,
    least: 1,
    series: [["frames_to_binaries", "to binaries"], ["frames_to_phones", "to phones"]],
    aside: (data) => `${count(data.numbers.frames_to_binaries + data.numbers.frames_to_phones)} since the start.`,
  },
  {
    title: "Bytes per second",
    show: bytes,
    series: [["bytes_to_binaries", "to binaries (left)"], ["bytes_to_phones", "to phones (right)"]],
    least: 1024,
    binary: true,
    ownScales: true,
    aside: (data) => `${bytes(data.numbers.bytes_to_binaries)} to binaries and ${bytes(data.numbers.bytes_to_phones)} to phones since the start.`,
  },
  {
    title: "Event-loop lag",
    show: lag,
    least: 0.01,
    series: [["lag", "worst in ten seconds"]],
    extra: { label: "worst of the hour", show: (data) => lag(data.maxima.lag_seconds) },
    aside: (data) => `Worst at ${at(exact, data.maxima.lag_time)} UTC. People notice 100 ms or more.`,
  },
  {
    title: "CPU",
    show: percent,
    least: 0.1,
    series: [["cpu_seconds", "of one core"]],
    aside: (data) => `${span(data.numbers.cpu_seconds)} of CPU time since the start. The relay can use one core.`,
  },
  {
    title: "Ping round trips",
    show: (value) => (value === null ? "–" : lag(value)),
    least: 0.01,
    series: [[roundTrip("phones"), "phones, mean"], [roundTrip("binaries"), "binaries, mean"]],
    aside: (data) => `Silent peers are pinged: ${count(data.numbers.pings_phones + data.numbers.pings_binaries)} answers since the start.`,
  },
  {
    title: "Memory",
    show: bytes,
    series: [["resident_bytes", "resident"]],
    least: 1 << 26,
    binary: true,
    aside: (data) => (data.memory_limit ? `Of ${bytes(data.memory_limit)} that the process may use.` : "Its limit is unknown."),
  },
  {
    title: "Bytes in queues",
    show: bytes,
    series: [["queue_bytes", "in all queues"]],
    least: 1024,
    binary: true,
    aside: (data) => `Highest so far: ${bytes(data.maxima.queue_bytes)}, of ${bytes(data.numbers.queue_bytes_max)} allowed.`,
  },
  {
    title: "Refusals per second",
    show: rate,
    least: 1,
    series: [["refusals", "upgrades, frames and envelopes"]],
    aside: (data) => `${count(data.numbers.refusals)} since the start.`,
  },
];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LINES = ["--first", "--second"];

class Chart {
  constructor(chart) {
    this.chart = chart;
    this.values = chart.series.map(([, label], index) => this.value(label, element("span", { className: index ? "key second" : "key" })));
    this.extra = chart.extra ? this.value(chart.extra.label) : null;
    this.aside = element("p", { className: "aside" });
    this.plot = element("div", { className: "plot", role: "img" });
    this.table = element("table");
    this.details = element(
      "details", {}, element("summary", { textContent: "As a table" }, element("span", { className: "unseen", textContent: `: ${chart.title}` })), this.table,
    );
    this.details.addEventListener("toggle", () => this.tabulate());
    this.card = element(
      "article", { className: "card" },
      element("h3", { textContent: chart.title }),
      element("p", {}, ...[...this.values, this.extra].filter(Boolean).map(({ whole }) => whole)),
      this.plot, this.aside, this.details,
    );
    byId("charts").append(this.card);
    this.u = new uPlot(this.options(), [[], ...chart.series.map(() => [])], this.plot);
    new ResizeObserver(() => this.u.setSize(this.size())).observe(this.plot);
  }

  value(label, ...key) {
    const value = element("span", { className: "value", textContent: "–" });
    const whole = element("span", {}, value, " ", element("span", { className: "unit" }, ...key, label));
    return { whole, set: (text) => { value.textContent = text; } };
  }

  size() {
    return { width: Math.max(this.plot.clientWidth, 100), height: this.plot.clientHeight };
  }

  // Keeps a line at zero visible.
  range(high) {
    const top = Math.max((high ?? 0) * 1.1, this.chart.least);
    return [-0.03 * top, top];
  }

  axis(scale, stroke) {
    const { chart } = this;
    return {
      scale, stroke: () => color(stroke), font: "11px system-ui, sans-serif", ticks: { show: false },
      side: scale === "y1" ? 1 : 3, space: 30, size: 58, gap: 4,
      grid: { show: scale === "y0", stroke: () => color("--grid"), width: 1 },
      incrs: chart.binary ? Array.from({ length: 44 }, (_, power) => 2 ** power) : undefined,
      values: (u, ticks) => ticks.map((tick) => chart.show(tick)),
    };
  }

  options() {
    const { chart } = this;
    const scale = (index) => (chart.ownScales ? `y${index}` : "y0");
    const scales = { x: { time: true }, y0: { range: (u, low, high) => this.range(high) } };
    const yAxes = [this.axis("y0", chart.ownScales ? LINES[0] : "--soft")];
    if (chart.ownScales) {
      scales.y1 = scales.y0;
      yAxes.push(this.axis("y1", LINES[1]));
    }
    return {
      ...this.size(),
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      legend: { show: false },
      padding: [8, chart.ownScales ? 0 : 26, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "hour" }, points: { size: 6 } },
      scales,
      axes: [
        {
          stroke: () => color("--soft"), font: "11px system-ui, sans-serif", ticks: { show: false },
          space: 80, size: 22, gap: 4, grid: { show: false },
          values: (u, ticks) => ticks.map((tick) => at(u.scales.x.max - u.scales.x.min < 600 ? exact : clock, tick)),
        },
        ...yAxes,
      ],
      series: [
        {},
        ...chart.series.map(([, label], index) => ({
          label,
          scale: scale(index),
          stroke: () => color(LINES[index]),
          width: index ? 2 : 1.5,
          // Only one area is filled, so that the two differ without colour.
          fillTo: 0,
          fill: index ? undefined : () => color("--first-area"),
          points: { show: false },
          spanGaps: true,
        })),
      ],
      hooks: { setCursor: [() => this.read()] },
    };
  }

  update(data) {
    this.data = data;
    const { history, latest, now } = data;
    const columns = this.chart.series.map(([source]) => (
      typeof source === "function" ? source(history, latest) : [...history[source], latest[source]]
    ));
    this.columns = [[...history.time, now], ...columns];
    this.u.setData(this.columns, false);
    this.u.batch(() => {
      const first = Math.min(this.columns[0][0], now - SHORTEST);
      this.u.setScale("x", { min: Math.max(first, now - 3600), max: now });
    });
    this.read();
    this.describe();
    if (this.details.open) this.tabulate();
  }

  read() {
    if (!this.data) return;
    const index = this.u.cursor.idx;
    const last = this.columns[0].length - 1;
    const looking = index != null && this.u.cursor.left >= 0;
    const here = looking ? index : last;
    this.values.forEach((value, series) => value.set(this.chart.show(this.columns[series + 1][here])));
    this.extra?.set(this.chart.extra.show(this.data));
    this.aside.textContent = looking ? `At ${at(exact, this.columns[0][here])} UTC.` : this.chart.aside(this.data);
  }

  describe() {
    const parts = this.chart.series.map(([, label], index) => {
      const column = this.columns[index + 1];
      const known = column.filter((value) => value !== null);
      if (!known.length) return `${label}: nothing in the last hour`;
      const [low, high] = [Math.min(...known), Math.max(...known)];
      return `${label}: now ${this.chart.show(column.at(-1))}, between ${this.chart.show(low)} and ${this.chart.show(high)} in the last hour`;
    });
    this.plot.setAttribute("aria-label", `${this.chart.title}. ${parts.join("; ")}.`);
  }

  tabulate() {
    if (!this.data || !this.details.open) return;
    const times = this.columns[0];
    const step = Math.max(1, Math.round(300 / this.data.history.interval));
    const rows = [];
    for (let index = times.length - 1; index >= 0; index -= step) {
      const cells = this.columns.slice(1).map((column) => element("td", { textContent: this.chart.show(column[index]) }));
      rows.push(element("tr", {}, element("th", { scope: "row", textContent: at(clock, times[index]) }), ...cells));
    }
    const heads = this.chart.series.map(([, label]) => element("th", { scope: "col", textContent: label }));
    this.table.replaceChildren(
      element("caption", { className: "unseen", textContent: `${this.chart.title}, every five minutes` }),
      element("thead", {}, element("tr", {}, element("th", { scope: "col", textContent: "time (UTC)" }), ...heads)),
      element("tbody", {}, ...rows),
    );
  }
}
