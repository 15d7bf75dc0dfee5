"""A socket that is bound before anything is said. What a server needs besides takes seconds to import."""

import socket

from afina.core.errors import SettingsError


def bind(host: str, port: int) -> socket.socket:
    """A socket for `server.run`. Raises `SettingsError` where the address cannot be had."""
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((name, port))
    except (OSError, OverflowError, UnicodeError) as error:
        found.close()
        raise taken(host, port, error) from error
    return found


def taken(host: str, port: int, error: Exception) -> SettingsError:
    """What is said where an address cannot be had."""
    reason = getattr(error, "strerror", None) or str(error)
    return SettingsError(
        f"cannot listen on {host}:{port}: {reason.lower()}", "give another --port (0: any that is free) or --host"
    )
