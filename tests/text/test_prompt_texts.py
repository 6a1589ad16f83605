"""The texts of a prompt's tokens: joined they are the prompt, whatever the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.messages import PromptLogprobs
from lightllm_mp.text import prompt_texts
from lightllm_mp.text.prompt_texts import PromptTexts
from tests.text.tokenizer_samples import sample

TEXT = "<|im_start|>user\nBreite Straße 你好 👩‍👩‍👧<|im_end|>\n" * 3


def pieces(ids: list[int], size: int, top: int) -> list[PromptLogprobs]:
    """What the scheduler sends: the first token has no logprob."""
    found = []
    for first in range(0, len(ids), size):
        own = ids[first : first + size]
        rated = own[1:] if first == 0 else own
        found.append(
            PromptLogprobs(
                1,
                np.array(own, "<i4").tobytes(),
                np.array(rated, "<f4").tobytes(),
                top,
                np.repeat(np.array(rated, "<i4"), top).tobytes(),
                np.repeat(np.array(rated, "<f4"), top).tobytes(),
                more=first + size < len(ids),
            )
        )
    return found


@pytest.mark.parametrize("top", [0, 2])
@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("piece", [1, 5, 512])
def test_joined_they_are_the_prompt(monkeypatch: pytest.MonkeyPatch, size: int, piece: int, top: int) -> None:
    monkeypatch.setattr(prompt_texts, "PIECE", piece)
    tokenizer = sample("default")
    ids = tokenizer.encode(TEXT).tolist()
    texts = PromptTexts(tokenizer)
    found = [part for one in pieces(ids, size, top) for part in texts.of(one)]
    assert "".join(text for part in found for text in part.texts) == TEXT
    assert b"".join(part.ids for part in found) == np.array(ids, "<i4").tobytes()
    assert all(len(part.ids) <= 4 * piece for part in found)
    assert [part.more for part in found] == [True] * (len(found) - 1) + [False]
    rated = [token for part in found for token in np.frombuffer(part.logprobs, "<f4").astype(int).tolist()]
    assert rated == ids[1:]
    alone = [tokenizer.decode([token], skip_special_tokens=False) for token in ids[1:] for _ in range(top)]
    assert [text for part in found for text in part.top_texts] == alone
    for part in found:
        assert len(part.texts) == len(part.ids) // 4
        assert len(part.top_logprobs) == len(part.top_ids) == 4 * top * (len(part.logprobs) // 4)
