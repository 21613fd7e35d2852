// The status page: fetches /status.json every few seconds and shows it.
"use strict";

const EVERY = 3000; // milliseconds between requests
const PATIENCE = 5000; // milliseconds to wait for an answer
const SHORTEST = 60; // seconds that a chart spans at least

const byId = (id) => document.getElementById(id);

// Words

const number = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const exact = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const date = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

const count = (value) => number.format(value);
const rate = (value) => (value && value < 10 ? small : number).format(value);
const at = (format, seconds) => format.format(new Date(seconds * 1000));

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  while (value >= 1024 && index < units.length - 1) {
    value /= 1024;
    index += 1;
  }
  return `${(index && value < 100 ? small : number).format(value)} ${units[index]}`;
}

function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

function lag(seconds) {
  return seconds < 1 ? `${(seconds < 0.01 ? small : number).format(seconds * 1000)} ms` : `${small.format(seconds)} s`;
}

const CHARTS = [
  {
    title: "Connected",
    show: count,
    series: [["phones", "phones"], ["binaries", "binaries"]],
    least: 4,
    aside: (data) => {
      const waiting = data.connections.binaries_in_grace;
      return waiting ? `${count(waiting)} more in grace: their binaries may still come back.` : "No binary is in grace.";
    },
  },
  {
    title: "Frames per second",
    show: rate,
    least: 1,
    series: [["frames_to_binaries", "to binaries"], ["frames_to_phones", "to phones"]],
    aside: (data) => `${count(data.totals.frames_to_binaries + data.totals.frames_to_phones)} since the start.`,
  },
  {
    title: "Bytes per second",
    show: bytes,
    series: [["bytes_to_binaries", "to binaries"], ["bytes_to_phones", "to phones"]],
    least: 1024,
    binary: true,
    aside: (data) => `${bytes(data.totals.bytes_to_binaries + data.totals.bytes_to_phones)} since the start.`,
  },
  {
    title: "Reactor lag",
    show: lag,
    least: 0.01,
    series: [["lag", "worst in ten seconds"]],
    aside: () => "People notice a lag of 100 ms or more.",
  },
  {
    title: "Bytes in queues",
    show: bytes,
    series: [["queue_bytes", "in all queues"]],
    least: 1024,
    binary: true,
    aside: (data) => `Highest so far: ${bytes(data.queues.highest)}, of ${bytes(data.queues.budget)} allowed.`,
  },
  {
    title: "Refusals per second",
    show: rate,
    least: 1,
    series: [["refusals", "upgrades, frames and envelopes"]],
    aside: (data) => `${count(data.totals.refusals)} since the start.`,
  },
];

const REFUSALS = {
  reject_404: "phones whose server-id nobody holds (4404)",
  reject_409: "binaries whose server-id is taken (4409)",
  reject_429: "phones beyond a server-id's limit (4429)",
  reject_rate_limit: "upgrades beyond an address's rate (429)",
  reject_cap: "upgrades beyond the number of connections (503)",
  reject_not_ready: "upgrades while draining (503)",
  reject_headers: "upgrades with missing or bad headers (400)",
  reject_handshake: "requests that are not a WebSocket handshake",
  waiting: "connections dropped before they sent a request",
  frames: "phones' messages",
  envelopes: "binaries' messages",
};

const EVENTS = {
  starting: "The relay started",
  draining: "The relay is draining",
  drained: "The relay has drained",
  nvx_missing: "Autobahn's compiled parts are missing",
  server_id_conflict: "A second binary for a server-id was refused",
  server_id_takeover: "A silent binary was replaced",
  server_reclaimed: "A binary came back",
  server_released: "A binary left; its grace has begun",
  server_expired: "A binary did not come back",
  phone_register_no_server: "A phone asked for a server-id that nobody holds",
  phone_register_at_cap: "A server-id reached its limit of phones",
  phone_unregistered: "A phone was closed after a failure",
  message_too_big: "A peer sent a message over the limit",
  phone_frame_refused: "A phone sent invalid JSON",
  binary_envelope_refused: "A binary sent an invalid envelope",
  binary_unknown_conn_id: "A binary addressed an unknown phone",
  push_wake_sent: "A push wake was sent",
  push_wake_failed: "A push wake could not be sent",
  push_wake_dropped: "A push wake was refused",
  rate_limited: "An address exceeded its rate of upgrades",
  connection_cap_reached: "A connection was refused or dropped at a limit",
  accept_failed: "A listener could not accept a connection",
  proxy_refused: "A PROXY header was refused",
  tls_reloaded: "Certificates were reloaded",
  tls_reload_failed: "Certificates could not be reloaded",
  tls_expires: "A certificate expires soon",
  tls_handshake_failed: "A TLS handshake failed",
  acme_ordering: "A certificate was ordered",
  acme_issued: "A certificate was issued",
  acme_failed: "Could not obtain a certificate",
  cert_cache_tightened: "The certificate cache was readable by others; it no longer is",
};

