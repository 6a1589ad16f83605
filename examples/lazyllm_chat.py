#!/usr/bin/env python3
"""LazyLLM starts a model with `deploy.lightllm`, asks it, and stops it. The model is served by lightllm-mp.

    pip install . ./compat/lightllm lazyllm
    python examples/lazyllm_chat.py [MODEL [QUESTION]]

MODEL is a model folder or GGUF file, by default the small model that lightllm-mp serves without flags.
"""

from __future__ import annotations

import sys

import lazyllm

from lightllm_mp.model_files.default_model import find_default_model

QUESTION = "What is the capital of France?"
PARAMETERS = {"max_new_tokens": 48}


def main(model: str = "", question: str = QUESTION) -> None:
    chat = lazyllm.TrainableModule(model or str(find_default_model())).deploy_method(lazyllm.deploy.lightllm)
    chat.start()
    try:
        print(f"answer:\n{chat(question, parameters=dict(PARAMETERS))}")
        print("streamed:")
        for piece in lazyllm.StreamCallHelper(chat)(question, parameters=dict(PARAMETERS), stream_output=True):
            print(piece["delta"] if piece["tag"] == "text" else "", end="", flush=True)
        print()
    finally:
        chat.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
