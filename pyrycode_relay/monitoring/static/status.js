// The status page: fetches /status.json every few seconds and shows it.
"use strict";

const EVERY = 3000; // milliseconds between requests
const PATIENCE = 5000; // milliseconds to wait for an answer

// What needs attention

const SEVERITIES = { page: "Act now", warn: "Look soon" };

// A finding stays the same element while it lasts, so that its advice stays open and focused.
class Finding {
  constructor() {
    this.severity = element("strong", { className: "severity" });
    this.text = element("span");
    this.reason = element("p", { className: "reason" });
    this.since = element("time");
    this.lasts = element("span");
    this.advice = element("p");
    this.section = element("cite");
    this.item = element(
      "li", {},
      element("p", {}, this.severity, " ", this.text),
      this.reason,
      element("p", { className: "since-when" }, "Since ", this.since, this.lasts),
      element(
        "details", {}, element("summary", { textContent: "What to do" }),
        this.advice,
        element("p", { className: "hint" }, "More in the manual: ", element("code", { textContent: "docs/troubleshooting.md" }), ", section ", this.section, "."),
      ),
    );
  }

  show(finding, now) {
    this.item.dataset.severity = finding.severity;
    this.item.dataset.kind = finding.kind;
    this.severity.textContent = SEVERITIES[finding.severity] ?? finding.severity;
    this.text.textContent = `${finding.text}.`;
    this.reason.textContent = finding.reason;
    this.since.textContent = moment(now, finding.since);
    this.since.dateTime = new Date(finding.since * 1000).toISOString();
    this.lasts.textContent = ` (${span(Math.max(0, now - finding.since))})`;
    this.advice.textContent = finding.advice;
    this.section.textContent = `“${finding.section}”`;
    return this.item;
  }
}

const findings = new Map();

