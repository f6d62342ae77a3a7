"""Ports: free ones for the inner servers, and the gateway's, checked before anything is started."""

from __future__ import annotations

import errno
import socket

import psutil

from service.supervisor.errors import PortTaken


def free_ports(count: int) -> list[int]:
    """Return `count` different free TCP ports of the loopback."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def claim(host: str, port: int) -> int:
    """Return the port on which a server may listen; 0 chooses a free one.

    Raises PortTaken, naming who listens there (where the system tells) and what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise PortTaken(f"--host {host} is no address of this machine: {error}.") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise PortTaken(_reason(error, host, port)) from error
        return int(probe.getsockname()[1])


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        owner = _listener(port)
        held = f" by {owner}" if owner else ""
        return (
            f"Port {port} on {host} is already in use{held}. "
            f"Stop that process, or choose another port: --port {free_ports(1)[0]}."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} needs rights that this user does not have. Use a port above 1023."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all."
    return f"Cannot listen on {host}:{port}: {error.strerror}."


def _listener(port: int) -> str | None:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                if connection.pid:
                    name = psutil.Process(connection.pid).name()
                    return f"{name} (pid {connection.pid})"
                return None
    except psutil.Error:
        pass
    return None
