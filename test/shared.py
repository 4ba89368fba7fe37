"""What all tests in Python share: the runner, waiting, a server of a test's
own. The folders beside this file have the tests and run them."""

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest
from base64 import urlsafe_b64encode

SECONDS = 20
LEEWAY = 60  # seconds that a token is accepted after its exp


def ssed():
    return os.path.abspath(os.environ.get("SSED", "ssed"))


def sign(secret, claims):
    """A signed token (RFC 7519, HS256) of claims, whose exp is in seconds from
    now."""
    def part(data):
        return urlsafe_b64encode(data).rstrip(b"=")

    exp = int(time.time()) + claims["exp"]
    head, body = (part(json.dumps(data).encode()) for data in
                  ({"alg": "HS256", "typ": "JWT"}, {**claims, "exp": exp}))
    signed = head + b"." + body
    mac = hmac.digest(secret.encode(), signed, hashlib.sha256)
    return (signed + b"." + part(mac)).decode()


def fields_of(block):
    fields = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data" and name in fields:
            value = fields[name] + "\n" + value
        fields[name] = value
    return fields


class Result(unittest.TestResult):
    """One line for each test."""

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


def run_tests(found, names, result):
    """Those whose name (test_chat.Chat.test_stop) contains one of the names,
    or all. Returns whether there were some and all are well."""
    tests = [test for test in each_test(found)
             if not names or any(name in test.id() for name in names)]
    started = time.monotonic()
    unittest.TestSuite(tests).run(result)
    for test, trace in result.failures + result.errors:
        print(f"\n{test.id()}\n{trace}")
    seconds = time.monotonic() - started
    print(f"  {result.testsRun} tests in {seconds:.0f} s", flush=True)
    return bool(tests) and result.wasSuccessful()


def wait(condition, what, seconds=SECONDS):
    """Waits until condition() is true and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.02)


def free_port():
    """Below the ports that the kernel gives to those that connect: a server
    that is started again must find its port free, and one that is away must
    not be met by somebody that connects to itself."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        below = min(int(file.read().split()[0]), 32768)
    while True:
        port = random.SystemRandom().randrange(10000, below)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """A server that is none of ours; its output is kept in a file."""

    running = set()

    def __init__(self, name, folder):
        self.name = name
        self.log = os.path.join(folder, f"{name}.log")
        self.process = None

    def launch(self, *command):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        Process.running.add(self)

    def check(self):
        if self.process.poll() is not None:
            with open(self.log) as log:
                raise AssertionError(f"{self.name} has ended: {log.read()}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        Process.running.discard(self)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)


def remove(folder):
    """With what a process that is about to end may still write there."""
    def is_gone():
        shutil.rmtree(folder, ignore_errors=True)
        return not os.path.exists(folder)

    wait(is_gone, f"{folder} is removed")


class Server:
    """A ./ssed on a free port of the loopback."""

    running = set()
    stdin = subprocess.DEVNULL

    def __init__(self, *options, port=0):
        self.options = options
        self.port = port
        self.errors_allowed = False
        self.run()

    def command(self):
        return [ssed(), "--port", str(self.port), *self.options]

    def run(self):
        command = self.command()
        self.log = []
        self.process = subprocess.Popen(command, stdin=self.stdin,
                                        stderr=subprocess.PIPE, text=True)
        Server.running.add(self)
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        wait(self.is_ready, f"{' '.join(command)} is ready")

    def read_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def is_listening(self):
        if self.process.poll() is not None:
            self.reader.join()
            raise AssertionError("the server ended: " + "".join(self.log))
        for line in list(self.log):
            address = re.search(r"event=listening address=\S+:(\d+)", line)
            if address:
                self.port = int(address[1])
                return True
        return False

    def is_ready(self):
        return self.is_listening() and self.has_logged("event=ready")

    def has_logged(self, text):
        return any(text in line for line in list(self.log))

    @property
    def pid(self):
        return self.process.pid

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    @property
    def admin_port(self):
        """That of --admin 127.0.0.1:0."""
        found = re.search(r"event=admin address=\S+:(\d+)", "".join(self.log))
        return int(found[1])

    def end(self, sent):
        if self not in Server.running:
            return
        self.process.send_signal(sent)
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end at {sent!r}")
        finally:
            Server.running.discard(self)
            self.reader.join()
            self.process.stderr.close()
        if self.process.returncode != (0 if sent == signal.SIGTERM else -sent):
            raise AssertionError(f"the server ended by itself, with "
                                 f"{self.process.returncode}: " +
                                 "".join(self.log[-40:]))
        errors = [line for line in self.log if "level=error" in line]
        if errors and not self.errors_allowed:
            raise AssertionError("the server logged " + "".join(errors))

    def kill(self):
        self.end(signal.SIGKILL)

    def stop(self):
        self.end(signal.SIGTERM)

    def restart(self, *options):
        """Stops it if it runs; with options, they replace the former ones."""
        self.stop()
        self.options = options or self.options
        self.run()

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port,
                                                timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def stop_servers():
    for server in list(Server.running):
        server.process.kill()
        server.process.wait()
        Server.running.discard(server)


def stop_processes():
    for process in list(Process.running):
        process.kill()


def give_up(*_):
    raise AssertionError("the test takes too long")
