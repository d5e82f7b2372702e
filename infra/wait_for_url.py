"""Wait until an HTTP address answers, with a text in the answer if one is given; stop when a process has ended.

python infra/wait_for_url.py URL PID[,PID...] [TEXT]: exit code 0 when it answers, 1 after four minutes or when one of
the processes is gone.
A Ray cluster that asks for a token is shown RAY_AUTH_TOKEN.
"""

import os
import sys
import time
import urllib.request

url, processes, text = sys.argv[1], [int(pid) for pid in sys.argv[2].split(",")], "".join(sys.argv[3:])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never behind a proxy
if "RAY_AUTH_TOKEN" in os.environ:
    opener.addheaders.append(("Authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}"))
deadline = time.monotonic() + 240
while time.monotonic() < deadline:
    try:
        with opener.open(url, timeout=5) as answer:
            if text in answer.read().decode():
                sys.exit(0)
    except OSError:
        pass  # not listening yet: that is what is waited for
    try:
        for process in processes:
            os.kill(process, 0)
    except ProcessLookupError:
        sys.exit(1)
    time.sleep(0.2)
sys.exit(1)
