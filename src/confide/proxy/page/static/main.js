// The page: conversations, the question that is written, the answer that comes, and the panel beside them.

import { ApiError, answerOf, status, takeToken } from "./api.js";
import { announce, at, make } from "./dom.js";
import { asJson, asMarkdown, download } from "./export.js";
import { Messages, tooLong } from "./messages.js";
import { Panel, names, standing, verdictOf } from "./panel.js";
import { Store } from "./store.js";
import { FAMILIES } from "./words.js";

const POLL_MS = 5000;
const SAVE_MS = 1000;
const MOST_SENT = 512; // messages; servers take some more
const REFUSED = new Set([403]);
const UNTITLED = "New conversation";

let store;
let conversations = [];
let current = null; // the conversation that is shown; saved once it has a message
let messages = []; // of it, all of them
let backends = [];
let asked = 0; // when the backends were, by performance.now
let running = null; // the answer that comes: {abort, conversation, thread, message, growing}
const panel = new Panel();
const view = new Messages({ retry, edit });

// -- what the proxy says -----------------------------------------------------------------------------------------------

async function look() {
  try {
    backends = await status();
    asked = performance.now();
    lock(false);
    drawModels();
    drawPanel();
  } catch (error) {
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) lock(true);
    else {
      backends = [];
      panel.draw(standing([], ""), 0);
      panel.say("away", "Proxy away", `Nothing is sent. ${error instanceof ApiError ? error.message : "The proxy cannot be read."}`);
    }
  }
}

function drawPanel() {
  const state = standing(backends, at("model").value);
  panel.draw(state, (performance.now() - asked) / 1000);
  const refused = backends.find((one) => one.state === "refused");
  at("refusal").hidden = refused === undefined;
}

function drawModels() {
  const select = at("model");
  const known = [...new Set(backends.flatMap(names))];
  if (JSON.stringify(known) !== JSON.stringify([...select.options].map((option) => option.value))) {
    const before = select.value;
    select.replaceChildren(...known.map((name) => make("option", { value: name }, name)));
    select.value = [before, current?.model, firstReady(), known[0]].find((name) => known.includes(name)) ?? "";
  }
}

const firstReady = () => {
  const ready = backends.find((one) => one.state === "ready");
  return ready && names(ready)[0];
};

function lock(locked) {
  if (at("locked").hidden === !locked) return;
  at("locked").hidden = !locked;
  for (const id of ["bar", "conversations", "main", "panel"]) at(id).inert = locked;
  if (locked) at("locked-title").focus();
}

// -- conversations -----------------------------------------------------------------------------------------------------

function fresh() {
  const now = Date.now();
  return { id: crypto.randomUUID(), title: UNTITLED, system: "", model: at("model").value, created: now, changed: now };
}

async function open(conversation) {
  current = conversation;
  const live = running?.conversation === conversation;
  const found = live ? running.thread : conversations.includes(conversation) ? await store.messages(conversation.id) : [];
  if (current !== conversation) return; // another one was opened meanwhile
  messages = found;
  const known = [...at("model").options].some((option) => option.value === conversation.model);
  if (known) at("model").value = conversation.model;
  view.show(messages);
  if (live) running.growing = view.growing(running.message);
  drawList();
  drawPanel();
  drawRunning();
  drawer("conversations", "menu", false);
}

function drawList() {
  at("title").textContent = current.title;
  document.title = current.title === UNTITLED ? "Confide" : `${current.title} · Confide`;
  at("list").replaceChildren(...conversations.map((conversation) => {
    const button = make("button", { type: "button", className: "conversation", dir: "auto" }, conversation.title);
    if (conversation === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(conversation).then(() => at("question").focus()));
    return make("li", {}, button);
  }));
}

async function touch(conversation) {
  conversation.changed = Date.now();
  conversations = [conversation, ...conversations.filter((one) => one !== conversation)];
  drawList();
  await store.saveConversation({ ...conversation });
}

function startNew() {
  return open(fresh()).then(() => at("question").focus());
}

// -- asking ------------------------------------------------------------------------------------------------------------

