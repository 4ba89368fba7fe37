#!/usr/bin/python3
"""Runs the tests of signed tokens with other libraries: PyJWT, of Debian, and
jose, of npm.

    test/tokens/run.py ./ssed FOLDER [NAME…]

FOLDER has jose in its node_modules. It runs those whose name contains a NAME,
or all.
"""

import os
import signal
import sys
import unittest

# PyJWT comes from Debian, and only Debian's own Python sees it.
if sys.executable != "/usr/bin/python3":
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(FOLDER))
sys.dont_write_bytecode = True

import shared


def main(ssed, jose, *names):
    os.environ["SSED"] = os.path.abspath(ssed)
    os.environ["JOSE"] = os.path.abspath(jose)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = unittest.defaultTestLoader.discover(FOLDER)
        return 0 if shared.run_tests(found, names, shared.Result()) else 1
    finally:
        shared.stop_servers()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted")
