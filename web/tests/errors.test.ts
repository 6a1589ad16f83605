import assert from "node:assert/strict";
import { test } from "node:test";
import { errorOf } from "../src/shared/api.ts";

test("an error is read, whatever the body is", () => {
  const known = errorOf('{"error":{"message":"full","code":"overloaded","param":null}}', 429, 3);
  assert.deepEqual([known.message, known.status, known.code, known.param, known.retryAfter], ["full", 429, "overloaded", "", 3]);
  for (const text of ["", "<h1>Bad gateway</h1>", "{}", "null", '{"error":null}'])
    assert.equal(errorOf(text, 502).message, "The server answered 502.");
});
