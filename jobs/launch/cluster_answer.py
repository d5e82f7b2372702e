"""Program that asks a Ray cluster for its nodes and prints the answer; ``connection`` ends it when it takes long.

Its first line says that Ray is imported; the second is ``ok``, or the error's name and words.
"""

import sys

from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]


def main() -> int:
    """Ask the cluster of the command line's address."""
    print("ready", flush=True)
    try:
        GcsClient(address=canonicalize_bootstrap_address(sys.argv[1])).get_all_node_info(timeout=10)
    except Exception as error:
        print(type(error).__name__, str(error).partition(". ")[0])
    else:
        print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
