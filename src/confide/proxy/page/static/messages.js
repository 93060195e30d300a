// The messages of one conversation on the page: as many as are looked at, however many there are.

import { announce, at, copy, make } from "./dom.js";
import { Growing, draw } from "./markdown.js";

const AT_ONCE = 40;
const AT_MOST = 160;
const NEAR = 96;

// What became of an answer that is not whole.
const ENDS = {
  writing: "This answer was cut: the page was closed while it came.",
  stopped: "You stopped this answer.",
};

export const tooLong = (message) => message.problem?.code === "context_length_exceeded" && message.problem.sent > 1;

export class Messages {
  #messages = [];
  #first = 0; // of those drawn
  #drawn = new Map();
  #actions;

  // actions: retry(message) and edit(message, text).
  constructor(actions) {
    this.#actions = actions;
    at("earlier").addEventListener("click", () => this.#showEarlier());
    at("latest").addEventListener("click", () => { this.toEnd(); at("scroll").focus(); });
    at("scroll").addEventListener("scroll", () => this.#noticeScroll(), { passive: true });
  }

  show(messages) {
    this.#messages = messages;
    this.#first = Math.max(0, messages.length - AT_ONCE);
    this.#drawn.clear();
    at("messages").replaceChildren(...messages.slice(this.#first).map((message) => this.#make(message)));
    this.#noticeEarlier();
    this.toEnd();
  }

  // One that was just added at the end of the same array.
  added(message) {
    const follows = this.#atEnd();
    at("messages").append(this.#make(message));
    if (follows && this.#drawn.size > AT_MOST) this.#dropFirst(this.#drawn.size - AT_ONCE);
    this.#noticeEarlier();
    this.toEnd();
  }

  // Those from this place on are gone from the array.
  cut(place) {
    for (const [id, drawn] of this.#drawn) {
      if (drawn.message.place >= place) { drawn.element.remove(); this.#drawn.delete(id); }
    }
    if (this.#drawn.size === 0) this.show(this.#messages);
    this.#noticeEarlier();
  }

  // Draw an answer as it comes. Returns what to call with each piece, and what to call once it is over.
  growing(message) {
    const { body, element } = this.#drawn.get(message.id);
    element.setAttribute("aria-busy", "true");
    element.classList.add("writing");
    const text = new Growing(body, announce);
    let waiting = message.text;
    let frame = 0;
    const flush = () => {
      frame = 0;
      const follows = this.#atEnd();
      text.add(waiting);
      waiting = "";
      if (follows) this.toEnd();
    };
    if (waiting) flush();
    return {
      add: (piece) => { waiting += piece; frame ||= requestAnimationFrame(flush); },
      end: () => {
        cancelAnimationFrame(frame);
        const follows = this.#atEnd();
        flush();
        text.end();
        element.removeAttribute("aria-busy");
        element.classList.remove("writing");
        this.#finish(message);
        if (follows) this.toEnd();
      },
    };
  }

  toEnd() {
    const box = at("scroll");
    box.scrollTop = box.scrollHeight;
    at("latest").hidden = true;
  }

  #atEnd() {
    const box = at("scroll");
    return box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
  }

  #noticeScroll() {
    at("latest").hidden = this.#atEnd();
  }

  #noticeEarlier() {
    at("welcome").hidden = this.#messages.length > 0;
    at("earlier").hidden = this.#first === 0;
    at("earlier").textContent = `Show earlier messages (${this.#first.toLocaleString("en")})`;
  }

  #showEarlier() {
    const from = Math.max(0, this.#first - AT_ONCE);
    const box = at("scroll");
    const below = box.scrollHeight - box.scrollTop;
    const earlier = this.#messages.slice(from, this.#first).map((message) => this.#make(message));
    at("messages").prepend(...earlier);
    this.#first = from;
    this.#noticeEarlier();
    box.scrollTop = box.scrollHeight - below;
    if (from === 0) earlier[0]?.focus();
  }

  #dropFirst(count) {
    for (const [id, drawn] of [...this.#drawn].sort(([, one], [, other]) => one.message.place - other.message.place).slice(0, count)) {
      drawn.element.remove();
      this.#drawn.delete(id);
    }
    this.#first += count;
  }

  #make(message) {
    const mine = message.role === "user";
    const body = make("div", { className: "body", dir: mine ? "auto" : "" });
    const foot = make("div", { className: "foot" });
    const element = make("li", { className: `message ${message.role}`, tabIndex: -1, "data-id": message.id },
      make("h2", { className: "sr" }, mine ? "You" : `Answer${message.model ? ` of ${message.model}` : ""}`), body, foot);
    this.#drawn.set(message.id, { message, element, body, foot });
    if (mine) body.textContent = message.text;
    else if (!message.now) body.append(draw(message.text));
    if (!message.now) this.#finish(message);
    return element;
  }

  // What stands below a message: what became of it, by whom it is, and what can be done.
  #finish(message) {
    const drawn = this.#drawn.get(message.id);
    if (!drawn) return; // another conversation is shown
    const { body, foot, element } = drawn;
    foot.replaceChildren();
    for (const old of element.querySelectorAll(":scope > .problem, :scope > .note")) old.remove();
    if (message.problem) {
      const shown = make("div", { className: `problem${message.problem.refused ? " refused" : ""}`, role: "alert" },
        make("strong", {}, message.problem.refused ? "Refused. Nothing was sent." : "No answer"),
        make("p", {}, message.problem.text));
      if (message.problem.code) shown.append(make("code", {}, message.problem.code));
      element.insertBefore(shown, foot);
    } else if (ENDS[message.state]) element.insertBefore(make("p", { className: "note" }, ENDS[message.state]), foot);
    if (message.role === "assistant" && message.by) {
      foot.append(make("span", { className: `by ${message.by.tone}` }, `${message.model} · ${message.by.words}`));
    }
    const button = (label, name, work) => {
      const made = make("button", { type: "button", className: "quiet", "aria-label": name }, label);
      made.addEventListener("click", () => work(made));
      foot.append(made);
      return made;
    };
    if (message.text) button("Copy", "Copy this message", (made) => copy(message.text, made));
    if (message.role === "user") button("Edit", "Edit this question", (made) => this.#edit(message, body, made));
    else if (tooLong(message)) button("Retry with half of it", "Ask again, and send half of the conversation", () => this.#actions.retry(message));
    else button("Retry", "Ask again for this answer", () => this.#actions.retry(message));
  }

  #edit(message, body, button) {
    const area = make("textarea", { value: message.text, rows: Math.min(12, message.text.split("\n").length + 1), "aria-label": "Your question, edited" });
    const form = make("form", { className: "edit" }, area, make("div", { className: "row" },
      make("button", { type: "submit", className: "primary" }, "Ask this instead"),
      make("button", { type: "button" }, "Cancel")));
    const close = () => { form.replaceWith(body); button.disabled = false; button.focus(); };
    form.lastElementChild.lastElementChild.addEventListener("click", close);
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === area) { event.preventDefault(); form.requestSubmit(); }
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = area.value.trim();
      if (text) this.#actions.edit(message, text);
    });
    button.disabled = true;
    body.replaceWith(form);
    area.focus();
  }
}
