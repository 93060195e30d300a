// Markdown as models write it, to DOM nodes. Whoever wrote the text is not trusted: it becomes text nodes and a fixed
// set of elements, never markup; links lead to http, https and mailto only, and images are named, not loaded.
// CommonMark's rules and GitHub's tables, without HTML, references, underlined headings and indented code; a line's end
// is one in what is shown, too. Time is linear in the text.

import { copy, make } from "./dom.js";

const DEEPEST = 12;
const NESTED = 32;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

// -- blocks: lines to [{type, start, ...}], start being the first line of each --------------------------------------

const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}(?! )| +|$)/;
const COLUMNS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;

const blank = (line) => line.trim() === "";

function fenceOf(line) {
  const found = FENCE.exec(line);
  return found && !(found[2][0] === "`" && found[3].includes("`")) ? found : null;
}

function beginsBlock(line) {
  const item = ITEM.exec(line);
  return (
    fenceOf(line) !== null || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) ||
    (item !== null && item[3] !== "" && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1))
  );
}

function beginsTable(lines, index) {
  const next = lines[index + 1];
  return lines[index].includes("|") && next !== undefined && next.includes("-") && COLUMNS.test(next.trimEnd());
}

export function parse(lines, depth = 0) {
  const blocks = [];
  let index = 0;
  while (index < lines.length) {
    if (blank(lines[index])) { index += 1; continue; }
    const [block, next] = blockAt(lines, index, depth);
    block.start = index;
    blocks.push(block);
    index = next;
  }
  return blocks;
}

function blockAt(lines, index, depth) {
  const line = lines[index];
  const fence = fenceOf(line);
  if (fence) return codeAt(lines, index, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = line.slice(heading[0].length).trim();
    let end = text.length;
    while (text[end - 1] === "#") end -= 1;
    const closed = end === 0 || text[end - 1] === " " ? text.slice(0, end).trim() : text;
    return [{ type: "heading", level: heading[1].length, text: closed }, index + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, index + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quoteAt(lines, index, depth);
  const item = ITEM.exec(line);
  if (depth < DEEPEST && item) return listAt(lines, index, item, depth);
  if (beginsTable(lines, index)) return tableAt(lines, index);
  let end = index + 1;
  while (end < lines.length && !blank(lines[end]) && !beginsBlock(lines[end]) && !beginsTable(lines, end)) end += 1;
  return [{ type: "paragraph", text: lines.slice(index, end).map((one) => one.trimStart()).join("\n").trimEnd() }, end];
}

function codeAt(lines, index, [, indent, mark, info]) {
  let end = index + 1;
  const strip = indent.length;
  const content = [];
  for (; end < lines.length; end += 1) {
    const line = lines[end].trim();
    const closes = line.length >= mark.length && line[0] === mark[0] && line === mark[0].repeat(line.length);
    if (closes && lines[end].search(/\S/) < 4) return [{ type: "code", info: info.trim(), text: content.join("\n") }, end + 1];
    let from = 0;
    while (from < strip && lines[end][from] === " ") from += 1;
    content.push(lines[end].slice(from));
  }
  return [{ type: "code", info: info.trim(), text: content.join("\n") }, end];
}

function quoteAt(lines, index, depth) {
  const inner = [];
  let end = index;
  for (; end < lines.length; end += 1) {
    const found = QUOTE.exec(lines[end]);
    if (found) inner.push(lines[end].slice(found[0].length));
    else if (blank(lines[end]) || beginsBlock(lines[end])) break;
    else inner.push(lines[end]);
  }
  return [{ type: "quote", blocks: parse(inner, depth + 1) }, end];
}

function listAt(lines, index, first, depth) {
  const ordered = /\d/.test(first[2]);
  const kind = first[2].at(-1);
  const items = [];
  let loose = false;
  let end = index;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || found[2].at(-1) !== kind || RULE.test(lines[end])) break;
    const indent = found[1].length + found[2].length + (found[3].length > 4 || found[3] === "" ? 1 : found[3].length);
    const content = [lines[end].slice(indent)];
    end += 1;
    let gap = false;
    for (; end < lines.length; end += 1) {
      const line = lines[end];
      if (blank(line)) { gap = true; content.push(""); continue; }
      const inside = line.search(/\S/) >= indent;
      if (!inside && (gap || beginsBlock(line) || ITEM.test(line))) break;
      loose ||= gap && inside;
      gap = false;
      content.push(inside ? line.slice(indent) : line.trimStart());
    }
    const next = end < lines.length ? ITEM.exec(lines[end]) : null;
    loose ||= gap && next !== null && next[2].at(-1) === kind;
    const task = /^\[([ xX])\] /.exec(content[0]);
    if (task) content[0] = content[0].slice(4);
    items.push({ blocks: parse(content, depth + 1), task: task ? task[1] !== " " : null });
  }
  return [{ type: "list", ordered, from: ordered ? parseInt(first[2], 10) : 1, loose, items }, end];
}

