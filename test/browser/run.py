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
import time
import unittest

# Selenium comes from Debian, and only Debian's own Python sees it.
if not importlib.util.find_spec("selenium") and \
        sys.executable != "/usr/bin/python3":
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])

FOLDER = os.path.dirname(os.path.abspath(__file__))


class Result(unittest.TestResult):
    """One line for each test, and a screenshot of each that fails."""

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()
        self.good = True

    def stopTest(self, test):
        super().stopTest(test)
        word = "ok" if self.good else "FAILED"
        seconds = time.monotonic() - self.started
        print(f"  {word:6} {test.id()} ({seconds:.1f} s)", flush=True)

    def bad(self, test):
        self.good = False
        try:
            print(f"  {test.shot('failed')}")
        except Exception as error:  # the browser itself may be what failed
            print(f"  no screenshot: {error}")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.bad(test)

    def addError(self, test, error):
        super().addError(test, error)
        self.bad(test)

    def addSubTest(self, test, part, error):
        super().addSubTest(test, part, error)
        if error:
            self.bad(test)


def each_test(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from each_test(item)
        else:
            yield item


def main(ssed, *names):
    os.environ["SSED"] = os.path.abspath(ssed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.dont_write_bytecode = True
    for old in glob.glob(".build/screenshots/failed-*.png"):
        os.remove(old)
    loader = unittest.defaultTestLoader
    if names == ("--pictures",):
        loader.testMethodPrefix = "pictures"
        found, names = loader.discover(FOLDER, "pictures.py"), ()
    else:
        found = loader.discover(FOLDER)
    tests = [test for test in each_test(found)
             if not names or any(name in test.id() for name in names)]
    result = Result()
    started = time.monotonic()
    unittest.TestSuite(tests).run(result)
    for test, trace in result.failures + result.errors:
        print(f"\n{test.id()}\n{trace}")
    seconds = time.monotonic() - started
    print(f"  {result.testsRun} tests in {seconds:.0f} s")
    return 0 if tests and result.wasSuccessful() else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted")
