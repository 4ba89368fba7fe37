"""A Redis that knows as much as a node asks of it, and replies as it is told.

    fake = FakeRedis()
    fake.append("topic", "data")
    fake.cut = (0, 17)          # the 1st of two connections, after 17 bytes
    fake.spoil = lambda words, reply: [b"$-7\\r\\n"]   # instead of a reply;
                                # None at its end closes the connection
    fake.drop()                 # ends all connections
    fake.wait_ready(run)        # a node has read all, over new connections

A node opens two connections one after the other, and closes them together; so
the 1st of a pair is the one that it publishes over.
"""

import contextlib
import hashlib
import socket
import threading
import time

from shared import SECONDS, wait

RUN = "f" * 40
INFO = f"# Server\r\nredis_version:7.0.15\r\nrun_id:{RUN}\r\n"
SHA = hashlib.sha1(b"").hexdigest()


def bulk(text):
    data = text.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(*items):
    return b"*%d\r\n%s" % (len(items), b"".join(items))


class Connection:
    def __init__(self, fake, sock, role, pair):
        self.fake = fake
        self.sock = sock
        self.role = role
        self.pair = pair
        self.sent = 0
        self.closed = False

    def close(self):
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def serve(self):
        with self.sock, contextlib.suppress(OSError, ValueError), \
                self.sock.makefile("rb") as commands:
            while line := commands.readline():
                words = [self.word(commands) for _ in range(int(line[1:]))]
                self.reply(words)
        self.fake.connections.discard(self)

    def word(self, commands):
        length = int(commands.readline()[1:])
        return commands.read(length + 2)[:-2].decode()

    def reply(self, words):
        fake = self.fake
        reply = fake.answer(self, words)
        if self.closed:  # while it waited
            return
        spoil = fake.spoil
        pieces = spoil(words, reply) if spoil else None
        for piece in [reply] if pieces is None else pieces:
            if piece is None:
                self.close()
                return
            self.send(piece)

    def send(self, data):
        cut = self.fake.cut
        if cut and cut[0] == self.role and self.sent + len(data) >= cut[1]:
            self.fake.cut = None
            self.fake.cuts += 1
            self.sock.sendall(data[:cut[1] - self.sent])
            self.close()
            return
        self.sock.sendall(data)
        self.sent += len(data)


class FakeRedis:
    def __init__(self):
        self.entries = []          # (N, [field, value, ...])
        self.grown = threading.Condition()
        self.spoil = self.cut = None
        self.cuts = 0
        self.accepted = 0          # connections
        self.ready = 0             # the pair that has read all there was
        self.lengths = {}          # of what a pair was sent until then
        self.connections = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # closed
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, sock, self.accepted % 2,
                                    self.accepted // 2 + 1)
            self.accepted += 1
            # the node has left the others
            for other in list(self.connections):
                if other.pair < connection.pair:
                    other.close()
            self.connections.add(connection)
            threading.Thread(target=connection.serve, daemon=True).start()

    def drop(self):
        for connection in list(self.connections):
            connection.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop()
        with self.grown:
            self.grown.notify_all()

    def pairs(self):
        """So many were opened so far."""
        return (self.accepted + 1) // 2

    def wait_ready(self, after, seconds=SECONDS):
        """A pair that is newer than that one has read all there is."""
        wait(lambda: self.ready > after, "a node comes back and reads", seconds)

    # ---------------------------------------------------------- the commands

    def last(self):
        return self.entries[-1][0] if self.entries else 0

    def append(self, topic, data, *fields):
        return self.add(0, ["t", topic, "d", data, *fields])

    def add(self, floor, fields):
        with self.grown:
            id_ = max(int(time.time() * 1e6), self.last() + 1, floor + 1)
            self.entries.append((id_, ["m", str(id_ // 1000), *fields]))
            self.grown.notify_all()
            return id_

    def answer(self, connection, words):
        return getattr(self, f"do_{words[0].lower()}")(connection, words)

    def do_auth(self, connection, words):
        return b"+OK\r\n"

    def do_info(self, connection, words):
        return bulk(INFO)

    def do_script(self, connection, words):
        return bulk(SHA)

    def do_evalsha(self, connection, words):
        floor, fields = int(words[5]), words[6:]
        begins = fields[:2] == ["k", "begin"]
        if begins and self.entries and self.last() >= floor:
            return bulk(f"0-{self.last()}")
        if not begins and not self.entries:
            self.add(floor, ["k", "begin"])
        return bulk(f"0-{self.add(floor, fields)}")

    def do_xrange(self, connection, words):
        begin, count = words[2].split("-"), int(words[5])
        with self.grown:
            found = [] if int(begin[0]) else [
                entry for entry in self.entries if entry[0] >= int(begin[1])]
        return array(*(self.entry(entry) for entry in found[:count]))

    def do_xread(self, connection, words):
        """Waits for what comes behind; that is asked for with XRANGE."""
        for other in list(self.connections):
            if other.pair == connection.pair:
                self.lengths.setdefault((other.pair, other.role), other.sent)
        self.ready = max(self.ready, connection.pair)
        begin = words[-1].split("-")
        with self.grown:
            self.grown.wait_for(
                lambda: connection not in self.connections or
                int(begin[0]) == 0 and self.last() > int(begin[1]),
                int(words[4]) / 1000)
            found = [] if int(begin[0]) else [
                entry for entry in self.entries if entry[0] > int(begin[1])]
        if not found:
            return b"*-1\r\n"
        return array(array(bulk(words[-2]), array(self.entry(found[0]))))

    def entry(self, entry):
        return array(bulk(f"0-{entry[0]}"), array(*map(bulk, entry[1])))
