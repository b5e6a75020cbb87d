// The server's API: what it serves, and answers as streams of events.

const KEY = "specport.key"; // in sessionStorage, which ends with the tab

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

// Return what is served: the only entry of the list of models.
export async function model() {
  return (await (await ask("v1/models")).json()).data[0];
}

// Yield the chunks of an answer. body: without `stream`. signal: ends the answer, here and on the server.
export async function* answer(card, messages, body, signal) {
  const chat = card.specport.chat_template;
  const what = chat ? { messages } : { prompt: messages.at(-1).content };
  const response = await ask(chat ? "v1/chat/completions" : "v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      ...what,
      ...body,
      stream: true,
      stream_options: { include_usage: true, include_speculation: true },
    }),
    signal,
  });
  for await (const data of events(response.body)) {
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(0, chunk.error.message);
    yield chunk;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "The server does not answer.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answers with status ${response.status}.`;
  throw new ApiError(response.status, message);
}

// Yield the data of server-sent events up to [DONE]; comments are skipped.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError(0, "The connection ended before the answer did.");
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      yield part.slice(6);
    }
  }
}
