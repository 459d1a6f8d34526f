// What the page asks of the server: models, plans of views, and answers as they stream. Errors are APIError, one line each.

const KEY = "pocketvlm-key"; // of sessionStorage: gone with the tab

export class APIError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let askForKey = async () => null;
let asking = null; // one question at a time, however many requests wait for its answer

/** Say who asks the person for a key: a function of whether one was refused, giving the key or null. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** The cards of all models that the server has. */
export async function models() {
  const { data } = await (await call("v1/models")).json();
  return data;
}

/** Plans of pictures by mode: [{height, width, plans: {mode: plan}}]. */
export async function viewPlans(images, modes, options, signal) {
  const body = { images, downsample_modes: modes, mm_processor_kwargs: options };
  const found = await (await call("v1/view_plan", body, signal)).json();
  return found.images.map((image) => ({
    ...image,
    plans: Object.fromEntries(image.plans.map((plan) => [plan.downsample_mode, plan])),
  }));
}

/** The pages of a document: {pages, previews: [{page, height, width, image}]}; `image` is null where one cannot be read. */
export async function documentPages(url, side, signal) {
  return (await call("v1/pages", { document: url, preview_side: side }, signal)).json();
}

/** Yields the chunks of a streamed chat completion; throws APIError where the server says in it that it failed. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new APIError(chunk.error.message, 500);
    yield chunk;
  }
  throw new APIError("The answer was cut off: the server closed the connection.");
}

/** Yields the data of server-sent events. A character may be cut anywhere between two pieces, and so may a line. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(inOurWords);
      if (done) return;
      const lines = (waiting + value).split(/\r\n|\n/);
      waiting = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** Browsers have words of their own for a connection that broke, which help nobody. */
function inOurWords(error) {
  throw error.name === "AbortError" ? error : new APIError("The answer was cut off: the connection to the server broke.");
}

async function call(path, body, signal) {
  for (let refused = false; ; refused = true) {
    const response = await send(path, body, signal);
    if (response.ok) return response;
    if (response.status === 401) {
      const tried = response.tried;
      const now = sessionStorage.getItem(KEY);
      if (now !== null && now !== tried) continue; // given meanwhile, for another request
      asking ??= askForKey(tried !== null || refused).finally(() => (asking = null));
      const key = await asking;
      if (key === null) throw new APIError("The server wants an API key.", 401);
      sessionStorage.setItem(KEY, key);
      continue;
    }
    throw new APIError(await messageOf(response), response.status);
  }
}

async function send(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    const response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    response.tried = key;
    return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new APIError("The server does not answer. Is it still running?");
  }
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}