async function ask(text) {
  const [conversation, thread] = [current, messages];
  if (conversation.title === UNTITLED) conversation.title = text.split("\n")[0].slice(0, 60);
  await append(conversation, thread, { role: "user", text, state: "whole" });
  await answer(conversation, thread);
}

function append(conversation, thread, message) {
  const place = (thread.at(-1)?.place ?? -1) + 1;
  Object.assign(message, { id: crypto.randomUUID(), conversation: conversation.id, place, at: Date.now() });
  thread.push(message);
  if (thread === messages) view.added(message);
  return Promise.all([touch(conversation), save(message)]);
}

const save = ({ now, ...message }) => store.saveMessage(message);

// What the model is sent. A question that got no answer is left out with it: roles take turns.
function turnsOf(conversation, thread) {
  const turns = [];
  for (const one of thread) {
    if (one.role === "assistant" && (!one.text || one.problem)) {
      if (turns.at(-1)?.role === "user") turns.pop();
    } else turns.push({ role: one.role, content: one.text });
  }
  const sent = turns.slice(-(conversation.most ?? MOST_SENT));
  if (sent.length > 1 && sent[0].role === "assistant") sent.shift();
  at("window").hidden = sent.length === turns.length;
  at("window").textContent = `The model is sent the last ${sent.length} of ${turns.length.toLocaleString("en")} messages.`;
  return conversation.system ? [{ role: "system", content: conversation.system }, ...sent] : sent;
}

async function answer(conversation, thread) {
  const model = at("model").value;
  const turns = turnsOf(conversation, thread);
  const abort = new AbortController();
  const message = { role: "assistant", text: "", state: "writing", model, now: true };
  running = { abort, conversation, thread, message, growing: null };
  conversation.model = model;
  drawRunning();
  await look(); // what is written beside the answer is as of now
  message.by = protection(model);
  await append(conversation, thread, message);
  if (thread === messages) running.growing = view.growing(message);
  let saved = performance.now();
  try {
    for await (const piece of answerOf({ model, messages: turns }, abort.signal)) {
      message.text += piece;
      running.growing?.add(piece);
      if (performance.now() - saved > SAVE_MS) { saved = performance.now(); await save(message); }
    }
    message.state = "whole";
  } catch (error) {
    if (abort.signal.aborted) message.state = "stopped";
    else {
      message.state = "failed";
      const known = error instanceof ApiError;
      message.problem = {
        text: known ? error.message : "The page failed inside; reload it.",
        code: known ? error.code : "",
        refused: known && REFUSED.has(error.status),
        sent: turns.length,
      };
    }
  }
  delete message.now;
  const { growing } = running;
  running = null;
  growing?.end();
  drawRunning();
  if (message.state === "whole") announce("The answer is complete.");
  if (conversations.includes(conversation)) await save(message); // it may have been deleted meanwhile
  await look();
}

// What stands beside an answer for good: which protection it came under.
function protection(model) {
  const { chosen } = standing(backends, model);
  const [tone, title] = verdictOf(chosen);
  if (tone === "verified") return { tone, words: chosen.mode === "hybrid" ? "encrypted" : `verified ${FAMILIES[chosen.family] ?? chosen.family}` };
  return { tone, words: tone === "simulated" ? "SIMULATED, not protected" : title.toLowerCase() };
}

async function rewind(place, expected) {
  if (running) return false;
  const kept = messages.findIndex((one) => one.place >= place);
  const follow = messages.length - kept - 1;
  if (follow > expected && !(await confirmed(`Ask again, and delete the ${follow} messages after this one?`))) return false;
  messages.length = kept;
  view.cut(place);
  at("question").focus();
  await store.forgetFrom(current.id, place);
  return true;
}

async function retry(message) {
  const [conversation, thread] = [current, messages];
  if (!(await rewind(message.place, 0))) return;
  if (tooLong(message)) conversation.most = Math.max(1, Math.floor(message.problem.sent / 2));
  await answer(conversation, thread);
}

async function edit(message, text) {
  if (await rewind(message.place, 1)) await ask(text);
}

function drawRunning() {
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
}

function stop() {
  running?.abort.abort();
}

