"""What the tokenizer files of some families leave to their own code: extra tokens, end tokens, the chat format.

That code is never run. The facts below are those of tokenization_*.py and of the chat functions in modeling_*.py of the
families' repositories. Where two generations of a family share all names, their code files are read as text, if they
are there, to tell which one a folder holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from lightllm_mp.errors import ModelError
from lightllm_mp.text import family_chat

_MAX_CODE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder and the content of three of its files, {} for an absent one."""

    path: Path
    model: Mapping[str, Any]
    """config.json"""
    tokenizer: Mapping[str, Any]
    """tokenizer_config.json"""
    generation: Mapping[str, Any]
    """generation_config.json"""

    def mentions(self, name: str, words: str) -> bool:
        """True where the file `name` is there and has `words` in it. It is read, never run."""
        try:
            with (self.path / name).open("rb") as file:
                return words.encode() in file.read(_MAX_CODE_BYTES)
        except OSError:
            return False


def _no_tokens(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    return {}


@dataclass(frozen=True, slots=True)
class TextFamily:
    """`complete` adds tokens to a pipeline and returns the spelling of those that text cannot name (id to spelling).

    `template` gives the chat format for a folder that brings none, None where there is none to give. `ends` are tokens
    that end a chat turn: they end generation beside the end-of-sequence tokens that the files declare.
    """

    tokenizer_classes: tuple[str, ...]
    model_types: tuple[str, ...]
    template: Callable[[Backend, ModelFolder], str | None]
    complete: Callable[[Backend, ModelFolder], dict[int, str]] = _no_tokens
    ends: tuple[str, ...] = ()
    rewrite: Mapping[str, str] = field(default_factory=dict)
    """What is replaced in the folder's own chat templates: tokens that text cannot name, and our names for them."""

    def templates(
        self, given: Mapping[str, str], backend: Backend, folder: ModelFolder, *, renamed: bool
    ) -> dict[str, str]:
        """The chat templates: those that the files give, and the family's where they give none. `renamed`: `complete`
        has found tokens that text cannot name."""
        found = dict(given)
        for old, new in self.rewrite.items() if renamed else ():
            found = {name: template.replace(old, new) for name, template in found.items()}
        if "default" not in found and (own := self.template(backend, folder)) is not None:
            found["default"] = own
        return found


def family_of(folder: ModelFolder) -> TextFamily | None:
    """The family of a folder: by tokenizer_class, else by model_type. None for one that needs nothing of its own."""
    name = folder.tokenizer.get("tokenizer_class") or folder.model.get("tokenizer_class")
    for family in FAMILIES:
        if name in family.tokenizer_classes:
            return family
    if name is not None and not str(name).startswith("PreTrainedTokenizer"):
        return None
    kind = folder.model.get("model_type")
    return next((family for family in FAMILIES if kind in family.model_types), None)


def _qwen_template(backend: Backend, folder: ModelFolder) -> str | None:
    return family_chat.QWEN if folder.generation.get("chat_format", "chatml") == "chatml" else None


# "sop" and "eop" are syllables of ordinary words, which upstream never reads as these tokens: text names them so.
_SOP, _EOP = "<|sop|>", "<|eop|>"
_GLM_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", _SOP, _EOP)
_GLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def _complete_glm(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    """ChatGLM2 and 3: the special tokens follow the vocabulary, and "[gMASK] sop" begins every text."""
    if backend.token_to_id("[gMASK]") is None:
        first = backend.get_vocab_size()
        names = _GLM_TOKENS + (_GLM_ROLES if _is_glm3(folder) else ())
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        if [backend.token_to_id(name) for name in names] != list(range(first, first + len(names))):
            raise ModelError("a special token of ChatGLM is an ordinary token of tokenizer.model")
    mask, sop, eop = (backend.token_to_id(name) for name in ("[gMASK]", _SOP, _EOP))
    if mask is None or sop is None or eop is None:
        return {}
    begin = processors.TemplateProcessing(single="GMASK:0 SOP:0 $A:0", special_tokens=[("GMASK", mask), ("SOP", sop)])
    backend.post_processor = begin
    return {sop: "sop", eop: "eop"}


def _is_glm3(folder: ModelFolder) -> bool:
    names = f"{folder.model.get('_name_or_path', '')} {folder.path.name}".lower()
    files = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenization_chatglm.py")
    return "chatglm3" in names or any(folder.mentions(file, "<|observation|>") for file in files)


def _glm_template(backend: Backend, folder: ModelFolder) -> str | None:
    template = family_chat.CHATGLM2 if backend.token_to_id("<|observation|>") is None else family_chat.CHATGLM3
    return template if backend.token_to_id(_SOP) is not None else template.replace(_SOP, "sop")


_BAICHUAN_USER, _BAICHUAN_ASSISTANT = 195, 196
_RESERVED = re.compile(r"<reserved_\d+>")


def _baichuan_roles(backend: Backend, folder: ModelFolder) -> tuple[str, str] | None:
    """The tokens before what the user and the assistant say; None for a model that is not for chats."""
    if folder.generation and "user_token_id" not in folder.generation:
        return None
    ids = (
        folder.generation.get("user_token_id", _BAICHUAN_USER),
        folder.generation.get("assistant_token_id", _BAICHUAN_ASSISTANT),
    )
    user, assistant = (backend.id_to_token(id_) if isinstance(id_, int) and id_ >= 0 else None for id_ in ids)
    if user is None or assistant is None or not (_RESERVED.fullmatch(user) and _RESERVED.fullmatch(assistant)):
        return None
    return user, assistant


def _complete_baichuan(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    """What stands between role tokens is encoded on its own, as upstream does: they have to cut the text."""
    roles = _baichuan_roles(backend, folder)
    if roles is not None:
        backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in roles])
    return {}


def _baichuan_template(backend: Backend, folder: ModelFolder) -> str | None:
    roles = _baichuan_roles(backend, folder)
    if roles is None:
        return None
    # Only the first generation writes the end of a sequence after an answer.
    return family_chat.baichuan(*roles, ends_answers=roles[0] == "<reserved_102>")


def _internlm_template(backend: Backend, folder: ModelFolder) -> str | None:
    if backend.token_to_id("<eoa>") is None:
        return None
    # The first release ended a question with <eoh>, later ones do not.
    is_first = folder.mentions("modeling_internlm.py", "<eoh>") and backend.token_to_id("<eoh>") is not None
    return family_chat.internlm("<eoh>" if is_first else "")


def _internlm2_template(backend: Backend, folder: ModelFolder) -> str | None:
    """Early releases call the two tokens by their places in the vocabulary."""
    for start, end in (("<|im_start|>", "<|im_end|>"), ("[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]")):
        if backend.token_to_id(start) is not None and backend.token_to_id(end) is not None:
            return family_chat.internlm2(start, end)
    return None


FAMILIES = (
    TextFamily(("QWenTokenizer",), ("qwen",), _qwen_template, ends=("<|im_end|>", "<|im_start|>")),
    TextFamily(
        ("ChatGLMTokenizer",),
        ("chatglm",),
        _glm_template,
        _complete_glm,
        ends=("<|user|>", "<|observation|>"),
        rewrite={"[gMASK]sop": f"[gMASK]{_SOP}"},
    ),
    TextFamily(("BaichuanTokenizer", "BaiChuanTokenizer"), ("baichuan",), _baichuan_template, _complete_baichuan),
    TextFamily(("InternLMTokenizer",), ("internlm",), _internlm_template, ends=("<eoa>",)),
    TextFamily(
        ("InternLM2Tokenizer", "InternLM2TokenizerFast"),
        ("internlm2",),
        _internlm2_template,
        ends=("<|im_end|>", "[UNUSED_TOKEN_145]"),
    ),
)
