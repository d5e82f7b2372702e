"""Print N free TCP ports of the loopback interface, all different, for the scripts that start clusters of their own."""

import socket
import sys

sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
