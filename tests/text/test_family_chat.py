"""Chat formats of families whose folders bring none: the same ids as their own chat functions build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.text.chat.rendering import render_chat
from lightllm_mp.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.family_samples import BAICHUAN, TURNS, folder_of, qwen_encode, qwen_folder, sentencepiece_folder, write

ASKED = ["the other 你好\nbrother?", "def f(x):\n\treturn  x", "  they said 👩\u200d👧"]
SAID = ["then these", "你好，世界 "]
SYSTEM = "Think."


def chat(system: str | None = None) -> list[dict[str, str]]:
    """Three questions and two answers."""
    messages = [{"role": "system", "content": system}] if system else []
    for asked, said in zip(ASKED, SAID, strict=False):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return [*messages, {"role": "user", "content": ASKED[-1]}]


def prompt(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Ids of a chat, made as the tokenizer actor makes them."""
    text = render_chat(tokenizer.chat_template, messages, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    return tokenizer.encode(text, add_special_tokens=False).tolist()


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_qwen(tmp_path: Path, system: str | None) -> None:
    """make_context encodes role, line end and content one by one, which differs only for a content of line ends."""
    tokenizer = load_tokenizer(qwen_folder(tmp_path / "qwen", generation_config={"chat_format": "chatml"}))
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")

    def turn(role: str, content: str) -> list[int]:
        return [start, *qwen_encode(role), *qwen_encode("\n"), *qwen_encode(content), end, *qwen_encode("\n")]

    expected = turn("system", system or "You are a helpful assistant.")
    for message in chat():
        expected += turn(message["role"], message["content"])
    expected += [start, *qwen_encode("assistant"), *qwen_encode("\n")]
    assert prompt(tokenizer, chat(system)) == expected


def test_a_base_model_of_qwen_has_no_chat_format(tmp_path: Path) -> None:
    folder = qwen_folder(tmp_path / "qwen", generation_config={"chat_format": "raw"})
    assert load_tokenizer(folder).chat_template is None


def test_chatglm2(tmp_path: Path) -> None:
    folder, processor = folder_of("chatglm2", tmp_path / "chatglm2")
    tokenizer, size = load_tokenizer(folder), processor.vocab_size()
    text = ""
    for i, asked in enumerate(ASKED):
        text += f"[Round {i + 1}]\n\n问：{asked}\n\n答：" + (f"{SAID[i]}\n\n" if i < len(SAID) else "")
    assert prompt(tokenizer, chat()) == [size + 1, size + 3, *processor.encode(text)]


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_chatglm3(tmp_path: Path, system: str | None) -> None:
    folder, processor = folder_of("chatglm3", tmp_path / "chatglm3")
    tokenizer = load_tokenizer(folder)
    expected = tokenizer.encode("").tolist()
    messages = [*chat(system), {"role": "observation", "content": ""}]
    for message in messages:
        role = tokenizer.token_to_id(f"<|{message['role']}|>")
        expected += [role, *processor.encode("\n"), *processor.encode(message["content"])]
    assert prompt(tokenizer, messages) == [*expected, tokenizer.token_to_id("<|assistant|>")]
    tool = [{"role": "tool", "content": "x"}]
    assert prompt(tokenizer, tool)[2] == tokenizer.token_to_id("<|observation|>")


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("roles", [BAICHUAN, ("<reserved_102>", "<reserved_103>")])
def test_baichuan(tmp_path: Path, system: str | None, roles: tuple[str, str]) -> None:
    files: dict[str, Any] = {"tokenizer_config": {"add_bos_token": False}, "config": {"model_type": "baichuan"}}
    generation = {"user_token_id": 3, "assistant_token_id": 4}
    folder, processor = sentencepiece_folder(tmp_path, *roles, generation_config=generation, **files)
    closing = [processor.eos_id()] if roles[0] == "<reserved_102>" else []
    expected = processor.encode(system or "")
    for message in chat():
        is_user = message["role"] == "user"
        expected += [3 if is_user else 4, *processor.encode(message["content"]), *([] if is_user else closing)]
    assert prompt(load_tokenizer(folder), chat(system)) == [*expected, 4]
    write(folder, generation_config={"temperature": 0.3})
    assert load_tokenizer(folder).chat_template is None


@pytest.mark.parametrize("first_release", [True, False])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_internlm(tmp_path: Path, system: str | None, first_release: bool) -> None:
    folder, processor = folder_of("internlm", tmp_path / "internlm")
    if first_release:
        (folder / "modeling_internlm.py").write_text("raise SystemExit('<eoh>')")
    text = f"<|System|>:{system}\n" if system else ""
    for i, asked in enumerate(ASKED):
        text += f"<|User|>:{asked}{'<eoh>' if first_release else ''}\n<|Bot|>:"
        text += f"{SAID[i]}<eoa>\n" if i < len(SAID) else ""
    assert prompt(load_tokenizer(folder), chat(system)) == [processor.bos_id(), *processor.encode(text)]


@pytest.mark.parametrize("renamed", [True, False])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_internlm2(tmp_path: Path, system: str | None, renamed: bool) -> None:
    folder, processor = folder_of("internlm2", tmp_path / "internlm2")
    if not renamed:
        write(folder, tokenizer_config={"tokenizer_class": "InternLM2Tokenizer"})
    start, end = (processor.piece_to_id(name) for name in TURNS.values())
    expected = [processor.bos_id()]
    for message in chat(system):
        content = f"{message['role']}\n{message['content']}"
        expected += [start, *processor.encode(content), end, *processor.encode("\n")]
    assert prompt(load_tokenizer(folder), chat(system)) == [*expected, start, *processor.encode("assistant\n")]


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "baichuan", "internlm"])
def test_what_a_family_cannot_say_is_refused(tmp_path: Path, family: str) -> None:
    folder, _ = folder_of(family, tmp_path / family)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(InvalidRequest, match="no role narrator"):
        prompt(tokenizer, [{"role": "narrator", "content": "once"}])


@pytest.mark.parametrize("family", ["chatglm2", "baichuan", "internlm"])
def test_a_late_system_message_is_refused(tmp_path: Path, family: str) -> None:
    folder, _ = folder_of(family, tmp_path / family)
    with pytest.raises(InvalidRequest, match="not the first"):
        prompt(load_tokenizer(folder), [*chat(), {"role": "system", "content": "late"}])


@pytest.mark.parametrize("family", ["qwen", "chatglm2", "chatglm3", "baichuan", "internlm", "internlm2"])
def test_the_folder_s_own_template_wins(tmp_path: Path, family: str) -> None:
    folder, _ = folder_of(family, tmp_path / family)
    (folder / "chat_template.jinja").write_text("own")
    assert load_tokenizer(folder).chat_template == "own"
