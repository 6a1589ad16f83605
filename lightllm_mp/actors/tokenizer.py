"""The tokenizer actor: text and chats become ids. It owns the tokenizer and the chat template; it keeps no requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.actor_settings import TokenizerSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.errors import EngineError, InvalidRequest, ModelError, NoTokenizer, PromptTooLong
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import (
    Abort,
    Begin,
    ChatPrompt,
    Count,
    Counted,
    Detokenize,
    Detokenized,
    ErrorInfo,
    Generate,
    ImageInfo,
    Rejected,
    TextPair,
    Tokenized,
    Wire,
)
from lightllm_mp.text.chat.chat_facts import chat_facts
from lightllm_mp.text.chat.rendering import compile_template, render_chat
from lightllm_mp.text.prompt_truncation import longest_kept, truncated
from lightllm_mp.text.tokenizer import Tokenizer, load_tokenizer
from lightllm_mp.vision.placeholders import (
    TAGS,
    VIDEO_TAG,
    Prompted,
    expand_ids,
    join_chunks,
    split_text,
    tags_of_frames,
)

log = logging.getLogger("lightllm_mp.tokenizer")


MAX_TEXT = 32 << 20
"""Longest text of ids, in bytes; its lane holds two."""

_json = msgspec.json.Decoder().decode
_to_json = msgspec.json.encode


class TokenizerActor(BlockingActor):
    budget = 1  # a long text takes seconds

    def __init__(self, launch: LaunchSpec[TokenizerSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._front, self._spec = launch.front, launch.model.spec
        self._limits = EngineLimits()
        vision = launch.model.vision
        self._vision = vision.spec if vision else None
        self._tokenizer: Tokenizer | None = None
        self._template: str | None = None
        model = launch.settings.model
        try:
            self._tokenizer = load_tokenizer(Path(launch.model.path), mode=model.tokenizer_mode)
        except NoTokenizer as error:
            log.warning("%s: only token ids are served, without text", error.message)
            self.facts = Facts(has_tokenizer=False)
            return
        self._template = _usable_template(self._tokenizer)
        for end in set(model.eos_id) - self._tokenizer.added.keys():
            log.warning("--eos-id %d: %r is ordinary text; answers end at it", end, self._tokenizer.decode([end]))
        chat = chat_facts(
            self._tokenizer,
            self._template,
            launch.model.spec.family,
            tool_calls=model.tool_call_parser,
            reasoning=model.reasoning_parser,
        )
        self.facts = Facts(eos_ids=self._tokenizer.eos_ids, chat=chat)

    def on_begin(self, begin: Begin) -> None:
        self._limits = begin.facts.engine

    def on_message(self, peer: str, message: Wire) -> None:
        match message:
            case Generate(rid=rid):
                self._answer(rid, lambda: self.mailbox.post(ROUTER, self._tokenized(message)))
            case Count(rid=rid):
                self._answer(rid, lambda: self._count(message))
            case Detokenize(rid=rid):
                self._answer(rid, lambda: self._text(message))
            case Abort():
                self.mailbox.post(ROUTER, message)

    def _answer(self, rid: int, work: Callable[[], None]) -> None:
        try:
            work()
        except EngineError as error:
            self.mailbox.post(self._front, Rejected(rid, ErrorInfo.of(error)))

    def _count(self, message: Count) -> None:
        text, special = message.text, message.add_special_tokens
        if message.chat is not None:
            text, special = self._render(message.chat), False
        ids, _ = self._ids_of(text, special, message.images)
        listed = np.ascontiguousarray(ids, "<i4").tobytes() if message.listed else b""
        self.mailbox.post(self._front, Counted(message.rid, len(ids), listed))

    def _text(self, message: Detokenize) -> None:
        ids = np.frombuffer(message.ids, "<i4").tolist()
        text = self._need().decode(ids, skip_special_tokens=message.skip_special_tokens)
        if 4 * len(text) > MAX_TEXT and len(text.encode()) > MAX_TEXT:
            raise InvalidRequest(f"the text of these tokens is longer than {MAX_TEXT} bytes", param="tokens")
        self.mailbox.post(self._front, Detokenized(message.rid, text))

    def _tokenized(self, request: Generate) -> Tokenized:
        found, spans = self._fitted(self._prompt_ids(request), request)
        ids = np.ascontiguousarray(found, "<i4").tobytes()
        return Tokenized(
            rid=request.rid,
            terms=request.terms,
            ids=ids + request.emitted,
            prompt_tokens=len(ids) // 4,
            spans=spans,
        )

    def _prompt_ids(self, request: Generate) -> Prompted:
        if request.terms.output.stop and self._tokenizer is None:
            raise InvalidRequest("this model has no tokenizer files: stop strings need text, use ids", param="stop")
        if request.ids is not None:
            ids = np.frombuffer(request.ids, "<i4")[: self._cut_to(request) or None]
            return expand_ids(ids, request.images, self._limits.vocab_size) if self._vision else (ids, ())
        most = self._cut_to(request)
        if request.text is not None:
            if most:
                return self._need().encode_cut(request.text, None, request.add_special_tokens, most)[0], ()
            return self._ids_of(request.text, request.add_special_tokens, request.images)
        if request.pair is not None:
            return self._pair_ids(request.pair, most), ()
        assert request.chat is not None, "a Generate has text, ids, chat or a pair"
        # The template writes the special tokens itself.
        return self._ids_of(self._render(request.chat), False, request.images)

    def _cut_to(self, request: Generate) -> int:
        """The most tokens of a prompt whose end may be cut; 0: it may not. An encoder's special tokens have to stay, so
        the operator's ways of truncation are no way for it."""
        limits, terms = self._limits, request.terms
        if terms.task == "generate":
            return 0
        if terms.most_tokens:
            return min(terms.most_tokens, limits.max_input)
        return limits.max_input if limits.long_truncation_mode and not self._spec.causal else 0

    def _pair_ids(self, pair: TextPair, cut_to: int) -> np.ndarray:
        """Ids of a query and a document, which is cut to fit `cut_to` tokens (0: it is not). A token of segment 1 has
        its id and the size of the vocabulary added."""
        spec, most = self._spec, cut_to or self._limits.max_input
        if spec.pooling is None or not spec.pooling.pairs:
            raise InvalidRequest("this model does not score a query and a document")
        if spec.pooling.pairs == "tokenizer":
            if cut_to:
                ids, segments = self._need().encode_cut(pair.query, pair.document, True, most)
            else:
                ids, segments = self._need().encode_pair(pair.query, pair.document, max_tokens=most)
            return ids + segments * spec.vocab if spec.token_types > 1 else ids
        if spec.pooling.pairs == "chat":
            roles = {"query": pair.query, "document": pair.document}
            messages = [{"role": role, "content": text} for role, text in roles.items()]
            return self._need().encode(self._render(ChatPrompt(_to_json(messages))), False, max_tokens=most)
        before, rest = spec.pooling.pairs.split("{query}")
        between, after = rest.split("{document}")
        begin = f"{before}{pair.query}{between}"
        if not cut_to:
            return self._need().encode(f"{begin}{pair.document}{after}", False, max_tokens=most)
        end = self._need().encode(after, False)
        document = self._need().encode_cut(begin, pair.document, False, most - len(end))[0]
        return np.concatenate((document, end))

    def _fitted(self, prompt: Prompted, request: Generate) -> Prompted:
        """A prompt that is too long without the part that the operator lets go. PromptTooLong if it has images."""
        ids, spans = prompt
        limits = self._limits
        if not limits.long_truncation_mode or len(ids) <= limits.max_input:
            return prompt
        if spans:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, more than {limits.max_input}; one with images is not truncated",
                param="inputs",
            )
        longest = longest_kept(limits, request.terms.sampling.max_new_tokens)
        return truncated(ids, longest, limits.long_truncation_mode), ()

    def _ids_of(self, text: str, special: bool, images: tuple[ImageInfo, ...]) -> Prompted:
        """Ids and image spans of a text. Without a vision tower, an image tag is ordinary text."""
        encode = self._need().encode
        max_tokens = None if self._limits.long_truncation_mode else self._limits.max_input or None
        if self._vision is None:
            return encode(text, special, max_tokens=max_tokens), ()
        tags = self._vision.tags
        text, spans = tags_of_frames(tags, text, images)
        texts = split_text(tags, text, len(spans))
        chunks = [encode(chunk, special and not i, max_tokens=max_tokens) for i, chunk in enumerate(texts)]
        return join_chunks(tags, chunks, spans, self._limits.vocab_size)

    def _render(self, chat: ChatPrompt) -> str:
        tokenizer = self._need()
        template = chat.template or self._template
        if template is None:
            raise InvalidRequest("this model has no chat template that can be used", param="messages")
        try:
            return render_chat(
                template,
                _json(chat.messages),
                add_generation_prompt=chat.add_generation_prompt,
                continue_final=chat.continue_final,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                tools=_json(chat.tools) if chat.tools else None,
                kwargs=_json(chat.kwargs) if chat.kwargs else None,
                tags=self._media_tags(),
            )
        except ModelError as error:  # of the client's template
            raise InvalidRequest(error.message, param="chat_template") from None

    def _media_tags(self) -> dict[str, str]:
        if self._vision is None:
            return {}
        image = {"image": TAGS[self._vision.tags.style][1]}
        return image if self._vision.video is None else {**image, "video": VIDEO_TAG}

    def _need(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequest("this model has no tokenizer files: send token ids as inputs", param="inputs")
        return self._tokenizer


def _usable_template(tokenizer: Tokenizer) -> str | None:
    """The chat template, or None if it does not compile: such a model can still complete text."""
    if tokenizer.chat_template is None:
        return None
    try:
        compile_template(tokenizer.chat_template)
    except EngineError as error:
        log.warning("the chat template cannot be used: %s", error.message)
        return None
    return tokenizer.chat_template
