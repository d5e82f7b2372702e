"""A Ray cluster of our own: this machine alone, at its loopback address."""

import os
import secrets
import sys

LOOPBACK = "127.0.0.1"
"""Address of a Ray cluster of our own."""


def loopback_settings() -> dict[str, str]:
    """Give the environment of a driver whose cluster is this machine alone; set it before ray is imported.

    Ray runs what whoever reaches its ports asks for, and listens on every interface. Told that clusters are switched
    off, as on Windows and macOS, it stays on the address it is given; and it answers those alone who know its token.
    """
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    return {name: os.environ.get(name, value) for name, value in settings.items()}
