"""What the tests of several nodes share: for each test a Redis of its own, its
nodes, and where it needs one a HAProxy, all on the loopback.

    class Failures(NodesTest):
        def test_something(self):
            self.start(nodes=2)
            load = self.crowd(subscribers=10, publishers=3)
            load.wait_acknowledged(100)
            self.redis.do("DEL", "ssed")
            load.settle(gaps="all")
"""

import atexit
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from crowd import Crowd, Parser
from shared import (SECONDS, Process, Server, free_port, give_up, remove, ssed,
                    stop_processes, stop_servers, wait)

# for all that is on the disk only while the tests run
FOLDER = tempfile.mkdtemp(prefix="ssed-nodes-")
REDIS = "/usr/bin/redis-server"
HAPROXY = "/usr/sbin/haproxy"
PASSWORD = "first"


class RedisError(Exception):
    pass


def read_reply(stream):
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis has closed the connection")
    kind, rest = line[:1], line[1:-2].decode()
    if kind == b"-":
        raise RedisError(rest)
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    if int(rest) < 0:
        return None
    if kind == b"$":
        return stream.read(int(rest) + 2)[:-2].decode("utf-8", "replace")
    return [read_reply(stream) for _ in range(int(rest))]


def write_command(words):
    """A command in the protocol of Redis."""
    words = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(
        b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Redis(Process):
    """A redis-server on a port and in a folder of its own."""

    count = 0

    def __init__(self, folder, password=None):
        Redis.count += 1
        self.folder = os.path.join(folder, f"redis-{Redis.count}")
        os.mkdir(self.folder)
        super().__init__("redis-server", self.folder)
        self.password = password
        self.port = free_port()
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def unix(self):
        return f"unix:{self.folder}/socket"

    def start(self):
        secret = ["--requirepass", self.password] if self.password else []
        self.launch(REDIS, "--port", str(self.port), "--bind", "127.0.0.1",
                    "--unixsocket", f"{self.folder}/socket", "--dir",
                    self.folder, "--save", "", "--appendonly", "yes",
                    "--appendfsync", "everysec", "--maxmemory-policy",
                    "noeviction", "--repl-diskless-sync-delay", "0",
                    *secret)
        wait(self.is_ready, "Redis is ready")

    def start_empty(self):
        shutil.rmtree(os.path.join(self.folder, "appendonlydir"))
        self.start()

    def is_ready(self):
        self.check()
        with contextlib.suppress(OSError, RedisError):
            return self.do("PING") == "PONG"

    def do(self, *words):
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as \
                connection, connection.makefile("rb") as replies:
            if self.password:
                connection.sendall(write_command(["AUTH", self.password]))
                read_reply(replies)
            connection.sendall(write_command(words))
            return read_reply(replies)

    def dump(self, key="ssed"):
        """The log: [(id, {field: value})]"""
        return [(name, dict(zip(fields[::2], fields[1::2])))
                for name, fields in self.do("XRANGE", key, "-", "+")]


class Node(Server):
    """One ssed of a group."""

    def __init__(self, redis, *options):
        super().__init__("--redis", redis, "--heartbeat", "1", "--retry", "100",
                         "--drain-spread", "100", *options, port=free_port())

    def is_ready(self):
        return self.is_listening()

    def health(self):
        """(status, text), also of one that hangs or has gone: (0, "")."""
        with contextlib.suppress(OSError):
            return self.request("GET", "/healthz")
        return 0, ""

    def is_well(self):
        return self.health() == (200, "ok\n")

    def is_log_away(self):
        status, text = self.health()
        return status == 200 and text.startswith("ok, log away since ")

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def memory(self):
        """Its resident memory in bytes."""
        with open(f"/proc/{self.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024

    def publish(self, topic, body):
        """The id; the topic may have a query behind it."""
        status, text = self.request("POST", f"/events/{topic}", body.encode())
        if status != 201:
            raise AssertionError(f"{status} {text}")
        return int(json.loads(text)["id"])

    def read(self, topic, position="", until=lambda block: False, method="GET"):
        """The answer to a subscriber of a topic, or of several ("?topic=…"),
        up to a block with which it is enough, or to its end; answer.blocks are
        its blocks."""
        blocks = []
        slash = "" if topic.startswith("?") else "/"
        answer = Parser(blocks.append)
        answer.blocks = blocks
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as \
                connection:
            connection.sendall(
                f"{method} /events{slash}{topic} HTTP/1.1\r\n"
                "Host: localhost\r\n"
                f"Last-Event-ID: {position}\r\n\r\n".encode())
            while data := connection.recv(65536):
                answer.feed(data)
                if any(map(until, blocks)) or answer.complete or \
                        answer.status not in (0, 200) or \
                        method == "HEAD" and answer.status:
                    break
        return answer


class HAProxy(Process):
    """A haproxy with one frontend and one backend of that name, "nodes".

        HAProxy(folder, "tcp", {"a": (port, ""), "b": (port, "disabled")})
    """

    count = 0

    def __init__(self, folder, mode, servers, front=(), back=()):
        HAProxy.count += 1
        super().__init__(f"haproxy-{HAProxy.count}", folder)
        self.port = free_port()
        self.socket = os.path.join(folder, f"{self.name}.socket")
        config = os.path.join(folder, f"{self.name}.cfg")
        with open(config, "w") as file:
            file.write("\n".join([
                "global",
                f"    stats socket {self.socket} level admin",
                "defaults",
                f"    mode {mode}",
                "    timeout connect 1s",
                "    timeout client 60s",
                "    timeout server 60s",
                "frontend front",
                f"    bind 127.0.0.1:{self.port}",
                *(f"    {line}" for line in front),
                "    default_backend nodes",
                "backend nodes",
                *(f"    {line}" for line in back),
                *(f"    server {name} 127.0.0.1:{port} {rest}"
                  for name, (port, rest) in servers.items()),
                ""]))
        self.launch(HAPROXY, "-f", config)
        wait(self.is_ready, "HAProxy is ready")

    def is_ready(self):
        self.check()
        with contextlib.suppress(OSError):
            return "Uptime" in self.say("show info")

    def say(self, command):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(self.socket)
            connection.sendall(f"{command}\n".encode())
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer.decode()

    def state(self, server):
        """UP, DOWN, MAINT and so on."""
        for line in self.say("show stat").splitlines():
            values = line.split(",")
            if values[:2] == ["nodes", server]:
                return values[17]

    def switch(self, old, new):
        """All connections are cut, and new ones lead to another server."""
        self.say(f"set server nodes/{old} state maint")
        self.say(f"set server nodes/{new} state ready")
        self.say(f"shutdown sessions server nodes/{old}")


atexit.register(remove, FOLDER)
atexit.register(stop_servers)
atexit.register(stop_processes)


class NodesTest(unittest.TestCase):
    seconds = 120  # that a test may take

    def setUp(self):
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(self.seconds)
        self.addCleanup(signal.alarm, 0)
        self.random = random.Random(f"{os.environ['NODES_SEED']} {self.id()}")
        self.folder = tempfile.mkdtemp(dir=FOLDER)
        self.addCleanup(stop_processes)
        self.addCleanup(stop_servers)
        self.nodes = []

    def tearDown(self):
        for node in list(Server.running):
            node.stop()

    # --------------------------------------------------------- what runs

    def start(self, nodes=2, options=(), unix=False, password=None):
        """A Redis, and nodes that are ready."""
        self.redis = Redis(self.folder, password=password)
        address = self.redis.unix if unix else self.redis.address
        self.start_nodes(nodes, address, *options)

    def start_nodes(self, count, redis, *options):
        self.nodes = [Node(redis, *options) for _ in range(count)]
        for node in self.nodes:
            self.wait(node.is_well, "a node is ready")

    def crowd(self, subscribers=10, publishers=3, **options):
        """See crowd.py."""
        ports = [node.port for node in self.nodes]
        crowd = Crowd(self, options.pop("ports", ports), subscribers,
                      publishers, **options)
        self.addCleanup(crowd.close)
        return crowd

    def check_held(self, topics):
        """No node holds what the log does not have."""
        entries = self.redis.dump()
        held = {int(name.split("-")[1]) for name, _ in entries}
        query = "?" + "&".join(f"topic={topic}" for topic in topics)
        for node in self.nodes:
            answer = node.read(query, "earliest", lambda block: int(
                block.get("id", 0)) >= max(held))
            got = {int(block["id"]) for block in answer.blocks
                   if "data" in block and block.get("event") != "ssed.gap"}
            self.assertEqual(got - held, set())

    def script(self):
        return subprocess.run([ssed(), "--print", "redis-script"], check=True,
                              stdout=subprocess.PIPE, text=True).stdout

    # ------------------------------------------------------------- waiting

    def wait(self, condition, what, seconds=SECONDS):
        return wait(condition, what, seconds)

    def wait_away(self, reason=""):
        for node in self.nodes:
            self.wait(lambda: node.is_log_away() and reason in node.health()[1],
                      f"a node says that its log is away ({reason})")

    def wait_well(self):
        for node in self.nodes:
            self.wait(node.is_well, "a node has its log again")

    def holds(self, seconds, condition, what):
        """The condition is true now and stays so for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not condition():
                raise AssertionError(f"not any more: {what}")
            time.sleep(0.05)
