// The status page: numbers, times and names as a person says them. Loaded first.
"use strict";

const byId = (id) => document.getElementById(id);

const number = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 1 });
// All times are in UTC, as in the log.
const UTC = { timeZone: "UTC", hourCycle: "h23" };
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", ...UTC });
const exact = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", ...UTC });
const date = new Intl.DateTimeFormat("en-GB", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", ...UTC });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeZone: "UTC" });

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

const percent = (share) => `${(share && share < 0.1 ? small : number).format(share * 100)} %`;

// A moment: the time if it is of the last day, else the date too.
function moment(now, seconds) {
  return `${at(now - seconds < 86400 ? exact : date, seconds)} UTC`;
}

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
  worker_ready: "A worker is ready",
  worker_left: "A worker has ended as asked",
  worker_ended: "A worker ended and is started again",
  worker_killed: "A worker was killed because it gave no sign of life",
  workers_failed: "The workers could not be started",
  workers_replacing: "The workers are being replaced",
  workers_replaced: "All workers have been replaced",
  workers_not_replaced: "The workers could not be replaced",
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

// Elements: texts are set as text, never as markup

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

