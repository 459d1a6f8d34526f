// What people do with the `openai` package for JavaScript: `node uses.mjs NAME URL PICTURE` prints what came out as JSON.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [name, url, file] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "secret", maxRetries: 0 });
const picture = `data:image/png;base64,${readFileSync(file).toString("base64")}`;
const text = "What is the total?";
const messages = [{ role: "user", content: [{ type: "image_url", image_url: { url: picture } }, { type: "text", text }] }];
const input = [
  { role: "user", content: [{ type: "input_image", image_url: picture, detail: "auto" }, { type: "input_text", text }] },
];
const asked = { model: "reader", messages, max_tokens: 300 };
const parameters = {
  type: "object",
  properties: { total: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["total"],
  additionalProperties: false,
};

const uses = {
  async ask() {
    const answer = await client.chat.completions.create(asked);
    return answer.choices[0].message.content;
  },

  async stream() {
    const pieces = [];
    for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
      pieces.push(chunk.choices[0]?.delta?.content ?? "");
    }
    return pieces.join("");
  },

  async events() {
    const stream = client.chat.completions.stream(asked);
    const pieces = [];
    stream.on("content", (piece) => pieces.push(piece));
    return [await stream.finalContent(), pieces.join("")];
  },

  async schema() {
    const response_format = { type: "json_schema", json_schema: { name: "bill", schema: parameters, strict: true } };
    const answer = await client.chat.completions.parse({ ...asked, response_format });
    return JSON.parse(answer.choices[0].message.content);
  },

  // The package calls the function itself and tells the model what came out.
  async tools() {
    const booked = [];
    const book = ({ total }) => booked.push(total);
    const runner = client.chat.completions.runTools(
      {
        ...asked,
        tool_choice: { type: "function", function: { name: "book" } },
        tools: [{ type: "function", function: { name: "book", function: book, parse: JSON.parse, parameters } }],
      },
      { maxChatCompletions: 2 },
    );
    await runner.done();
    return [booked, runner.messages.map((message) => message.role)];
  },

  async responses() {
    const answer = await client.responses.create({ model: "reader", input });
    const again = [...input, ...answer.output, { role: "user", content: "What is the date?" }];
    return [answer.output_text, (await client.responses.create({ model: "reader", input: again })).output_text];
  },

  async responses_events() {
    const stream = client.responses.stream({ model: "reader", input });
    const pieces = [];
    stream.on("response.output_text.delta", (event) => pieces.push(event.delta));
    return [(await stream.finalResponse()).output_text, pieces.join("")];
  },

  async responses_thinking() {
    const options = { chat_template_kwargs: { enable_thinking: true }, max_output_tokens: 30 };
    const pieces = [];
    let whole;
    for await (const event of await client.responses.create({ model: "reader", input, stream: true, ...options })) {
      if (event.type === "response.reasoning_text.delta") pieces.push(event.delta);
      whole = event.response ?? whole;
    }
    return [whole.output[0].content.map((part) => part.text).join(""), pieces.join("")];
  },

  async abort() {
    const stream = await client.chat.completions.create({ ...asked, max_tokens: 20000, ignore_eos: true, stream: true });
    for await (const _ of stream) stream.controller.abort();
    return stream.controller.signal.aborted;
  },

  async errors() {
    try {
      await client.chat.completions.create({ ...asked, colour: "red" });
    } catch (error) {
      return [error instanceof OpenAI.BadRequestError, error.message];
    }
  },

  async models() {
    const found = [];
    for await (const model of client.models.list()) found.push(model.id);
    return found;
  },
};

console.log(JSON.stringify(await uses[name]()));
