#!/usr/bin/python3
"""Runs the tests of the pages in Chromium, on a build of the server.

    test/browser/run.py ./ssed [NAME…]

runs those whose name (test_chat.Chat.test_stop) contains a NAME, or all.
--pictures instead of names makes the pictures of README.md, see pictures.py.
"""

import glob
import importlib.util
import os
import signal
import sys
import unittest

# Selenium comes from Debian, and only Debian's own Python sees it.
if not importlib.util.find_spec("selenium") and \
        sys.executable != "/usr/bin/python3":
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(FOLDER))
sys.dont_write_bytecode = True

import shared


class Result(shared.Result):
    """And a screenshot of each that fails."""

    def bad(self, test):
        super().bad(test)
        try:
            print(f"  {test.shot('failed')}")
        except Exception as error:  # the browser itself may be what failed
            print(f"  no screenshot: {error}")


def main(ssed, *names):
    os.environ["SSED"] = os.path.abspath(ssed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for old in glob.glob(".build/screenshots/failed-*.png"):
        os.remove(old)
    loader = unittest.defaultTestLoader
    if names == ("--pictures",):
        loader.testMethodPrefix = "pictures"
        found, names = loader.discover(FOLDER, "pictures.py"), ()
    else:
        found = loader.discover(FOLDER)
    return 0 if shared.run_tests(found, names, Result()) else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted")
