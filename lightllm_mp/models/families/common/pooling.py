"""Reads a folder's files about embeddings and scores: modules of sentence-transformers, and classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import read_json, read_json_list
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.models.spec import ModelSpec, PoolingSpec, Take
from lightllm_mp.plan import MAX_ROW

TAKES: dict[str, Take] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""Modes of a Pooling module that are served."""
FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
"""Keys of older files whose mode differs from the words behind the first two."""
PAIRS = {
    "qwen3": (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
}
"""By family: the prompt of its rerankers."""
MATRYOSHKA = ("qwen3",)
"""Families whose embeddings may be cut, though their files do not say so."""


def with_pooling(
    spec: ModelSpec, config: Mapping[str, Any], folder: Path, task: str = "auto", score_tokens: tuple[str, ...] = ()
) -> ModelSpec:
    """The spec with the pooling of the folder's files, else of `task` and `score_tokens` (see `ModelConfig`), else of
    the family.

    Raises ModelError for modules that are not served, and where the model does not do the task.
    """
    if spec.pooling is None and classifies(config):
        spec = replace(spec, pooling=classifier(config, head="linear", pairs=PAIRS.get(spec.family, "")))
    modules = _modules(folder)
    if "Pooling" in modules:
        spec = replace(spec, pooling=_embedding(spec, config, folder, modules))
    elif "LogitScore" in modules:
        spec = replace(spec, pooling=_token_score(spec, folder, modules["LogitScore"], score_tokens))
    elif spec.pooling is None and score_tokens:
        spec = replace(spec, pooling=_judge(spec, folder, score_tokens, PAIRS.get(spec.family, "")))
    elif spec.pooling is None and task != "auto":
        spec = replace(spec, pooling=_told(spec, config, folder, task))
    if spec.pooling is None:
        return spec
    if score_tokens and not spec.pooling.tokens:
        raise ModelError("--score-tokens: by its files this model has no head for tokens")
    if task not in ("auto", spec.pooling.task):
        by = "--score-tokens" if score_tokens else "its files"
        raise ModelError(f"--task {task}: by {by} the model is one for the task {spec.pooling.task}")
    if spec.pooling.pairs and not spec.pooling.tokens:
        spec = replace(spec, pooling=replace(spec.pooling, raw=_is_raw(config, folder)))
    return replace(spec, max_context=_most_tokens(spec, folder))


def _told(spec: ModelSpec, config: Mapping[str, Any], folder: Path, task: str) -> PoolingSpec:
    """The operator's choice for a folder without files about pooling."""
    if task == "embed":
        return PoolingSpec(task="embed", width=spec.hidden, normalize=True, shorter=_shorter(config, spec.family))
    if spec.family not in PAIRS:
        raise ModelError(f"--task score: models of the family {spec.family} are no rerankers")
    return _judge(spec, folder, ("yes", "no"), PAIRS[spec.family])


def _judge(spec: ModelSpec, folder: Path, tokens: tuple[str, ...], pairs: str) -> PoolingSpec:
    """The probability of one token against another."""
    yes, no = (_token_id(folder, token) for token in tokens)
    if yes == no or max(yes, no) >= spec.vocab:
        raise ModelError(f"--score-tokens {yes} {no}: two different ids below {spec.vocab} are needed")
    if spec.head_bias or spec.logit_softcap:
        raise ModelError("--score-tokens: a head with a bias or a soft cap is not supported")
    return PoolingSpec(task="score", width=1, head="linear", tokens=(yes, no), pairs=pairs)


def _token_id(folder: Path, token: str) -> int:
    """The id of a decimal number, else of the token with this spelling in tokenizer.json. Raises ModelError."""
    if token.isascii() and token.isdecimal():
        return int(token)
    said = read_json(folder / "tokenizer.json")
    for entry in said.get("added_tokens") or ():
        if entry["content"] == token:
            return int(entry["id"])
    vocabulary = said["model"]["vocab"]  # a list of pairs if the model is Unigram
    ids = vocabulary if isinstance(vocabulary, dict) else {entry[0]: i for i, entry in enumerate(vocabulary)}
    if token not in ids:
        raise ModelError(f"--score-tokens: tokenizer.json has no token {token[:64]!r}; give its id")
    return int(ids[token])


def classifies(config: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def classifier(config: Mapping[str, Any], **fields: Any) -> PoolingSpec:
    """The score of a classifier with one label. ModelError if it has more."""
    labels = int(config.get("num_labels") or len(config.get("id2label") or "ab"))
    if labels != 1:
        raise ModelError(f"a classifier of {labels} labels is not supported; only one with a single score is")
    return PoolingSpec(task="score", width=1, **fields)


def pooled_weights(spec: ModelSpec, params: list[Param]) -> list[Param]:
    """`params` without the head, and with the score's weights if the family's rules have none."""
    pooling = spec.pooling
    if pooling is None:
        return params
    kept = [param for param in params if param.target != "head"]
    if not pooling.head or any(param.target == "score" for param in kept):
        return kept
    if not pooling.tokens:
        return kept + linear("score", "", (("score", 1),), spec.hidden, False)
    head = next((param for param in params if param.target == "head"), params[0])
    return [*kept, Param("score", (_difference(head.pieces[0], spec, *pooling.tokens),))]


def _difference(head: Piece, spec: ModelSpec, yes: int, no: int) -> Piece:
    """The row that gives logit(yes) - logit(no)."""

    def row(stored: Any) -> Any:
        rows = head.transform(stored) if head.transform is not None else stored
        return spec.logit_scale * (rows[yes : yes + 1].float() - rows[no : no + 1].float())

    return Piece(head.name, (1, spec.hidden), row, stored=head.stored or head.shape)


def _modules(folder: Path) -> dict[str, str]:
    """The folder of each module by the name of its class; empty without modules.json."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for module in read_json_list(path):
        kind, at = str(module["type"]).rpartition(".")[2], str(module.get("path") or "")
        if at != Path(at).name or at == "..":
            raise ModelError(f"modules.json: the path {at[:64]!r} of a module is not a folder of the model")
        if kind not in ("Transformer", "Pooling", "Normalize", "LogitScore"):
            raise ModelError(f"modules.json: the module {kind[:64]!r} is not supported")
        found[kind] = at
    return found


def _embedding(spec: ModelSpec, config: Mapping[str, Any], folder: Path, modules: dict[str, str]) -> PoolingSpec:
    path = folder / modules["Pooling"] / "config.json"
    said = read_json(path)
    flags = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    modes = [str(said.get("pooling_mode") or "")] if not flags else [FLAGS.get(key, key[13:]) for key in flags]
    if len(modes) != 1 or modes[0] not in TAKES:
        raise ModelError(f"{modules['Pooling']}: pooling {', '.join(modes)[:64] or 'without a mode'} is not supported")
    if spec.hidden > MAX_ROW:
        raise ModelError(f"embeddings of {spec.hidden} numbers are not supported, at most {MAX_ROW} are")
    if modes[0] == "cls" and spec.causal:
        raise ModelError("pooling cls is not supported, the first token of a decoder sees no other")
    return PoolingSpec(
        task="embed",
        width=spec.hidden,
        take=TAKES[modes[0]],
        normalize="Normalize" in modules,
        shorter=_shorter(config, spec.family),
    )


def _shorter(config: Mapping[str, Any], family: str) -> tuple[int, ...] | None:
    """Lengths of a Matryoshka model, by the keys that vLLM reads."""
    if lengths := config.get("matryoshka_dimensions"):
        return tuple(int(length) for length in lengths)
    return () if config.get("is_matryoshka", family in MATRYOSHKA) else None


def _token_score(spec: ModelSpec, folder: Path, module: str, told: tuple[str, ...]) -> PoolingSpec:
    """`told`: the operator's tokens, which replace the module's."""
    template = folder / "chat_template.jinja"
    chat = template.is_file() and "document" in template.read_text(errors="replace")
    pairs = "chat" if chat else PAIRS.get(spec.family, "")
    if told:
        return _judge(spec, folder, told, pairs)
    said = read_json(folder / module / "config.json")
    yes, no = said.get("true_token_id"), said.get("false_token_id")
    if not (isinstance(yes, int) and isinstance(no, int) and 0 <= min(yes, no) <= max(yes, no) < spec.vocab):
        raise ModelError(f"{module}: two token ids of the vocabulary are needed, not {yes} and {no}")
    return _judge(spec, folder, (str(yes), str(no)), pairs)


def _is_raw(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether sentence-transformers shows a classifier's number itself and not its sigmoid."""
    path = folder / "config_sentence_transformers.json"
    said = {**(config.get("sentence_transformers") or {}), **(read_json(path) if path.is_file() else {})}
    name = said.get("activation_fn") or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    kind = str(name).rpartition(".")[2]
    if kind not in ("Identity", "Sigmoid"):
        raise ModelError(f"the activation {kind[:64]!r} of a score is not supported")
    return kind == "Identity"


def _most_tokens(spec: ModelSpec, folder: Path) -> int:
    path = folder / "sentence_bert_config.json"
    most = read_json(path).get("max_seq_length") if path.is_file() else None
    return min(spec.max_context, int(most)) if most else spec.max_context