const BREAKERS = {
  closed: "in use",
  open: "paused after failures",
  half_open: "being retried after failures",
};

// Elements

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function fill(parent, children) {
  // Replacing an unchanged list would lose the reader's place.
  const text = children.map((child) => child.outerHTML).join("");
  if (parent.dataset.shown === text) return;
  parent.dataset.shown = text;
  parent.replaceChildren(...children);
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Charts

class Chart {
  constructor(chart) {
    this.chart = chart;
    this.values = chart.series.map(([, label], index) => {
      const key = element("span", { className: index ? "key second" : "key" });
      const value = element("span", { className: "value", textContent: "–" });
      return [element("span", {}, value, " ", element("span", { className: "unit" }, key, label)), value];
    });
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
      element("p", {}, ...this.values.map(([whole]) => whole)),
      this.plot, this.aside, this.details,
    );
    byId("charts").append(this.card);
    this.u = new uPlot(this.options(), [[], ...chart.series.map(() => [])], this.plot);
    new ResizeObserver(() => this.u.setSize(this.size())).observe(this.plot);
  }

  size() {
    return { width: Math.max(this.plot.clientWidth, 100), height: this.plot.clientHeight };
  }

  options() {
    const { chart } = this;
    const grid = { stroke: () => color("--grid"), width: 1 };
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: () => color("--soft"), font, grid, ticks: { show: false } };
    return {
      ...this.size(),
      legend: { show: false },
      padding: [8, 10, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "hour" }, points: { size: 6 } },
      scales: {
        x: { time: true },
        y: {
          range: (u, low, high) => {
            const top = Math.max(high * 1.1, chart.least);
            return [-0.03 * top, top]; // keeps a line at zero visible
          },
        },
      },
      axes: [
        {
          ...axis, space: 80, size: 22, gap: 4, grid: { show: false },
          values: (u, ticks) => ticks.map((tick) => at(u.scales.x.max - u.scales.x.min < 600 ? exact : clock, tick)),
        },
        {
          ...axis, space: 30, size: 58, gap: 4,
          incrs: chart.binary ? Array.from({ length: 44 }, (_, power) => 2 ** power) : undefined,
          values: (u, ticks) => ticks.map((tick) => chart.show(tick)),
        },
      ],
      series: [
        {},
        ...chart.series.map(([, label], index) => ({
          label,
          stroke: () => color(index ? "--second" : "--first"),
          width: index ? 2 : 1.5,
          // Only one area is filled, so that the two differ without colour.
          fillTo: 0,
          fill: index ? undefined : () => color("--first-area"),
          points: { show: false },
        })),
      ],
      hooks: { setCursor: [() => this.read()] },
    };
  }

  update(data) {
    this.data = data;
    const { history, latest, now } = data;
    const columns = this.chart.series.map(([name]) => [...history[name], latest[name]]);
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
    this.values.forEach(([, value], series) => {
      value.textContent = this.chart.show(this.columns[series + 1][here]);
    });
    this.aside.textContent = looking ? `At ${at(exact, this.columns[0][here])}.` : this.chart.aside(this.data);
  }

  describe() {
    const parts = this.chart.series.map(([, label], index) => {
      const column = this.columns[index + 1];
      const [low, high] = [Math.min(...column), Math.max(...column)];
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
      element("thead", {}, element("tr", {}, element("th", { scope: "col", textContent: "time" }), ...heads)),
      element("tbody", {}, ...rows),
    );
  }
}

// The rest of the page

function showEvents(data) {
  const items = data.events.slice(0, 30).map((event) => {
    const when = element("time", { dateTime: new Date(event.time * 1000).toISOString() });
    when.textContent = at(data.now - event.time < 86400 ? exact : date, event.time);
    const words = EVENTS[event.event] ?? event.event.replaceAll("_", " ");
    const what = element("span", { textContent: event.count > 1 ? `${words} (${count(event.count)} times)` : words });
    if (event.level === "warn" || event.level === "error") what.className = "warn";
    const who = element(event.server ? "code" : "span", { textContent: event.server });
    const why = event.reason ? [element("small", { textContent: event.reason })] : [];
    return element("li", {}, when, what, who, ...why);
  });
  fill(byId("event-list"), items.length ? items : [element("li", { className: "nothing", textContent: "No events yet." })]);
}

function showRefusals(data) {
  const rows = Object.entries(data.refusals)
    .filter(([, times]) => times)
    .sort(([, one], [, other]) => other - one)
    .map(([name, times]) => element(
      "tr", {},
      element("th", { scope: "row", textContent: REFUSALS[name] ?? name.replaceAll("_", " ") }),
      element("td", { textContent: count(times) }),
    ));
  const none = element("tr", {}, element("th", { className: "nothing", textContent: "Nothing." }), element("td"));
  fill(byId("refusals"), rows.length ? rows : [none]);
}

