"""Asks the default model for answers to random JSON schemas and validates finished ones with `jsonschema`.

    python -m tools.bench.guided_schemas [--schemas 1000] [--seed 0] [--clients 16] [--model FOLDER]

Prints one JSON line. Every finished answer must be valid: the exit code is 1 if one is not. Answers that reach the
limit of tokens are not finished; schemas that the library refuses (a typed 400) are counted.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig
from tools.harness.command_line import ToolParser, skip
from tools.harness.random_schemas import RandomSchemas

PROMPT = "<|im_start|>user\nAnswer in JSON: give an example.<|im_end|>\n<|im_start|>assistant\n"


def validated(schema: dict[str, Any], answer: str) -> str:
    """ "valid", or what is wrong."""
    from jsonschema import Draft202012Validator

    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    try:
        errors = list(checker.iter_errors(json.loads(answer)))
    except ValueError as error:
        return f"no JSON: {error}"
    return errors[0].message if errors else "valid"


def outcome(server: Server, seed: int, tokens: int) -> str:
    schema = RandomSchemas(seed).schema()
    sampled = {"do_sample": seed % 2 == 1, "seed": seed, "temperature": 0.8}
    body = {"inputs": PROMPT, "parameters": {"guided_json": schema, "max_new_tokens": tokens, **sampled}}
    request = urllib.request.Request(f"{server.base_url}/generate", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            found = json.load(reply)
    except urllib.error.HTTPError as error:
        problem = json.load(error)["error"]
        return "refused" if problem["code"] == "invalid_guide" else f"{error.code}: {problem['message']}"
    if found["finish_reason"] != "stop":
        return "unfinished"
    result = validated(schema, found["generated_text"][0])
    if result != "valid":
        print(f"seed {seed}: {result}\n  {json.dumps(schema)}\n  {found['generated_text'][0]}", file=sys.stderr)
    return result if result == "valid" else "invalid"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, schemas=4, clients=2, tokens=60)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=400, help="most tokens of an answer")
    parser.add_argument("--model", help="default: the default model")
    flags = parser.parse(argv)
    if find_spec("jsonschema") is None:
        skip("missing: jsonschema (pip install 'lightllm-mp[test]')")
    config = Config(
        model=ModelConfig(model_dir=flags.model),
        engine=EngineConfig(max_total_token_num=40_000),
        http=HttpConfig(port=0, disable_access_log=True),
    )
    with launch(config) as server, ThreadPoolExecutor(flags.clients) as pool:
        server.wait_ready(300)
        seeds = range(flags.seed, flags.seed + flags.schemas)
        found = Counter(pool.map(lambda seed: outcome(server, seed, flags.tokens), seeds))
    finished = found["valid"] + found["invalid"]
    print(json.dumps({"schemas": flags.schemas, "finished": finished, **found}))
    return 0 if set(found) <= {"valid", "unfinished", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
