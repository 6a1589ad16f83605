"""Reads the tokenizer files of a Hugging Face folder. Never imports or executes code of the folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lightllm_mp.errors import ConfigError, ModelError, NoTokenizer
from lightllm_mp.machine import format_bytes
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.families import find_text_half
from lightllm_mp.models.families.common.text_half import ModelFolder, TextHalf
from lightllm_mp.text.bpe_builder import byte_level_bpe, check_charsmap, set_bos_eos
from lightllm_mp.text.tokenizer_source import TokenizerSource

_MAX_CONFIG_BYTES = 16 << 20
_MAX_TOKENIZER_BYTES = 256 << 20
# Families whose tokenizer.json leaves the beginning-of-sequence token to the flags of tokenizer_config.json.
_FLAGGED = ("Llama", "CodeLlama", "Gemma", "Cohere")


def load_folder(source: ModelSource, mode: str = "auto") -> TokenizerSource:
    """Reads tokenizer.json ("auto", "fast"), else tokenizer.model, tekken.json, a tiktoken table, or vocab.json with
    merges.txt.

    A text that spells a special token yields its id, also in a user's message, as in transformers.
    """
    folder = source.path
    config, model = _read_json(folder / "tokenizer_config.json"), source.config if source.has_config else {}
    facts = ModelFolder(folder, model, config, _read_json(folder / "generation_config.json"))
    declared = _declared_tokens(folder, config)
    backend, specials = _backend(facts, declared, mode)
    family = find_text_half(facts) or TextHalf()
    spellings = family.complete(backend, facts)
    for named in (_read_json(folder / "special_tokens_map.json"), config):
        specials |= {name: value for name, value in named.items() if value is not None}
    if not _reads_json(folder, mode):
        # The tokenizers of the other files search for added tokens in the text before normalization.
        declared = {id_: {**entry, "normalized": False} for id_, entry in declared.items() if isinstance(entry, dict)}
    _add_declared_tokens(backend, declared, specials, but_not=set(spellings.values()))
    bos = _token_id(backend, specials.get("bos_token"))
    _follow_flags(backend, config, bos, _token_id(backend, specials.get("eos_token")))
    ends = _end_ids(backend, facts, specials, family.ends)
    templates = family.templates(_chat_templates(folder, config), backend, facts, renamed=bool(spellings))
    return TokenizerSource(backend, bos, ends, templates, spellings)


def _backend(facts: ModelFolder, declared: dict[int, Any], mode: str) -> tuple[Backend, dict[str, Any]]:
    """The pipeline, and the names of the special tokens that the vocabulary file itself defines."""
    folder, config = facts.path, facts.tokenizer
    as_json, as_sentencepiece = folder / "tokenizer.json", folder / "tokenizer.model"
    merges, tables = (folder / "vocab.json", folder / "merges.txt"), sorted(folder.glob("*.tiktoken"))
    tekken, of_kimi = folder / "tekken.json", folder / "tiktoken.model"
    is_slow = (
        bool(tables) or any(map(Path.is_file, (as_sentencepiece, tekken, of_kimi))) or all(map(Path.is_file, merges))
    )
    if not as_json.is_file() and not is_slow:
        remark = "; its own tokenizer code is never run" if "auto_map" in config else ""
        raise NoTokenizer(f"the model folder {folder.name} has no tokenizer.json and no tokenizer.model{remark}")
    if mode == "fast" and not as_json.is_file():
        raise ConfigError(f"tokenizer mode fast: {folder.name} has no tokenizer.json", param="tokenizer_mode")
    if mode == "slow" and not is_slow:
        message = f"tokenizer mode slow: {folder.name} has only tokenizer.json; use mode auto or fast"
        raise ConfigError(message, param="tokenizer_mode")
    if _reads_json(folder, mode):
        return _from_tokenizer_json(as_json), {}
    if as_sentencepiece.is_file():
        from lightllm_mp.text.sentencepiece_file import from_sentencepiece

        names = {id_: content for id_, entry in declared.items() if (content := _content(entry))}
        return from_sentencepiece(as_sentencepiece, config, names)
    if tekken.is_file():
        from lightllm_mp.text.tekken_file import from_tekken

        return from_tekken(tekken)
    if tables:
        from lightllm_mp.text.tiktoken_file import from_tiktoken

        return from_tiktoken(tables[0], has_pictures="visual" in facts.model)
    if of_kimi.is_file():
        from lightllm_mp.text.tiktoken_file import table_bpe

        return table_bpe(of_kimi, "kimi-k2"), {}
    return _from_vocab_and_merges(folder, config), {}


def _reads_json(folder: Path, mode: str) -> bool:
    return mode != "slow" and (folder / "tokenizer.json").is_file()


def _from_tokenizer_json(path: Path) -> Backend:
    _check_size(path, _MAX_TOKENIZER_BYTES)
    try:
        return Backend.from_buffer(_checked_json(path.read_bytes()))
    except Exception as error:
        raise ModelError(f"tokenizer.json cannot be read: {str(error)[:200]}") from error


def _checked_json(data: bytes) -> bytes:
    """Checks that the character maps of a tokenizer.json have their declared length, and returns it. Raises ValueError.

    Each key of it, and of its normalizer, occurs once: the library would read them all, the check only the last one.
    """
    parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    if "normalizer" in parts:
        normalizer = msgspec.json.decode(parts["normalizer"])
        for charsmap in _charsmaps(normalizer):
            check_charsmap(base64.b64decode(charsmap))
        parts["normalizer"] = msgspec.Raw(msgspec.json.encode(normalizer))
    return msgspec.json.encode(parts)


def _charsmaps(normalizer: Any) -> Iterator[str]:
    """All character maps (base64) of a normalizer, which may be a sequence of others."""
    if isinstance(normalizer, dict):
        if isinstance(charsmap := normalizer.get("precompiled_charsmap"), str):
            yield charsmap
        for part in normalizer.values():
            yield from _charsmaps(part)
    elif isinstance(normalizer, list):
        for part in normalizer:
            yield from _charsmaps(part)


def _from_vocab_and_merges(folder: Path, config: Mapping[str, Any]) -> Backend:
    vocab = _read_json(folder / "vocab.json", limit=_MAX_TOKENIZER_BYTES)
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ModelError("the ids in vocab.json are not 0, 1, 2, ...")
    _check_size(folder / "merges.txt", _MAX_TOKENIZER_BYTES)
    lines = (folder / "merges.txt").read_text("utf-8", errors="replace").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ModelError("merges.txt has a line that is not a pair")
    merges = [(left, right) for left, right in pairs]
    is_qwen2 = str(config.get("tokenizer_class", "")).startswith("Qwen2")
    return byte_level_bpe(tokens, merges, "qwen2" if is_qwen2 else "gpt-2")


def _declared_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, Any]:
    """The tokens that added_tokens.json and tokenizer_config.json declare, by id."""
    more = _read_json(folder / "added_tokens.json")
    try:
        declared = {int(id_): {"content": content, "special": False} for content, id_ in more.items()}
        return declared | {int(id_): entry for id_, entry in dict(config.get("added_tokens_decoder") or {}).items()}
    except (TypeError, ValueError):
        raise ModelError("the added tokens of the tokenizer are not a table of ids and tokens") from None


def _add_declared_tokens(
    backend: Backend, declared: dict[int, Any], specials: dict[str, Any], *, but_not: set[str]
) -> None:
    """Registers declared tokens that the vocabulary file does not have, in the order of their ids."""
    known = backend.get_added_tokens_decoder()
    for id_ in sorted(set(declared) - set(known)):
        token = _added_token(declared[id_])
        if token is None:
            continue
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != id_:
            raise ModelError(f"the added token {token.content[:64]!r} cannot have its declared id {id_}")
    registered = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for name in _named_specials(specials):
        if name not in registered | but_not and backend.token_to_id(name) is not None:
            backend.add_special_tokens([AddedToken(name, special=True, normalized=False)])


def _added_token(entry: Any) -> AddedToken | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
        return None
    flags = {name: bool(entry.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "special")}
    return AddedToken(entry["content"], normalized=bool(entry.get("normalized", not flags["special"])), **flags)


def _named_specials(specials: dict[str, Any]) -> Iterable[str]:
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    extra = specials.get("additional_special_tokens") or []
    entries = [*(specials.get(name) for name in names), *(extra if isinstance(extra, list) else [])]
    return [content for entry in entries if (content := _content(entry))]


def _follow_flags(backend: Backend, config: dict[str, Any], bos: int | None, eos: int | None) -> None:
    flags = config.get("add_bos_token"), config.get("add_eos_token")
    if not str(config.get("tokenizer_class", "")).startswith(_FLAGGED) or flags == (None, None):
        return
    wanted_bos = bos if flags[0] is not False else None
    wanted_eos = eos if flags[1] is True else None
    plain = backend.encode("a", add_special_tokens=False).ids
    wanted = [id_ for id_ in (wanted_bos, *plain, wanted_eos) if id_ is not None]
    if bos is not None and backend.encode("a").ids != wanted:
        set_bos_eos(backend, wanted_bos, wanted_eos)


def _end_ids(
    backend: Backend, facts: ModelFolder, specials: dict[str, Any], family_ends: Sequence[str]
) -> tuple[int, ...]:
    """End-of-sequence ids: the tokenizer's own first, then those of generation_config.json, or else of config.json.

    The ends of a chat turn that the family's own code adds come last.
    """
    ends = [_token_id(backend, specials.get("eos_token"))]
    declared = facts.generation.get("eos_token_id")
    if declared is None:
        model = facts.model
        declared = model.get("eos_token_id", dict(model.get("text_config") or {}).get("eos_token_id"))
    ends += declared if isinstance(declared, list) else [declared]
    ends += [backend.token_to_id(name) for name in family_ends]
    return tuple(dict.fromkeys(id_ for id_ in ends if isinstance(id_, int) and id_ >= 0))


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Later files win: tokenizer_config.json, chat_template.json, chat_template.jinja, additional_chat_templates/."""
    found = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    templates = {}
    if isinstance(found, str):
        templates["default"] = found
    elif isinstance(found, list):
        templates |= {str(entry["name"]): str(entry["template"]) for entry in found if isinstance(entry, dict)}
    files = [("default", folder / "chat_template.jinja")]
    files += [(file.stem, file) for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for name, file in files:
        if file.is_file():
            _check_size(file, _MAX_CONFIG_BYTES)
            templates[name] = file.read_text("utf-8", errors="replace")
    return templates


def _token_id(backend: Backend, entry: Any) -> int | None:
    content = _content(entry)
    return backend.token_to_id(content) if content else None


def _content(entry: Any) -> str | None:
    value = entry.get("content") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else None


def _read_json(path: Path, *, limit: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in `path`; {} if the file does not exist. ModelError if it is too large or not an object."""
    if not path.is_file():
        return {}
    _check_size(path, limit)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} does not contain a JSON object")
    return value


def _check_size(path: Path, limit: int) -> None:
    if path.stat().st_size > limit:
        raise ModelError(f"{path.name} is larger than {format_bytes(limit)}")
