"""What can go wrong between two actors. None of these is a client's fault."""

from __future__ import annotations

from lightllm_mp.errors import EngineError


class LaneClosed(EngineError):
    """The lane takes no more records: its producer finished, or a corrupt record poisoned it."""

    code = "lane_closed"


class ProtocolError(EngineError):
    """A record that no correct peer sends: undecodable, of an unknown kind, or a lease that was never given."""

    code = "protocol_error"


class LeaseError(EngineError):
    """A block was read or freed under a lease that is not, or no longer, valid: an engine bug, never bad input."""

    code = "lease_error"
