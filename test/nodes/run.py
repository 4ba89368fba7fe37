#!/usr/bin/python3
"""Runs the tests of several nodes that share a log, on a build of the server.

    test/nodes/run.py ./ssed [NAME…]

runs those whose name (test_failures.Failures.test_flushall) contains a NAME,
or all. Needs redis-server and haproxy. From the environment: NODES_MINUTES has
them all run again and again for so long; NODES_SEED, which is printed at the
start, is where the random choices come from.
"""

import os
import random
import signal
import sys
import time
import unittest

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(FOLDER))
sys.dont_write_bytecode = True

import shared


def main(ssed, *names):
    os.environ["SSED"] = os.path.abspath(ssed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.monotonic() + 60 * float(os.environ.get("NODES_MINUTES") or 0)
    seed = int(os.environ.get("NODES_SEED") or 0) or random.randrange(1, 10**6)
    good = True
    while good:
        print(f"  NODES_SEED={seed}", flush=True)
        os.environ["NODES_SEED"] = str(seed)
        found = unittest.defaultTestLoader.discover(FOLDER)
        good = shared.run_tests(found, names, shared.Result())
        seed += 1
        if time.monotonic() >= end:
            break
    return 0 if good else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted")
