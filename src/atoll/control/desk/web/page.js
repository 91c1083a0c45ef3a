// One read-only look at a federation: asks the API with the bearer's token, waits for news, draws.
// The token comes from the address (#atoll1.…, which no browser sends) or the form; it stays in this tab.

import { curve, ring } from "/draw.js";
import { moment, number, say, size, span } from "/words.js";

const LOOK = 3000; // milliseconds between two looks while something runs
const $ = (id) => document.getElementById(id);
let token = "";
let chosen = null;
let turn = 0; // of the loop that is in charge

async function get(path) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
  if (answer.status === 401) throw new Error("token");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function look() {
  const mine = (turn += 1);
  let after = -1;
  let fails = 0;
  while (mine === turn) {
    try {
      if (after < 0) after = (await get("/v1/events?after=-1")).next;
      const seen = await get(chosen ? `/v1/overview?run=${encodeURIComponent(chosen)}` : "/v1/overview");
      if (mine !== turn) return;
      show(seen);
      fails = 0;
      const busy = seen.run && ["running", "stopping"].includes(seen.run.state);
      if (document.hidden) await pause(LOOK);
      else if (busy) await pause(LOOK);
      after = (await get(`/v1/events?after=${after}&wait=${busy ? 0 : 25}&limit=1000`)).next;
    } catch (error) {
      if (mine !== turn) return;
      if (error.message === "token") return knock(say("That token is not valid here."));
      fails += 1;
      $("pulse").className = "lost";
      $("pulse").textContent = `${say("no answer from the server")}, ${say("trying again")}`;
      await pause(Math.min(30000, 1000 * 2 ** fails) * (0.5 + Math.random()));
    }
  }
}

function knock(why) {
  turn += 1;
  token = "";
  sessionStorage.removeItem("token");
  $("why").textContent = why;
  $("door").hidden = false;
  $("view").hidden = true;
  $("pulse").textContent = "";
  $("token").focus();
}

function enter(text) {
  token = text.trim();
  sessionStorage.setItem("token", token);
  $("token").value = "";
  $("door").hidden = true;
  look();
}

// ---- what is shown ----

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function show(seen) {
  const run = seen.run;
  $("view").hidden = false;
  $("door").hidden = true;
  $("title").textContent = run ? run.name || run.id : seen.federation;
  $("subtitle").textContent = run ? [run.algorithm, run.learner, run.data, run.id].filter(Boolean).join(" · ") : say("no run yet");
  document.title = `${$("title").textContent} · Atoll`;
  $("pulse").className = run && run.state === "running" ? "busy" : "";
  $("pulse").textContent = run ? waiting(run) || say(run.state) : say("live");
  $("foot").textContent = `${seen.federation} · Atoll ${seen.version}`;
  $("reason").hidden = !(run && run.reason);
  $("reason").textContent = run ? run.reason : "";
  const sites = members(seen);
  cards(seen, sites);
  metric(seen);
  federation(sites);
  table($("sites"), ["site", "through", "doing", run && run.metric ? run.metric : "metric", "sent up", "sent down", "note"], sites.map(siteRow), [3, 4, 5]);
  table($("runs"), ["run", "name", "state", "algorithm", "round", "metric", "submitted", "reason"], seen.runs.map((r) => runRow(r, run)), [4, 5]);
}

// Why a run waits: how many of its clients hold back, and by which rules.
function waiting(run) {
  if (!run.waiting) return "";
  const { held, of, rules } = run.waiting;
  if (!held) return say("waiting for clients");
  const all = Object.entries(rules);
  const why = all.map(([rule, count]) => (all.length === 1 ? say(rule) : `${say(rule)} ${count}`)).join(", ");
  return `${say("waiting")}: ${held} ${say("of")} ${of} ${say("hold back")} (${why})`;
}