function send() {
  const text = at("question").value.trim();
  if (!text || running) return;
  at("question").value = "";
  fit();
  ask(text);
}

function fit() {
  const area = at("question");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight / 3)}px`;
}

// -- drawers and dialogs -----------------------------------------------------------------------------------------------

// On small screens, conversations and panel lie over the page; where there is room they are always there.
function drawer(id, button, shown) {
  const was = at(id).classList.contains("shown");
  at(id).classList.toggle("shown", shown);
  at(button).setAttribute("aria-expanded", String(shown));
  if (shown !== was) at("main").inert = shown;
  if (shown) (at(id).querySelector("button, summary") ?? at(id)).focus();
  else if (was) at(button).focus();
}

const toggle = (id, button) => drawer(id, button, !at(id).classList.contains("shown"));

function confirmed(text) {
  const dialog = at("confirm");
  at("confirm-text").textContent = text;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function openSettings() {
  at("rename").value = current.title;
  at("system").value = current.system;
  at("settings").showModal();
}

async function closeSettings() {
  current.title = at("rename").value.trim() || UNTITLED;
  current.system = at("system").value.trim();
  drawList();
  if (conversations.includes(current)) await store.saveConversation({ ...current });
}

async function forget() {
  at("settings").close();
  if (!(await confirmed("Delete this conversation?"))) return;
  stop();
  await store.forget(current.id);
  conversations = conversations.filter((one) => one !== current);
  await startNew();
}

async function forgetAll() {
  if (!(await confirmed("Delete all conversations?"))) return;
  stop();
  await store.forgetAll();
  conversations = [];
  await startNew();
}

async function showRefusal() {
  const refused = backends.find((one) => one.state === "refused");
  if (!refused || running) return;
  await open({ ...fresh(), title: "A refusal", model: names(refused)[0] });
  at("model").value = current.model;
  drawPanel();
  drawer("panel", "show-panel", false);
  await ask("Is anybody reading this?");
}

// -- beginning ---------------------------------------------------------------------------------------------------------

function listen() {
  at("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  at("question").addEventListener("input", fit);
  at("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  at("stop").addEventListener("click", () => { stop(); at("question").focus(); });
  at("new").addEventListener("click", startNew);
  at("forget-all").addEventListener("click", forgetAll);
  at("model").addEventListener("change", () => { current.model = at("model").value; drawPanel(); });
  at("settings-open").addEventListener("click", openSettings);
  at("settings").addEventListener("close", closeSettings);
  at("delete").addEventListener("click", forget);
  at("export-json").addEventListener("click", () => download(current.title, "application/json", asJson(current, messages)));
  at("export-markdown").addEventListener("click", () => download(current.title, "text/markdown", asMarkdown(current, messages)));
  at("menu").addEventListener("click", () => toggle("conversations", "menu"));
  at("show-panel").addEventListener("click", () => toggle("panel", "show-panel"));
  at("hide-panel").addEventListener("click", () => drawer("panel", "show-panel", false));
  at("show-refusal").addEventListener("click", showRefusal);
  at("skip").addEventListener("click", () => at("question").focus());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (at("conversations").classList.contains("shown")) drawer("conversations", "menu", false);
      else if (at("panel").classList.contains("shown")) drawer("panel", "show-panel", false);
      else stop();
    }
    if (event.altKey && event.code === "KeyN") { event.preventDefault(); startNew(); }
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  // Where there is room again, nothing lies over the page.
  for (const [id, button, query] of [["conversations", "menu", "(min-width: 1180px)"], ["panel", "show-panel", "(min-width: 800px)"]]) {
    matchMedia(query).addEventListener("change", () => drawer(id, button, false));
  }
  addEventListener("hashchange", () => { if (takeToken()) look(); });
  setInterval(() => { if (!document.hidden) look(); }, POLL_MS);
}

async function begin() {
  const token = takeToken();
  store = await Store.open();
  conversations = await store.conversations();
  current = fresh();
  listen();
  if (token) await look();
  else lock(true);
  await open(conversations[0] ?? current);
  if (token) at("question").focus();
  document.body.dataset.begun = "true";
}

begin();
