// What users of the openai package from npm do. See checks.py.
"use strict";
const assert = require("node:assert/strict");
const OpenAI = require("openai");

const baseURL = process.env.BASE_URL + "/v1";
const client = new OpenAI({ baseURL, apiKey: process.env.API_KEY, maxRetries: 0, timeout: 60_000 });
const hello = [{ role: "user", content: "Say hello to me." }];
const greedy = { model: "any", temperature: 0, max_tokens: 12 };
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

async function idle() {
  const headers = { Authorization: `Bearer ${process.env.API_KEY}` };
  for (let tries = 0; tries < 500; tries++) {
    const info = await (await fetch(process.env.BASE_URL + "/get_server_info", { headers })).json();
    if (info.live_requests === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail("a request that its client has left goes on");
}

const checks = {
  async model_models() {
    const found = [];
    for await (const model of client.models.list()) found.push(model.id);
    assert.equal((await client.models.retrieve(found[0])).id, found[0]);
  },

  async model_chat_whole_and_streamed() {
    const whole = await client.chat.completions.create({ messages: hello, ...greedy });
    const stream = await client.chat.completions.create({
      messages: hello,
      stream: true,
      stream_options: { include_usage: true },
      ...greedy,
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.ok(text);
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
    const helper = client.chat.completions.stream({ messages: hello, ...greedy });
    assert.equal(await helper.finalContent(), text);
  },

  async model_errors() {
    const wrong = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
    const messages = [{ role: "user", content: "word ".repeat(9000) }];
    await assert.rejects(client.chat.completions.create({ model: "any", messages }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.code, "context_length_exceeded");
      return true;
    });
  },

  async model_responses() {
    const asked = { model: "any", input: "Say hello to me.", temperature: 0, max_output_tokens: 12 };
    const whole = await client.responses.create(asked);
    const stream = client.responses.stream(asked);
    assert.ok(whole.output_text);
    assert.equal((await stream.finalResponse()).output_text, whole.output_text);
  },

  async pooled_embeddings() {
    const found = await client.embeddings.create({ model: "any", input: ["one", "two"] });
    assert.deepEqual(found.data[1].embedding, [0.5, 0.25, 0.125]);
  },

  async script_tool_round_trip() {
    const asked = [];
    const runner = client.chat.completions.runTools({
      model: "any",
      messages: [{ role: "user", content: 'call {"city": "Paris"}' }],
      tools: [
        {
          type: "function",
          function: {
            ...weather.function,
            parse: JSON.parse,
            function: (given) => {
              asked.push(given.city);
              return "sunny";
            },
          },
        },
      ],
    });
    assert.equal(await runner.finalContent(), "The tool said: sunny");
    assert.deepEqual(asked, ["Paris"]);
    const stream = client.chat.completions.stream({
      model: "any",
      messages: [{ role: "user", content: 'call {"city": "Paris"}' }],
      tools: [weather],
    });
    const [call] = (await stream.finalMessage()).tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  },

  async script_retries_when_the_server_is_full() {
    const messages = [{ role: "user", content: "busy" }];
    await assert.rejects(client.chat.completions.create({ model: "any", messages }), OpenAI.RateLimitError);
    const again = [{ role: "user", content: "busy again" }];
    const found = await client.chat.completions.create({ model: "any", messages: again }, { maxRetries: 2 });
    assert.ok(found.choices[0].message.content);
  },

  async script_a_stream_that_is_left_ends() {
    const messages = [{ role: "user", content: "forever" }];
    const stream = await client.chat.completions.create({ model: "any", messages, stream: true });
    let count = 0;
    for await (const _ of stream) if (++count === 3) break;
    await idle();
  },
};

(async () => {
  const failed = [];
  for (const [name, check] of Object.entries(checks)) {
    if (!name.startsWith(process.argv[2])) continue;
    try {
      await check();
    } catch (error) {
      failed.push(name);
      console.error(name, error);
    }
    console.log(name);
  }
  process.exit(failed.length ? 1 : 0);
})();
