"""--long-truncation-mode: a prompt that is too long loses its beginning or its middle, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightllm_mp.actors.front.validation import check_prompt
from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.errors import PromptTooLong
from lightllm_mp.facts import LONGEST_CUT, EngineLimits, Facts, PooledFacts
from lightllm_mp.messages import ChatPrompt, Count, Counted, Generate, ImageInfo, Rejected, Sampling, Terms, Tokenized
from lightllm_mp.text.prompt_truncation import longest_kept, truncated
from tests.actors.embedded import described, write_byte_tokenizer
from tests.paths import GOLDENS
from tests.text.text_actors import FRONT, Outbox, started

LONGEST, VOCABULARY = 10, 256
TEXT = "abcdefghijklmnopqrstuvwxyz"
KEPT = {"head": "qrstuvwxyz", "center": "abcdevwxyz"}


def limits(mode: str, **others: int) -> EngineLimits:
    known = {"max_input": LONGEST, "max_context": 100, "vocab_size": VOCABULARY} | others
    return EngineLimits(long_truncation_mode=mode, **known)


def actor_of(folder: Path, mode: str, outbox: Outbox, **others: object) -> TokenizerActor:
    write_byte_tokenizer(folder)
    actor, _ = started(TokenizerActor, folder, outbox, Facts(engine=limits(mode)), **others)
    return actor


def terms(max_new_tokens: int = 4) -> Terms:
    return Terms(Sampling(seed=1, max_new_tokens=max_new_tokens))


def ids_of(actor: TokenizerActor, text: str) -> bytes:
    return actor._need().encode(text).tobytes()


@pytest.mark.parametrize("longest", [1, 2, 5, 10, 25])
def test_what_is_kept(longest: int) -> None:
    ids = np.arange(26, dtype=np.int32)
    assert truncated(ids, longest, "head").tolist() == list(range(26 - longest, 26))
    first = longest // 2
    assert truncated(ids, longest, "center").tolist() == [*range(first), *range(26 - longest + first, 26)]


def test_a_cut_prompt_leaves_room_for_its_answer() -> None:
    assert longest_kept(limits("head", max_input=99), 30) == 70
    assert longest_kept(limits("head", max_input=99), 8192) == 50
    assert longest_kept(limits("head", max_input=40), 8192) == 40
    assert longest_kept(limits("head", max_input=99, pooled=PooledFacts("score", 1, end_token=3)), 0) == 98, (
        "its own token follows"
    )


@pytest.mark.parametrize("mode", ["head", "center"])
def test_texts_ids_and_chats_are_cut(tmp_path: Path, mode: str) -> None:
    outbox = Outbox()
    write_byte_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    actor, _ = started(TokenizerActor, tmp_path, outbox, Facts(engine=limits(mode)))
    whole = ids_of(actor, TEXT)
    actor.on_message(FRONT, Generate(1, terms(), text=TEXT))
    actor.on_message(FRONT, Generate(2, terms(), ids=whole))
    halves = [{"role": "user", "content": half} for half in (TEXT[:13], TEXT[13:])]
    chat = ChatPrompt(json.dumps(halves).encode())
    actor.on_message(FRONT, Generate(3, terms(), chat=chat))
    actor.on_message(FRONT, Generate(4, terms(), ids=whole, emitted=ids_of(actor, "!!")))
    kept = ids_of(actor, KEPT[mode])
    assert outbox.posted[:3] == [(ROUTER, Tokenized(rid, terms(), kept, LONGEST)) for rid in (1, 2, 3)]
    assert outbox.posted[3][1] == Tokenized(4, terms(), kept + ids_of(actor, "!!"), LONGEST), "the answer is not cut"


@pytest.mark.parametrize("mode", ["", "head", "center"])
def test_a_prompt_that_fits_is_whole(tmp_path: Path, mode: str) -> None:
    outbox = Outbox()
    actor = actor_of(tmp_path, mode, outbox)
    actor.on_message(FRONT, Generate(1, terms(90), text=TEXT[:LONGEST]))
    assert outbox.posted == [(ROUTER, Tokenized(1, terms(90), ids_of(actor, TEXT[:LONGEST]), LONGEST))]


def test_counting_counts_the_whole_text(tmp_path: Path) -> None:
    outbox = Outbox()
    actor_of(tmp_path, "head", outbox).on_message(FRONT, Count(1, TEXT))
    assert outbox.posted == [(FRONT, Counted(1, len(TEXT)))]


@pytest.mark.parametrize(
    "prompt", [{"text": "ab<image>" + TEXT}, {"ids": np.array([*range(20), -200], "<i4").tobytes()}]
)
def test_a_prompt_with_images_is_refused(tmp_path: Path, prompt: dict[str, str | bytes]) -> None:
    vision = described(GOLDENS / "llava_hf", images=True).vision
    outbox = Outbox()
    actor = actor_of(tmp_path, "head", outbox, vision=vision)
    image = ImageInfo(b"k" * 32, 8, 8, tokens=4)
    actor.on_message(FRONT, Generate(1, terms(), images=(image,), **prompt))
    ((peer, refused),) = outbox.posted
    assert peer == FRONT
    assert isinstance(refused, Rejected)
    assert (refused.error.status, refused.error.code) == (400, "prompt_too_long")
    assert "images" in refused.error.message


def test_what_may_be_sent_is_bounded() -> None:
    check_prompt("a" * 16 * LONGEST_CUT, limits("head"))
    check_prompt(bytes(4 * LONGEST_CUT), limits("center"))
    for mode, prompt in (
        ("head", "a" * (16 * LONGEST_CUT + 1)),
        ("center", bytes(4 * LONGEST_CUT + 4)),
        ("", "a" * (16 * LONGEST + 1)),
        ("", bytes(4 * LONGEST + 4)),
    ):
        with pytest.raises(PromptTooLong):
            check_prompt(prompt, limits(mode))
