"""Digests that identify an image. Two requests share an embedding exactly when they are equal. Imports no torch."""

from __future__ import annotations

import hashlib

import msgspec

from lightllm_mp.vision.spec import VisionSpec


def content_digest(data: bytes | memoryview) -> bytes:
    """SHA-256 of an image file as uploaded or fetched, 32 bytes."""
    return hashlib.sha256(data).digest()


def model_digest(spec: VisionSpec, weights: str, dtype: str) -> bytes:
    """SHA-256 of all that determines an embedding besides the file: the spec (tower and preprocessing), a name for the
    weights (the model folder), and the dtype. Constant for a server."""
    return hashlib.sha256(_joined(msgspec.json.encode(spec), weights.encode(), dtype.encode())).digest()


def image_key(content: bytes, model: bytes, tenant: bytes = b"") -> bytes:
    """SHA-256 over a content digest, a model digest and the tenant: tenants share nothing."""
    return hashlib.sha256(_joined(content, model, tenant)).digest()


def _joined(*fields: bytes) -> bytes:
    """Includes lengths, so different lists of fields give different bytes."""
    return b"".join(len(field).to_bytes(8, "little") + field for field in fields)
