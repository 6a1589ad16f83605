"""Tells systemd, or any parent that sets NOTIFY_SOCKET, the state of the server: sd_notify(3) without a library."""

from __future__ import annotations

import os
import socket


def sd_notify(state: str) -> None:
    """Send `state`, such as "READY=1". Does nothing if NOTIFY_SOCKET is not set."""
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
            return  # a missing notify socket must not end the server
