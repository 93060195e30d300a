// A conversation as a file, made in the browser.

export function asJson(conversation, messages) {
  const { title, system, created } = conversation;
  return JSON.stringify({
    "confide-conversation": 1, title, system, created: new Date(created).toISOString(),
    messages: messages.map(({ role, text, at, model, by, state, problem }) => ({
      role, content: text, at: new Date(at).toISOString(), ...(model && { model }), ...(by && { protection: by.words }),
      ...(state && state !== "whole" && { state }), ...(problem && { error: { code: problem.code, message: problem.text } }),
    })),
  }, null, 2);
}

export function asMarkdown(conversation, messages) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system) parts.push(`> ${conversation.system.replaceAll("\n", "\n> ")}`);
  for (const message of messages) {
    const who = message.role === "user" ? "You" : `${message.model}${message.by ? ` (${message.by.words})` : ""}`;
    parts.push(`## ${who}`, message.text || `*${message.problem?.text ?? "no answer"}*`);
  }
  return `${parts.join("\n\n")}\n`;
}

export function download(name, kind, content) {
  const url = URL.createObjectURL(new Blob([content], { type: kind }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${name.replace(/[^\p{L}\p{N} _-]/gu, "").trim().slice(0, 60) || "conversation"}.${kind === "application/json" ? "json" : "md"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
