// The panel: what was verified of the model that is chosen, drawn from what the proxy says.

import { at, make } from "./dom.js";
import { FAMILIES, explain } from "./words.js";

// The backend that would answer to a name, chosen as the proxy chooses it; and all that have the name.
export function standing(backends, name) {
  const all = backends.filter((backend) => names(backend).includes(name));
  const chosen = all.find((one) => one.state === "ready") ?? all.find((one) => one.state === "verifying") ?? all[0];
  return { all, chosen };
}

// One that has not been verified yet may not have told its names: it goes by its address.
export const names = (backend) => (backend.models.length ? backend.models : [backend.url]);

const short = (digest) => (digest.length > 16 ? `${digest.slice(0, 16)}…` : digest);

const bytes = (count) => {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return `${count} B`;
};

export function ago(seconds) {
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / size);
    if (count >= 1) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return seconds < 10 ? "just now" : `${Math.floor(seconds)} seconds ago`;
}

// What is shown large: [tone, title, text].
export function verdictOf(chosen) {
  if (!chosen) return ["waiting", "No model", "No model of this name is served here."];
  const family = FAMILIES[chosen.family] ?? chosen.family;
  switch (chosen.state) {
    case "refused":
      return ["refused", "Refused", `Nothing is sent. ${chosen.reason ?? ""}`];
    case "unreachable":
      return ["away", "Not reachable", `Nothing is sent. ${chosen.reason ?? ""}`];
    case "verifying":
      return ["waiting", "Verifying", "Nothing is sent until the server has proven what it is."];
    default:
      break;
  }
  if (chosen.simulated) {
    return ["simulated", "Simulated", "Nothing is protected. This evidence was made up on a test machine, and whoever " +
      "runs the server can read everything. Write nothing here that matters."];
  }
  if (chosen.mode === "hybrid") {
    return ["verified", "Encrypted", "The server computes on encrypted numbers, and every answer of it is checked. It " +
      "sees neither your words nor the model’s."];
  }
  if (chosen.mode === "enclave") {
    return ["verified", "Verified", `${family} proved what runs. Questions are encrypted to it, and to nobody else.`];
  }
  return ["waiting", "Unknown", "This page does not know this kind of protection."];
}

// [key, value, [[term, words], ...]] for each line.
export function linesOf({ all, chosen }, since) {
  if (!chosen) return [];
  const lines = [["mode", { enclave: "Trusted environment", hybrid: "Hybrid encryption" }[chosen.mode] ?? chosen.mode, []]];
  const add = (key, value, more = []) => { if (value !== "" && value !== undefined && value !== null) lines.push([key, value, more]); };
  const stands = chosen.state === "ready";
  if (stands && chosen.mode === "enclave") addEnclave(add, chosen, since);
  if (stands && chosen.mode === "hybrid") addHybrid(add, chosen);
  const ready = all.filter((one) => one.state === "ready").length;
  const behind = stands && chosen.replicas?.at_most > 1 ? chosen.replicas : null;
  const met = behind && `${behind.verified.length} of at most ${behind.at_most} verified`;
  const alone = behind ? null : "None: one server";
  add("replicas", [all.length === 1 ? alone : `${ready} of ${all.length} ready`, met].filter(Boolean).join("; "), [
    ...all.map((one) => [one.url, one.reason ? `${one.state}: ${one.reason}` : one.state]),
    ...(behind?.verified ?? []).map((one) => ["Verified", `key ${short(one.channel_key)}, at ${one.verified_at}`]),
    ...(behind?.refused ?? []).map((one) => ["Refused", one]),
  ]);
  add("server", chosen.url);
  if (stands && chosen.trust) add("trust", "In full", chosen.trust.split("\n").map(split));
  return lines;
}

const split = (line) => {
  const colon = line.indexOf(": ");
  return colon < 0 ? ["", line] : [line.slice(0, colon), line.slice(colon + 2)];
};

function addEnclave(add, chosen, since) {
  const family = FAMILIES[chosen.family] ?? chosen.family;
  add("family", chosen.simulated ? `${family}, simulated` : family, [["Root", chosen.root]]);
  const measured = Object.entries(chosen.measurements ?? {});
  add("measurements", measured.length ? `${measured.length} measured` : "Not measured", measured);
  add("model", chosen.model_digest ? short(chosen.model_digest) : "Not stated", chosen.model_digest ? [["SHA-256", chosen.model_digest]] : []);
  const { runs } = chosen;
  add("engine", runs?.engine || runs?.upstream || "Not stated",
    runs ? [["Confide", runs.confide], ...(runs.upstream ? [["Asks", runs.upstream]] : []), ["Context", `${runs.context} tokens`]] : []);
  if (runs) add("quantization", runs.quantization, [["Computed in", runs.dtype], ["Weights in memory", runs.weights_digest]]);
  const { asks = [], leaves_open: open = [], exceptions = [] } = chosen.policy ?? {};
  const unchecked = open.length + exceptions.length;
  add("policy", `${asks.length} ${asks.length === 1 ? "demand" : "demands"}${unchecked ? `, ${unchecked} open` : ""}`, [
    ...asks.map((one) => ["Asks for", one]), ...open.map((one) => ["Leaves open", one]),
    ...exceptions.map((one) => ["Exception", one]),
  ]);
  const checks = chosen.checks ?? [];
  const passed = checks.filter((one) => one.outcome === "pass").length;
  const skipped = checks.length - passed;
  add("checks", `${passed} passed${skipped ? `, ${skipped} not made` : ""}`, checks.map((one) => [
    `${one.code}: ${one.outcome === "skipped" ? "not made" : one.outcome}`,
    one.outcome === "skipped" ? one.seen : `expected ${one.expected}; saw ${one.seen}`,
  ]));
  addReceipts(add, chosen.receipts);
  add("age", ago(chosen.age_seconds + since), [["Verified at", chosen.verified_at]]);
  if (runs) {
    const egress = { none: "No way out", open: "Can connect anywhere" }[runs.egress] ?? runs.egress;
    add("runs", egress, [["Self-test", runs.self_test], ["Adapters", runs.adapters.join(", ") || "none"]]);
  }
}

