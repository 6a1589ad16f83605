"""Tell systemd (or whoever set NOTIFY_SOCKET) how far we are: sd_notify(3) without a library."""

from __future__ import annotations

import os
import socket


def sd_notify(state: str) -> None:
    """Send `state` such as "READY=1". Nothing happens where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendall(state.encode())
        except OSError:
            return  # A vanished notify socket must not take the server down.