function showAttention(data) {
  const shown = data.attention.map((finding) => [`${finding.kind} ${finding.subject}`, finding]);
  const keys = shown.map(([key]) => key);
  for (const key of findings.keys()) {
    if (keys.includes(key)) continue;
    findings.get(key).item.remove();
    findings.delete(key);
  }
  const list = byId("attention");
  shown.forEach(([key, finding], index) => {
    if (!findings.has(key)) findings.set(key, new Finding());
    const item = findings.get(key).show(finding, data.now);
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
}

function showVerdict(verdict, text) {
  document.body.dataset.verdict = verdict;
  // A screen reader reads it out only when it changes.
  const title = byId("verdict");
  if (title.textContent !== text) title.textContent = text;
}

function verdictOf(data) {
  const number = data.attention.length;
  if (!number) return "All well";
  return number === 1 ? "1 thing needs attention" : `${count(number)} things need attention`;
}

// The busiest

let wanted = null; // the hash that was looked for

const hashed = (name) => element("code", { textContent: name, className: name && name === wanted ? "found" : "" });

function showBusiest(data) {
  const { busiest } = data;
  for (const [id, rows] of [["busy-ids", busiest.ids], ["busy-addresses", busiest.addresses]]) {
    const lines = rows.map((row) => element(
      "tr", {},
      element("th", { scope: "row" }, hashed(row.name)),
      element("td", { textContent: count(row.connections) }),
      element("td", { textContent: rate(row.frames) }),
      element("td", { textContent: bytes(row.bytes) }),
    ));
    const none = busiest.seconds === null ? "Counting." : "No traffic.";
    const empty = element("tr", {}, element("th", { className: "nothing", textContent: none, colSpan: 4 }));
    fill(byId(id), lines.length ? lines : [empty]);
  }
  byId("busy-span").textContent = busiest.seconds === null ? "" : `In the last ${small.format(busiest.seconds)} s. `;
  byId("hashes").hidden = data.ids_in_clear;
}

async function findHash(event) {
  event.preventDefault();
  const output = byId("hash");
  const id = byId("hash-id").value.trim();
  if (!/^[\x20-\x7e]+$/.test(id)) {
    output.textContent = "A server-id has printable ASCII characters only.";
    return;
  }
  try {
    const answer = await fetch("/id-hash", { headers: { "X-Pyrycode-Server": id }, cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    wanted = (await answer.text()).trim();
    output.textContent = wanted;
  } catch {
    output.textContent = "The relay does not answer.";
    return;
  }
  await ask();
}

// The rest of the page

function showEvents(data) {
  const items = data.events.slice(0, 30).map((event) => {
    const when = element("time", { dateTime: new Date(event.time * 1000).toISOString() });
    when.textContent = at(data.now - event.time < 86400 ? exact : date, event.time);
    const words = EVENTS[event.event] ?? event.event.replaceAll("_", " ");
    const what = element("span", { textContent: event.count > 1 ? `${words} (${count(event.count)} times)` : words });
    if (event.level === "warn" || event.level === "error") what.className = "warn";
    const why = event.reason ? [element("small", { textContent: event.reason })] : [];
    return element("li", {}, when, what, hashed(event.server), ...why);
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
  const { numbers, certificate } = data;
  const found = new Set(data.attention.map((finding) => finding.kind));
  const any = (...kinds) => kinds.some((kind) => found.has(kind));
  const rows = [
    ["WebSockets", count(numbers.websockets), `of ${count(numbers.websockets_max)}, ${count(numbers.websockets_reserved)} kept for binaries`, any("connections", "reserve")],
    ["Open files", count(numbers.open_files), `of ${count(numbers.open_files_max)}`, any("files", "accept_failures")],
    ["Memory", bytes(numbers.resident_bytes), data.memory_limit ? `of ${bytes(data.memory_limit)}` : "", any("memory")],
    ["Queues", bytes(numbers.queue_bytes), `of ${bytes(numbers.queue_bytes_max)}`, any("queues", "queues_shed")],
  ];
  if (certificate?.not_after) {
    const left = certificate.not_after - data.now;
    const days = Math.floor(left / 86400);
    const bad = any("certificate_ends", "certificate_ends_now");
    rows.push(["Certificate", left < 0 ? "expired" : `${count(days)} ${days === 1 ? "day" : "days"}`, `until ${at(day, certificate.not_after)}`, bad]);
  } else if (certificate) {
    rows.push(["Certificate", "none yet", "", true]);
  }
  if (certificate?.last_reload) {
    rows.push(["Last reload", certificate.last_reload_ok ? "succeeded" : "failed", `${at(date, certificate.last_reload)} UTC`, any("certificate_unreadable")]);
  }
  for (const { address, serves } of data.listeners) rows.push(["Listener", address, serves, false]);
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
  const when = (seconds) => moment(data.now, seconds);
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
let version = null; // of the relay that served this page

function show(data) {
  showVerdict(data.verdict, verdictOf(data));
  showAttention(data);
  if (!charts.length) charts = CHARTS.map((chart) => new Chart(chart));
  byId("version").textContent = data.version;
  byId("uptime").textContent = span(data.uptime_seconds);
  byId("started").textContent = `${at(date, data.started)} UTC`;
  byId("started").dateTime = new Date(data.started * 1000).toISOString();
  for (const chart of charts) chart.update(data);
  showBusiest(data);
  showEvents(data);
  showRefusals(data);
  showRoom(data);
  showPush(data);
}

function showState(state) {
  const pill = byId("state");
  if (pill.dataset.state === state) return;
  pill.dataset.state = state;
  pill.textContent = state;
}

function lose() {
  showState("unreachable");
  document.title = "unreachable: pyrycode-relay";
  byId("data").classList.add("stale");
  byId("attention").classList.add("stale");
  const last = fresh === null ? "" : ` Last update ${exact.format(fresh)} UTC.`;
  showVerdict("unreachable", `The relay does not answer.${last}`);
}

function find(data) {
  fresh = new Date();
  byId("data").classList.remove("stale");
  byId("attention").classList.remove("stale");
  showState(data.state);
  const { phones, binaries } = data.numbers;
  document.title = `${verdictOf(data)}: ${count(phones)} phones, ${count(binaries)} binaries`;
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

byId("hash-form").addEventListener("submit", findHash);
document.addEventListener("visibilitychange", () => document.hidden || ask());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.u.redraw()));
setInterval(showAge, 1000);
keepAsking();