function addReceipts(add, receipts) {
  if (!receipts) return;
  const { promised, held, missing, wrong, last } = receipts;
  const bad = [missing && `${missing} missing`, wrong && `${wrong} wrong`].filter(Boolean);
  add("receipts", promised ? [`${held} checked`, ...bad].join(", ") : "None promised", last ? [
    ["Last", last.verdict], ["At", last.at], ["Number", last.id || "none"],
  ] : []);
}

function addHybrid(add, chosen) {
  const { lengths } = chosen;
  add("last", chosen.last_sent ? chosen.last_sent.slice(0, 16).replace(/../g, "$& ") + "…" : "Nothing yet",
    chosen.last_sent ? [["First bytes", chosen.last_sent.replace(/../g, "$& ")]] : []);
  if (lengths) {
    add("lengths", `${lengths.visible_prompt} and ${lengths.visible_answer} seen`, [
      ["Question", `${lengths.prompt} tokens, the server saw ${lengths.visible_prompt}`],
      ["Answer", `${lengths.answer} tokens, the server saw ${lengths.visible_answer}`],
    ]);
  }
  add("bytes", `${bytes(chosen.bytes_up)} up, ${bytes(chosen.bytes_down)} down`, [
    ["Sent ahead", bytes(chosen.bytes_ahead)], ["Round trips", String(chosen.round_trips)],
  ]);
  add("pool", `${chosen.tokens_ready} tokens`);
  add("disclosed", chosen.disclosed === null ? "Not known" : `${(100 * chosen.disclosed).toFixed(2)} %`, [
    ["Most exposed layer", "as the server said when it connected"],
    ["For each token", `up to ${chosen.bits_per_token.toLocaleString("en")} bits of all layers together`],
  ]);
  addReceipts(add, chosen.receipts);
  const { runs } = chosen;
  if (runs) {
    add("engine", `${runs.engine}, ${chosen.layer_groups} layer groups on the server`);
    add("quantization", runs.quantization);
  }
}

// Draws in place: a line that is open, or has the focus, stays as it is while its words change.
export class Panel {
  #drawn = new Map();

  draw(state, since) {
    const [tone, title, text] = verdictOf(state.chosen);
    this.say(tone, title, text);
    const lines = linesOf(state, since);
    const mode = state.chosen?.mode;
    const wanted = new Set(lines.map(([key]) => key));
    for (const [key, drawn] of this.#drawn) {
      if (!wanted.has(key)) { drawn.element.remove(); this.#drawn.delete(key); }
    }
    let before = null;
    for (const [key, value, more] of lines) {
      const drawn = this.#drawn.get(key) ?? this.#line(key);
      const [label, words] = explain(key, mode);
      put(drawn.label, label);
      put(drawn.value, value);
      put(drawn.words, words);
      const said = JSON.stringify(more);
      if (drawn.said !== said) {
        drawn.said = said;
        drawn.more.replaceChildren(...more.filter(([, one]) => one).map(([term, one]) =>
          make("div", {}, make("dt", {}, term), make("dd", {}, one))));
      }
      const place = before ? before.nextSibling : at("lines").firstChild;
      if (place !== drawn.element) at("lines").insertBefore(drawn.element, place);
      before = drawn.element;
    }
  }

  say(tone, title, text) {
    document.body.dataset.tone = tone;
    put(at("verdict-title"), title);
    put(at("verdict-text"), text);
    put(at("strip-title"), tone === "simulated" ? "Simulated: nothing is protected" : title);
    put(at("strip-text"), { simulated: "", refused: "Nothing is sent.", away: "Nothing is sent." }[tone] ?? text);
  }

  #line(key) {
    const drawn = {
      label: make("span", { className: "label" }), value: make("span", { className: "value" }),
      words: make("p", {}), more: make("dl", {}), said: "",
    };
    drawn.element = make("details", { className: "line", "data-line": key },
      make("summary", {}, drawn.label, " ", drawn.value), drawn.words, drawn.more);
    this.#drawn.set(key, drawn);
    return drawn;
  }
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
