// Node's own fetch, with the requests that the openai SDK makes of it: node fetch.mjs. Prints what it got as JSON.

const BASE = process.env.OPENAI_BASE_URL;
const HEADERS = {
  accept: "application/json",
  "content-type": "application/json",
  "user-agent": "OpenAI/JS",
  "x-stainless-lang": "js",
  "x-stainless-retry-count": "0",
  "x-stainless-timeout": "600",
  authorization: `Bearer ${process.env.OPENAI_API_KEY}`,
};
const CHAT = { model: "echo", messages: [{ role: "user", content: "good morning" }] };

const ask = (path, body, signal) =>
  fetch(`${BASE}${path}`, { method: "POST", headers: HEADERS, body: JSON.stringify(body), signal });

const whole = await (await ask("/chat/completions", CHAT)).json();
const events = (await (await ask("/chat/completions", { ...CHAT, stream: true })).text())
  .split("\n\n").map((event) => event.replace("data: ", "").trim()).filter((event) => event && event !== "[DONE]");
const models = await (await fetch(`${BASE}/models`, { headers: HEADERS })).json();
const leaving = new AbortController();
const long = { model: "echo", prompt: "word ".repeat(500), stream: true };
await (await ask("/completions", long, leaving.signal)).body.getReader().read();
leaving.abort();
const failure = await ask("/chat/completions", { ...CHAT, model: "other" });
console.log(JSON.stringify({
  whole: whole.choices[0].message.content,
  streamed: events.map((event) => JSON.parse(event).choices[0].delta.content ?? "").join(""),
  names: models.data.map((model) => model.id),
  failure: `${failure.status} ${(await failure.json()).error.message}`,
}));