// Every member with its looks: idle, working, away, failed or revoked.
function members(seen) {
  const numbers = Object.fromEntries(Object.entries((seen.run && seen.run.names) || {}).map(([k, name]) => [name, k]));
  const { metrics, failed, suspects } = seen.sites;
  const edges = new Set(seen.nodes.filter((n) => n.role === "edge").map((n) => n.name));
  const home = (n) => (n.role === "edge" ? n.name : edges.has(n.parent) ? n.parent : "\uffff");
  const order = (a, b) => home(a).localeCompare(home(b)) || (b.role === "edge") - (a.role === "edge");
  const ended = !seen.run || ["done", "failed", "stopped"].includes(seen.run.state);
  return [...seen.nodes].sort(order).map((node) => {
    const number = numbers[node.name];
    const phase = node.live.phase || "";
    const busy = node.state === "online" && !["", "idle", "waiting"].includes(phase);
    const lines = String(failed[number] || "").trim().split("\n");
    const sealed = node.live.sealed ? say("a proxy ends TLS: signatures carry the trust") : "";
    const out = suspects[number];
    const standing = node.quarantined ? say("quarantined") : out === undefined ? "" : say(out ? "set aside" : "suspect");
    const changed = (node.live.watch || { raised: [] }).raised;
    const drift = changed.length ? `${say("drift")}: ${changed.join(", ")}` : "";
    const trial = (m) => (m.trial ? ` (${m.trial} ${say(m.stage)})` : "");
    const serves = Object.entries(node.models || {}).map(([name, m]) => `${name} ${m.version}${trial(m)}`).join(", ");
    const until = node.holds && node.holds.until ? `, ${say("until")} ${moment(node.holds.until)}` : "";
    const since = node.holds && node.holds.since ? `, ${say("since")} ${moment(node.holds.since)}` : "";
    const holds = node.holds ? `${say("holds back")}: ${say(node.holds.rule)}${since}${until}` : "";
    const joint = node.live.joint || {};
    const rows = joint.asked ? `${say("rows asked")} ${joint.asked}, ${say("answered")} ${joint.answered}, ${say("passed on")} ${joint.passed}, ${say("too late")} ${joint.late}` : "";
    const note = node.drained ? say("drained") : holds || lines[lines.length - 1] || standing || drift || sealed || serves || rows;
    const look = node.state !== "online" ? node.state : failed[number] && !ended ? "failed" : busy || ended ? "" : "idle";
    const value = seen.run && metrics[number] ? metrics[number][seen.run.metric] : undefined;
    const below = node.role === "client" && edges.has(node.parent);
    return { ...node, below, busy, look, note, value, text: say(node.state === "online" && phase ? phase : node.state) };
  });
}

function card(title, value, small, extra) {
  const box = element("div");
  const shown = element("dd", value);
  shown.append(extra || element("small", small));
  box.append(element("dt", title), shown);
  return box;
}

function cards(seen, sites) {
  const run = seen.run;
  const clients = sites.filter((s) => s.role === "client");
  const here = clients.filter((s) => s.state === "online").length;
  const edges = sites.filter((s) => s.role === "edge");
  const beside = edges.length ? `${edges.filter((e) => e.state === "online").length} ${say("edges")}` : "";
  const who = card(say("clients"), `${here} / ${clients.length}`, beside || say("online"));
  if (!run) return $("cards").replaceChildren(card(say("Runs"), "–", say("atoll submit job.toml makes one")), who);
  const bar = element("progress");
  bar.max = Math.max(1, run.of);
  bar.value = run.round;
  const values = seen.rounds.map((r) => (r.metrics || {})[run.metric]).filter((v) => typeof v === "number");
  const lower = /loss|error|mse|mae/.test(run.metric);
  const best = values.length ? Math[lower ? "min" : "max"](...values) : null;
  const last = [...seen.rounds].reverse().find((r) => r.up !== undefined) || {};
  const taken = run.started ? (run.ended || seen.now) - run.started : null;
  $("cards").replaceChildren(
    card(say(run.metric || "metric"), number(run.value), best === null ? "" : `${say("best")} ${number(best)}`),
    card(say("round"), `${run.round} / ${run.of}`, "", bar),
    who,
    card(say("sent up"), size(run.up), last.up === undefined ? "" : `${size(last.up)} ${say("a round")}`),
    card(say("sent down"), size(run.down), last.down === undefined ? "" : `${size(last.down)} ${say("a round")}`),
    card(say("time taken"), span(taken), last.seconds === undefined ? "" : `${span(last.seconds)} ${say("a round")}`),
  );
}