function cells(line) {
  const found = [];
  let cell = "";
  const text = line.trim();
  for (let index = text[0] === "|" ? 1 : 0; index < text.length; index += 1) {
    if (text[index] === "\\" && text[index + 1] === "|") { cell += "|"; index += 1; }
    else if (text[index] === "|") { found.push(cell.trim()); cell = ""; }
    else cell += text[index];
  }
  if (cell.trim() !== "" || text.at(-1) !== "|") found.push(cell.trim());
  return found;
}

function tableAt(lines, index) {
  const align = cells(lines[index + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : "left";
  });
  const head = cells(lines[index]);
  const rows = [];
  let end = index + 2;
  for (; end < lines.length && !blank(lines[end]) && lines[end].includes("|"); end += 1) rows.push(cells(lines[end]));
  return [{ type: "table", align, head, rows }, end];
}

// -- inlines: text to DOM nodes ------------------------------------------------------------------------------------

const SPECIAL = /[\\`*_~[\]!<\n]|https?:\/\//g;
const URL_HERE = /https?:\/\/[^\s<>"`[\]]{1,2000}/y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const TARGET = /\([ \t]*(?:<([^<>\n]{0,2000})>|((?:[^\s()<>\\]|\\[!-/:-@[-`{-~]|\([^\s()<>]{0,500}\)){0,2000}))(?:[ \t\n]+(?:"[^"]{0,500}"|'[^']{0,500}'))?[ \t]*\)/y;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };

const plain = (text) => text.replace(/&(amp|lt|gt|quot|apos|nbsp|#39);/g, (_, name) => ENTITIES[name]);

// The runs of backticks by their length, so that the end of a code span is found without searching for it again.
function tickRuns(text) {
  const runs = new Map();
  for (const found of text.matchAll(/`+/g)) {
    const length = found[0].length;
    if (!runs.has(length)) runs.set(length, { places: [], next: 0 });
    runs.get(length).places.push(found.index);
  }
  return runs;
}

function closingRun(runs, length, after) {
  const run = runs.get(length);
  while (run && run.next < run.places.length && run.places[run.next] < after) run.next += 1;
  return run?.places[run.next];
}

export function inline(text) {
  const runs = tickRuns(text);
  const brackets = [];
  let tokens = [];
  let index = 0;

  const say = (words) => { if (words) tokens.push({ kind: "text", text: words }); };

  const closeBracket = () => {
    const open = brackets.pop();
    if (open === undefined) return say("]");
    TARGET.lastIndex = index;
    const target = TARGET.exec(text);
    if (!target) return say("]");
    index = TARGET.lastIndex;
    const inner = tokens.splice(open.place).slice(1);
    const href = (target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
    pair(inner);
    if (open.image) tokens.push({ kind: "image", href, inner });
    else {
      tokens.push({ kind: "link", href, inner });
      brackets.length = 0; // no link is within another one
    }
  };

  const delimiters = (mark) => {
    let end = index;
    while (text[end] === mark) end += 1;
    const count = end - index;
    const [before, after] = [text[index - 1] ?? " ", text[end] ?? " "];
    const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
    const [pointBefore, pointAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const left = !spaceAfter && (!pointAfter || spaceBefore || pointBefore);
    const right = !spaceBefore && (!pointBefore || spaceAfter || pointAfter);
    const word = mark === "_";
    index = end;
    if (mark === "~" && count !== 2) return say(mark.repeat(count));
    tokens.push({
      kind: "delimiter", mark, count, left: count, opens: left && (!word || !right || pointBefore),
      closes: right && (!word || !left || pointAfter), begins: [], ends: [],
    });
  };

  while (index < text.length) {
    SPECIAL.lastIndex = index;
    const found = SPECIAL.exec(text);
    const until = found ? found.index : text.length;
    say(text.slice(index, until));
    index = until;
    if (!found) break;
    const letter = text[index];
    if (letter === "h") {
      URL_HERE.lastIndex = index;
      const address = /[\p{L}\p{N}]/u.test(text[index - 1] ?? " ") ? null : URL_HERE.exec(text);
      if (address) {
        const href = trimmed(address[0]);
        tokens.push({ kind: "link", href, inner: [{ kind: "text", text: href }] });
        index += href.length;
      } else { say("h"); index += 1; }
    } else if (letter === "\\") {
      const next = text[index + 1] ?? "";
      if (next === "\n") { tokens.push({ kind: "break" }); index += 2; }
      else if (/[!-/:-@[-`{-~]/.test(next)) { tokens.push({ kind: "text", text: next, exact: true }); index += 2; }
      else { say("\\"); index += 1; }
    } else if (letter === "\n") {
      tokens.push({ kind: "break" });
      index += 1;
    } else if (letter === "`") {
      let end = index;
      while (text[end] === "`") end += 1;
      const close = closingRun(runs, end - index, end);
      if (close === undefined) { say(text.slice(index, end)); index = end; }
      else {
        const content = text.slice(end, close).replaceAll("\n", " ");
        const padded = content.startsWith(" ") && content.endsWith(" ") && content.trim() !== "";
        tokens.push({ kind: "code", text: padded ? content.slice(1, -1) : content });
        index = close + (end - index);
      }
    } else if (letter === "<") {
      ANGLE.lastIndex = index;
      const address = ANGLE.exec(text);
      if (address) {
        tokens.push({ kind: "link", href: address[1], inner: [{ kind: "text", text: address[1] }] });
        index = ANGLE.lastIndex;
      } else { say("<"); index += 1; }
    } else if (letter === "[" || (letter === "!" && text[index + 1] === "[")) {
      const image = letter === "!";
      brackets.push({ place: tokens.length, image });
      if (brackets.length > NESTED) brackets.shift();
      say(image ? "![" : "[");
      index += image ? 2 : 1;
    } else if (letter === "]") {
      index += 1;
      closeBracket();
    } else if (letter === "!") { say("!"); index += 1; }
    else delimiters(letter);
  }
  pair(tokens);
  const fragment = document.createDocumentFragment();
  build(tokens, fragment, false);
  return fragment;
}

// What ends an address in a sentence does not belong to it.
function trimmed(address) {
  let end = address.length;
  let open = 0;
  for (const letter of address) open += letter === "(" ? 1 : letter === ")" ? -1 : 0;
  while (end > 0) {
    const last = address[end - 1];
    if (last === ")" && open < 0) open += 1;
    else if (!/[.,;:!?'*_~\]]/.test(last)) break;
    end -= 1;
  }
  return address.slice(0, end);
}

// Find the delimiters that belong together, as CommonMark's "process emphasis" does.
function pair(tokens) {
  const stack = [];
  const bottom = new Map();
  for (const closer of tokens) {
    if (closer.kind !== "delimiter") continue;
    while (closer.closes && closer.left > 0) {
      const key = `${closer.mark}${closer.opens}${closer.count % 3}`;
      let place = stack.length - 1;
      const lowest = bottom.get(key) ?? 0;
      for (; place >= lowest; place -= 1) {
        const opener = stack[place];
        const odd = (opener.closes || closer.opens) && (opener.count + closer.count) % 3 === 0 &&
          (opener.count % 3 !== 0 || closer.count % 3 !== 0);
        if (opener.mark === closer.mark && !odd) break;
      }
      if (place < lowest) { bottom.set(key, stack.length); break; }
      const opener = stack[place];
      const use = opener.left >= 2 && closer.left >= 2 ? 2 : 1;
      const name = closer.mark === "~" ? "del" : use === 2 ? "strong" : "em";
      opener.begins.unshift(name);
      closer.ends.push(name);
      opener.left -= use;
      closer.left -= use;
      stack.length = opener.left > 0 ? place + 1 : place;
      for (const [one, low] of bottom) if (low > stack.length) bottom.set(one, stack.length);
    }
    if (closer.opens && closer.left > 0) stack.push(closer);
  }
}

function build(tokens, parent, linked) {
  const stack = [parent];
  let skipped = 0; // elements that would be too deep, and are left out
  for (const token of tokens) {
    const here = stack.at(-1);
    switch (token.kind) {
      case "text": here.append(token.exact ? token.text : plain(token.text)); break;
      case "break": here.append(make("br")); break;
      case "code": here.append(make("code", {}, token.text)); break;
      case "image": here.append(image(token, linked)); break;
      case "link": {
        const href = linked ? null : safe(token.href);
        const element = href === null ? make("span") : anchor(href);
        build(token.inner, element, true);
        here.append(element);
        if (href !== null) here.append(...elsewhere(element, href));
        break;
      }
      default: {
        for (const _ of token.ends) { if (skipped > 0) skipped -= 1; else stack.pop(); }
        stack.at(-1).append(token.mark.repeat(token.left));
        for (const name of token.begins) {
          if (stack.length > DEEPEST) { skipped += 1; continue; }
          const element = make(name);
          stack.at(-1).append(element);
          stack.push(element);
        }
      }
    }
  }
}

// An address that may be followed, or null.
export function safe(href) {
  try {
    const url = new URL(href);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function anchor(href) {
  return make("a", { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href });
}

// Where a link leads, if its words do not say so.
function elsewhere(element, href) {
  const host = new URL(href).host;
  if (host === "" || element.textContent.toLowerCase().includes(host)) return [];
  return [make("span", { className: "host" }, ` (${host})`)];
}

function image(token, linked) {
  const words = `Image, not loaded: ${wordsOf(token.inner) || "without a description"}`;
  const href = linked ? null : safe(token.href);
  const element = href === null ? make("span") : anchor(href);
  element.className = "image";
  element.append(words);
  return element;
}

function wordsOf(tokens) {
  return tokens.map((token) => (token.inner ? wordsOf(token.inner) : token.text ?? " ")).join("").slice(0, 300);
}

// -- blocks to DOM nodes ---------------------------------------------------------------------------------------------

function drawBlock(block, tight) {
  switch (block.type) {
    case "heading":
      return make(`h${Math.min(6, block.level + 2)}`, {}, inline(block.text));
    case "rule": return make("hr");
    case "code": return drawCode(block);
    case "quote": return make("blockquote", {}, ...block.blocks.map((inner) => drawBlock(inner, false)));
    case "list": {
      const list = make(block.ordered ? "ol" : "ul", {}, ...block.items.map((item) => drawItem(item, !block.loose)));
      if (block.ordered && block.from !== 1) list.start = block.from;
      return list;
    }
    case "table": return drawTable(block);
    default: return tight ? inline(block.text) : make("p", {}, inline(block.text));
  }
}

function drawItem(item, tight) {
  const element = make("li");
  if (item.task !== null) {
    element.className = "task";
    element.append(make("span", { className: "box", role: "img", "aria-label": item.task ? "done" : "not done" }, item.task ? "☑" : "☐"), " ");
  }
  element.append(...item.blocks.map((block) => drawBlock(block, tight)));
  return element;
}

function drawCode(block) {
  const language = block.info.split(/\s/, 1)[0].slice(0, 40);
  const button = make("button", { type: "button", className: "copy", "aria-label": "Copy this code" }, "Copy");
  button.addEventListener("click", () => copy(block.text, button));
  const name = language ? `Code, ${language}` : "Code";
  return make(
    "div", { className: "code" },
    make("div", { className: "code-head" }, make("span", {}, language || "code"), button),
    make("pre", { tabIndex: 0, role: "region", "aria-label": name }, make("code", {}, block.text)),
  );
}

function drawTable(block) {
  const width = block.head.length;
  const row = (name, texts) => make("tr", {}, ...Array.from({ length: width }, (_, column) => {
    const cell = make(name, {}, inline(texts[column] ?? ""));
    if (name === "th") cell.scope = "col";
    cell.className = `to-${block.align[column] ?? "left"}`;
    return cell;
  }));
  const table = make("table", {},
    make("thead", {}, row("th", block.head)), make("tbody", {}, ...block.rows.map((texts) => row("td", texts))));
  return make("div", { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" }, table);
}

export function draw(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...parse(text.split(/\r\n|\r|\n/)).map((block) => drawBlock(block, false)));
  return fragment;
}

// A text that grows. Only its last two blocks can change, as where "4" after a list becomes its item "4. d"; so the ones
// before them are drawn once.
export class Growing {
  #container;
  #rest = "";
  #live = [];
  #onBlock;

  // onBlock: called with the words of each block that is complete.
  constructor(container, onBlock = () => {}) {
    this.#container = container;
    this.#onBlock = onBlock;
  }

  add(text) {
    this.#rest += text;
    const lines = this.#rest.split(/\r\n|\r|\n/);
    const blocks = parse(lines);
    const changing = blocks.slice(-2);
    for (const element of this.#live) element.remove();
    for (const block of blocks.slice(0, -2)) {
      const element = drawBlock(block, false);
      this.#container.append(element);
      this.#onBlock(element.textContent);
    }
    if (blocks.length > 2) this.#rest = lines.slice(changing[0].start).join("\n");
    this.#live = changing.map((block) => drawBlock(block, false));
    this.#container.append(...this.#live);
  }

  end() {
    for (const element of this.#live) this.#onBlock(element.textContent);
    this.#live = [];
    this.#rest = "";
  }
}
