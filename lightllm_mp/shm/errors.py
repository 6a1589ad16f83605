"""Errors between two actors. A client's request never causes them."""

from __future__ import annotations

from lightllm_mp.errors import EngineError


class LaneClosed(EngineError):
    """The lane takes no more records: its producer has finished, or a corrupt record has poisoned it."""

    code = "lane_closed"


class ProtocolError(EngineError):
    """A record that no correct peer sends: it cannot be decoded, has an unknown kind, or returns an unknown lease."""

    code = "protocol_error"


class LeaseError(EngineError):
    """A block was read or freed with an invalid lease. This is a bug of the engine, never bad input."""

    code = "lease_error"
