// The proxy's endpoints, asked with the page's token. It came behind # in the page's address, and stays in this tab.

const KEPT = "confide-page-token";
const LONGEST_LINE = 4 << 20;

export class ApiError extends Error {
  constructor(message, code = "", status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

export function takeToken() {
  const found = /^#token=([\w-]{1,128})$/.exec(location.hash);
  if (found) {
    sessionStorage.setItem(KEPT, found[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEPT) !== null;
}

function request(path, options = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(KEPT) ?? ""}`, ...options.headers };
  return fetch(path, { cache: "no-store", redirect: "error", credentials: "omit", ...options, headers });
}

export async function status() {
  const answer = await request("/confide/status").catch(() => null);
  if (answer === null) throw new ApiError("The proxy does not answer. Start it again with confide proxy.", "proxy-away");
  if (!answer.ok) throw await problemOf(answer);
  return (await answer.json()).backends;
}

async function problemOf(answer) {
  const { error = {} } = await answer.json().catch(() => ({}));
  return new ApiError(error.message ?? `The proxy answered with status ${answer.status}.`, error.code ?? "", answer.status);
}

// The pieces of an answer's text. It is whole once this ends: whatever else happens to it throws ApiError.
export async function* answerOf(question, signal) {
  let answer;
  try {
    answer = await request("/v1/chat/completions", {
      method: "POST", headers: { "content-type": "application/json" }, signal,
      body: JSON.stringify({ ...question, stream: true }),
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("The proxy does not answer. Start it again with confide proxy, then try again.", "proxy-away");
  }
  if (!answer.ok) throw await problemOf(answer);
  for await (const data of events(answer.body, signal)) {
    if (data === "[DONE]") return;
    let part;
    try {
      part = JSON.parse(data);
    } catch {
      throw new ApiError("The answer cannot be read, and was cut here.", "cut");
    }
    if (part.error) throw new ApiError(String(part.error.message), String(part.error.code ?? ""), 200);
    const text = part.choices?.[0]?.delta?.content;
    if (typeof text === "string" && text) yield text;
  }
  throw new ApiError("The answer was cut here: the connection ended before it was whole.", "cut");
}

// The data of server-sent events.
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop();
      if (rest.length > LONGEST_LINE) throw new ApiError("The answer cannot be read, and was cut here.", "cut");
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError("The answer was cut here: the connection ended before it was whole.", "cut");
  } finally {
    reader.cancel().catch(() => {});
  }
}
