"""Settings of a local Ray cluster: this machine alone, at its loopback address."""

import os
import secrets
import sys

LOOPBACK = "127.0.0.1"
"""Address of a local Ray cluster."""


def loopback_settings() -> dict[str, str]:
    """Return the environment variables of a driver with a local cluster; set them before ray is imported.

    By default Ray runs any code that is sent to its ports, and listens on every interface. With multi-node clusters
    disabled, as on Windows and macOS, it listens on the given address alone; with a token, it refuses other clients.
    """
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    return {name: os.environ.get(name, value) for name, value in settings.items()}
