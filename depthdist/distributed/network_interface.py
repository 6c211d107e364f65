"""The network interface on which a machine reaches the others.

gloo binds to what this machine's name resolves to: 127.0.1.1 in /etc/hosts as Debian and Ubuntu
write it, where no other machine can reach it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence

import psutil

GLOO = "GLOO_SOCKET_IFNAME"
ANY_PORT = 9  # nothing is sent to it


def address_towards(host: str) -> str:
    """Return this machine's address on the way to `host`, "" where there is no way.

    Only the routing table is asked: connecting a datagram socket sends nothing.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, ANY_PORT, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def is_loopback(address: str) -> bool:
    """Return whether other machines cannot reach this address."""
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interface_of(address: str) -> str:
    """Return the name of the interface that has this address, "" if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return ""


def choose_interface(own: str, others: Sequence[str]) -> str:
    """Set the interface that gloo binds to, and return a line about it.

    What the environment says wins. "" where nothing needs to be chosen: all ranks run here.

    own     this machine's address on the way to rank 0
    others  those of the ranks on other machines
    """
    if not others:
        return ""
    if given := os.environ.get(GLOO):
        return f"network      {given}, as {GLOO} says"
    reachable = [address for address in others if not is_loopback(address)]
    if is_loopback(own) and reachable:  # rank 0's own machine
        own = address_towards(reachable[0])
    name = "" if is_loopback(own) else interface_of(own)
    if not name:
        return ""
    os.environ[GLOO] = name
    return f"network      {name} ({own}) reaches the other machines; {GLOO} takes another"
