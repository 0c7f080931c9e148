"""Notifications (READY, STOPPING, WATCHDOG) to a service manager on $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send `state` (sd_notify(3)) to the service manager, if there is one.

    Returns:
        Whether it was sent.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract names
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(os.fsencode(state), address)
        except OSError:
            return False
    return True


def watchdog_limit() -> float:
    """Return the seconds within which the service manager expects WATCHDOG=1; 0.0 if it doesn't.

    $WATCHDOG_USEC and $WATCHDOG_PID as in sd_watchdog_enabled(3).
    """
    try:
        limit = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        pid = int(os.environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return 0.0
    return max(0.0, limit) if pid == os.getpid() else 0.0
