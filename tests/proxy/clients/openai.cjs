// The openai SDK for Node, given nothing but the environment: node openai.cjs. Prints what it got as JSON.

const OpenAI = require("openai");

const CHAT = { model: "echo", messages: [{ role: "user", content: "good morning" }] };

async function main() {
  const client = new OpenAI({ maxRetries: 0 });
  const whole = await client.chat.completions.create(CHAT);
  let streamed = "";
  for await (const part of await client.chat.completions.create({ ...CHAT, stream: true })) {
    streamed += part.choices[0]?.delta?.content ?? "";
  }
  const text = await client.completions.create({ model: "echo", prompt: "a" });
  const vectors = await client.embeddings.create({ model: "echo", input: "abc" });
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  const leaving = await client.completions.create({ model: "echo", prompt: "word ".repeat(500), stream: true });
  for await (const _ of leaving) break;
  const failure = await client.chat.completions.create({ ...CHAT, model: "other" }).catch((error) => error);
  console.log(JSON.stringify({
    whole: whole.choices[0].message.content,
    usage: whole.usage.total_tokens,
    streamed,
    text: text.choices[0].text,
    embedding: vectors.data[0].embedding,
    names,
    failure: `${failure.constructor.name}: ${failure.message}`,
  }));
}

main();
