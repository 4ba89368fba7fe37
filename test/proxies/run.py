#!/usr/bin/python3
"""Runs the tests of nginx, HAProxy and Caddy in front of a build of the server.

    test/proxies/run.py ./ssed [NAME…]

runs those whose name (test_proxies.Nginx.test_reloaded) contains a NAME, or
all; then those that mostly wait are beside the others. Needs nginx, haproxy,
caddy, curl, node, openssl, chromium and Selenium.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import unittest

# Selenium comes from Debian, and only Debian's own Python sees it.
if not importlib.util.find_spec("selenium") and \
        sys.executable != "/usr/bin/python3":
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])

FOLDER = os.path.dirname(os.path.abspath(__file__))
BESIDE = ("test_silence", "test_browser")
sys.path.append(os.path.dirname(FOLDER))
sys.dont_write_bytecode = True

import shared


def main(ssed, *names):
    os.environ["SSED"] = os.path.abspath(ssed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pattern, beside = "test*.py", None
    if not names:
        pattern = "test_proxies.py"
        beside = subprocess.Popen([sys.executable, __file__, ssed, *BESIDE])
    found = unittest.defaultTestLoader.discover(FOLDER, pattern)
    good = shared.run_tests(found, names, shared.Result())
    return 0 if good and not (beside and beside.wait()) else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted")
