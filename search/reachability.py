"""Whether anybody listens at an address, before libraries that would knock for minutes."""

import socket

SECONDS_TO_ANSWER = 10


def unanswered(address: str) -> str | None:
    """Why nothing answers at HOST:PORT; None where something does, and for what has no port."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        return str(error)
    return None
