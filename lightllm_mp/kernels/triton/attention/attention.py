"""The attention op. Sequences with one new token and chunks of prompts may share a step."""

from __future__ import annotations

from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton.attention import decode, mla, prefill
from lightllm_mp.kernels.triton.attention.schedule import shares_of, tiles_of
from lightllm_mp.kernels.triton.attention.tuned_attention import (
    MAX_HEAD_DIM,
    MAX_LATENT_DIM,
    decode_blocks,
    latent_decode_blocks,
    latent_prefill_blocks,
    prefill_blocks,
)


def attention(q: Tensor, kv: LayerKV, batch: Batch, layout: HeadLayout) -> Tensor:
    """Never waits for the device: the shapes of the batch decide which kernels run. Every sequence has at least one
    key, its new token.

    The reference op, which does wait, computes heads beyond MAX_HEAD_DIM, values with another width than the keys that
    are not part of the keys, and latent keys with a window, cap, bias or sinks. No model family has them.
    """
    shared = kv.values.data_ptr() == kv.keys.data_ptr()
    if not batch.sequences or not (_latent_fits(layout) if shared else _fits(layout)):
        return reference.TABLE.attention(q, kv, batch, layout)
    out = q.new_empty((batch.tokens, layout.heads * layout.values))
    (_latent if shared else _plain)(q, kv, out, batch, layout)
    return out


def _has_chunks(batch: Batch) -> bool:
    return batch.tokens > batch.sequences


def _may_have_single(batch: Batch) -> bool:
    """Whether a sequence may have one new token."""
    return batch.tokens == batch.sequences or batch.sequences > 1


def _plain(q: Tensor, kv: LayerKV, out: Tensor, batch: Batch, layout: HeadLayout) -> None:
    dim, stored = layout.head_dim, kv.keys.dtype
    if _has_chunks(batch):
        blocks = prefill_blocks(dim, q.dtype, stored, batch.tokens * layout.heads)
        prefill.attend(q, kv, out, batch, layout, blocks, tiles_of(batch, blocks.queries))
    if _may_have_single(batch):
        few = decode_blocks(dim, layout.heads // layout.kv_heads, q.dtype, stored)
        decode.attend(q, kv, out, batch, layout, few, shares_of(batch, layout, few, layout.kv_heads))


def _latent(q: Tensor, kv: LayerKV, out: Tensor, batch: Batch, layout: HeadLayout) -> None:
    if _has_chunks(batch):
        blocks = latent_prefill_blocks(q.dtype)
        tiles = tiles_of(batch, mla.tokens_each(layout, blocks))
        mla.attend_chunks(q, kv.keys, out, batch, layout, blocks, tiles)
    if _may_have_single(batch):
        heads, few = latent_decode_blocks(layout.heads, q.dtype)
        shares = shares_of(batch, layout, few, -(-layout.heads // heads))
        mla.attend_single(q, kv.keys, out, batch, layout, heads, few, shares)


def _fits(layout: HeadLayout) -> bool:
    return layout.head_dim <= MAX_HEAD_DIM and layout.values == layout.head_dim


def _latent_fits(layout: HeadLayout) -> bool:
    plain = not (layout.window or layout.softcap or layout.alibi or layout.sinks is not None)
    return plain and layout.kv_heads == 1 and layout.values <= MAX_LATENT_DIM and layout.values < layout.head_dim
