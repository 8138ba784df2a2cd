// Asks the server that gave this page, by OpenAI's API: which model there is, and answers as they are written.

/** What the server refused, or could not do. */
export class AskError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The name of the model that answers. */
export async function modelName(key) {
  const response = await request("v1/models", key, {});
  return (await response.json()).data[0].id;
}

/**
 * Ask, and yield pieces of the answer: {text}, {finish} or {usage}.
 * @param {object} body of a chat completion, without `stream`.
 * @param {AbortSignal} signal ends the answer, on the server too.
 */
export async function* answer(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const event of events(response.body)) {
    if (event.error) throw new AskError(event.error.message);
    const [choice] = event.choices;
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (event.usage) yield { usage: event.usage };
  }
}

async function request(path, key, options) {
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw new AskError(await problem(response), response.status);
  return response;
}

async function problem(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  const wait = response.headers.get("retry-after");
  return wait ? `${message} (${wait} s)` : message;
}

/** The JSON values of server-sent events; the connection must not break before their end mark. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new AskError("The connection broke before the answer was whole.");
    });
    if (done) throw new AskError("The connection ended before the answer was whole.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