function showRoom(data) {
  const { connections, process, certificate } = data;
  const rows = [
    ["WebSockets", count(connections.websockets), `of ${count(connections.websockets_max)}`, connections.websockets > 0.9 * connections.websockets_max],
    ["Open files", count(process.descriptors), `of ${count(process.descriptor_limit)}`, process.descriptors > 0.9 * process.descriptor_limit],
    ["Memory", bytes(process.resident_bytes), "", false],
  ];
  if (certificate?.not_after) {
    const left = certificate.not_after - data.now;
    const days = Math.floor(left / 86400);
    rows.push(["Certificate", left < 0 ? "expired" : `${count(days)} ${days === 1 ? "day" : "days"}`, at(day, certificate.not_after), days < 7]);
  } else if (certificate) {
    rows.push(["Certificate", "none yet", "", true]);
  }
  if (certificate?.last_reload) {
    rows.push(["Last reload", certificate.last_reload_ok ? "succeeded" : "failed", at(date, certificate.last_reload), !certificate.last_reload_ok]);
  }
  fill(byId("room"), described(rows));
}

function described(rows) {
  return rows.flatMap(([name, value, aside, bad]) => [
    element("dt", { textContent: name }),
    element("dd", { className: bad ? "bad" : "" }, value, " ", element("small", { textContent: aside })),
  ]);
}

function showPush(data) {
  const { push } = data;
  byId("push").hidden = !push;
  if (!push) return;
  const { outcomes, refusals, last_failure: failure, last_sent: sent } = push;
  const when = (seconds) => at(data.now - seconds < 86400 ? exact : date, seconds);
  const failed = outcomes.send_failed + outcomes.token_fetch_failed;
  const refused = Object.values(refusals).reduce((sum, times) => sum + times, 0);
  const rows = [
    ["Sent", count(outcomes.sent), sent ? `last ${when(sent)}` : "", false],
    ["Failed", count(failed), failure ? `last ${when(failure.time)}` : "", push.failing],
    ["Dead tokens", count(outcomes.unregistered), "", false],
    ["Refused", count(refused), outcomes.dropped ? `(${count(outcomes.dropped)} at a limit)` : "", false],
    ["Under way", count(push.under_way), "", false],
    ...Object.entries(push.breakers).map(([platform, state]) => [
      `Provider ${platform}`, BREAKERS[state] ?? state, "", state !== "closed",
    ]),
  ];
  fill(byId("push-list"), described(rows));
  const text = failure ? `Last failure: ${failure.text}.` : "";
  byId("push-failure").textContent = push.failing ? `${text} No wake has been sent since ${when(failure.since)}.` : text;
}

// Polling

let charts = [];
let fresh = null; // time of the last answer, by this machine's clock
let reachable = true;
let version = null; // of the relay that served this page

function show(data) {
  if (!charts.length) charts = CHARTS.map((chart) => new Chart(chart));
  byId("version").textContent = data.version;
  byId("uptime").textContent = span(data.uptime_seconds);
  byId("started").textContent = at(date, data.started);
  byId("started").dateTime = new Date(data.started * 1000).toISOString();
  for (const chart of charts) chart.update(data);
  showEvents(data);
  showRefusals(data);
  showRoom(data);
  showPush(data);
}

function showState(state, title) {
  const pill = byId("state");
  if (pill.dataset.state === state) return;
  pill.dataset.state = state;
  pill.textContent = title;
}

function lose() {
  showState("unreachable", "unreachable");
  document.title = "unreachable: pyrycode-relay";
  byId("data").classList.add("stale");
  if (!reachable) return;
  reachable = false;
  byId("notice").textContent = fresh === null
    ? "The relay does not answer."
    : `The relay does not answer. Last update ${exact.format(fresh)}.`;
}

function find(data) {
  fresh = new Date();
  reachable = true;
  byId("notice").textContent = "";
  byId("data").classList.remove("stale");
  showState(data.state, data.state);
  document.title = `${data.state}: ${count(data.connections.phones)} phones, ${count(data.connections.binaries)} binaries`;
}

function showAge() {
  if (fresh === null) return;
  byId("age").textContent = `updated ${span((Date.now() - fresh) / 1000)} ago`;
}

async function ask() {
  let data;
  try {
    const answer = await fetch("/status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    data = await answer.json();
  } catch {
    lose();
    return;
  }
  find(data);
  // After an upgrade the page is an old one: load the new one.
  if (version !== null && version !== data.version) location.reload();
  version = data.version;
  show(data);
}

async function keepAsking() {
  try {
    if (!document.hidden) await ask();
    showAge();
  } finally {
    setTimeout(keepAsking, EVERY);
  }
}

document.addEventListener("visibilitychange", () => document.hidden || ask());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.u.redraw()));
setInterval(showAge, 1000);
keepAsking();
