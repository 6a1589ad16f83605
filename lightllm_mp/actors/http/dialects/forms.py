"""All forms of answers, as requests keep them."""

from __future__ import annotations

import msgspec

from lightllm_mp.actors.http.dialects.anthropic.anthropic_answer import MessageForm
from lightllm_mp.actors.http.dialects.chat_answer import ChatForm
from lightllm_mp.actors.http.dialects.completion_answer import CompletionForm
from lightllm_mp.actors.http.dialects.native import NativeForm
from lightllm_mp.actors.http.dialects.pooled_answer import EmbeddingForm, RerankForm, ScoreForm
from lightllm_mp.actors.http.dialects.responses.response_answer import ResponseForm

GroupForm = CompletionForm | EmbeddingForm | RerankForm | ScoreForm
"""Of APIs whose bodies hold several prompts."""
Form = NativeForm | ChatForm | MessageForm | ResponseForm | GroupForm

encode_form = msgspec.msgpack.Encoder().encode
_forms = msgspec.msgpack.Decoder(Form)


def decode_form(data: bytes) -> Form:
    return _forms.decode(data)