function metric(seen) {
  const run = seen.run;
  const name = run && run.metric ? run.metric : "metric";
  const points = run ? seen.rounds.map((r) => [r.round, (r.metrics || {})[name]]).filter((p) => typeof p[1] === "number") : [];
  $("curve-title").textContent = say(name);
  $("curve-note").textContent = say("by round");
  $("curve").replaceChildren(points.length ? curve(points, Math.max(run.of, points[points.length - 1][0]), name) : element("p", "–", "empty"));
}

function federation(sites) {
  const here = sites.filter((s) => s.state === "online").length;
  $("ring-note").textContent = sites.length ? `${here} / ${sites.length} ${say("online")}` : "";
  $("ring").replaceChildren(sites.length ? ring(sites, say("The federation")) : element("p", say("nobody has joined yet"), "empty"));
  const looks = new Set(sites.map((s) => (s.role === "edge" ? "edge" : s.look || "working")));
  const key = ["edge", "working", "idle", "failed", "away", "revoked"].filter((k) => looks.has(k)).map((k) => {
    const item = element("li");
    const busy = k === "working" && sites.some((s) => s.busy);
    item.append(element("i", "", `dot ${k}`), say(k === "working" && !busy ? "online" : k));
    return item;
  });
  $("ring-key").replaceChildren(...key);
}

function siteRow(s) {
  const name = element("span");
  name.append(element("i", "", `dot ${s.role === "edge" && s.state === "online" ? "edge" : s.look}`), s.name);
  if (s.below) name.className = "below";
  const sent = (way) => (s.live[way] === undefined ? "–" : size(s.live[way]));
  return [name, s.parent || (s.role === "client" || s.role === "edge" ? say("coordinator") : "–"), s.text, number(s.value), sent("up"), sent("down"), s.note];
}

function runRow(r, run) {
  const open = element("a", r.id);
  open.href = `#run=${encodeURIComponent(r.id)}`;
  const kind = r.state === "failed" ? "failed" : r.state === "running" ? "" : "quiet";
  const place = r.place ? ` ${r.place}` : "";
  const value = r.metric ? `${say(r.metric)} ${number(r.value)}` : "–";
  const cells = [open, r.name, element("span", say(r.state) + place, `pill ${kind}`), r.algorithm, `${r.round} / ${r.of}`, value, moment(r.created), r.reason];
  cells.chosen = run && r.id === run.id;
  return cells;
}

function table(place, heads, rows, right) {
  const head = element("tr");
  heads.forEach((h, k) => head.append(element("th", say(h), right.includes(k) ? "right" : "")));
  const body = rows.map((cells) => {
    const row = element("tr", "", cells.chosen ? "chosen" : "");
    cells.forEach((cell, k) => {
      const box = element("td", "", right.includes(k) ? "right" : k === cells.length - 1 ? "wide" : "");
      box.append(cell || (k === cells.length - 1 ? "" : "–"));
      row.append(box);
    });
    return row;
  });
  const [top, rest] = [element("thead"), element("tbody")];
  top.append(head);
  rest.append(...body);
  place.replaceChildren(top, rest);
}

// ---- coming in ----

function address() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith("atoll1.")) {
    history.replaceState(null, "", location.pathname);
    return enter(hash);
  }
  chosen = hash.startsWith("run=") ? hash.slice(4) : null;
  return token ? look() : undefined;
}

for (const part of document.querySelectorAll("[data-say]")) part.textContent = say(part.dataset.say);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  enter($("token").value);
});
addEventListener("hashchange", address);
document.addEventListener("visibilitychange", () => token && !document.hidden && look());
token = sessionStorage.getItem("token") || "";
if (!token && !location.hash.startsWith("#atoll1.")) knock(say("This page needs a token of the federation."));
else address();
