"""A Redis that breaks off, dawdles, or says what no Redis says. A node notes
it in its log, connects again and goes on, with its subscribers and its memory.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from fake_redis import FakeRedis, bulk
from harness import Node, NodesTest
from shared import SECONDS

MIB = 1 << 20
BOUND = 32 * MIB  # that a node's memory may grow by

# What is the protocol of no Redis, wherever it stands.
MALFORMED = [
    b"\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-2\r\n", b"$ 5\r\n",
    b"$99999999999999999999\r\n", b"$0x10\r\n", b"$\r\n", b"*-7\r\n", b"*x\r\n",
    b"$3\r\nabcd\r\n", b"%1\r\n+a\r\n+b\r\n", b"_\r\n", b"*1\r\n" * 100,
    b"*2\r\n*1\r\n!3\r\n", b"\0\0\0\0\r\n", b"$104857600\r\n",
]

# What may be said, but not to the question.
MISPLACED = [b":1\r\n", b"*1\r\n:1\r\n", b"*0\r\n$1\r\na\r\n", b"*-1\r\n",
             b"-ERR you\r\n", b"+QUEUED\r\n*2\r\n*0\r\n", b"*1\r\n*1\r\n*0\r\n"]

# (first bytes, the bytes that follow for ever, how many MiB of them)
ENDLESS = {
    "a bulk of 100 MiB": (b"$104857600\r\n", b"x", 100),
    "arrays in arrays": (b"", b"*1\r\n", 8),
    "an array of all numbers": (b"*2147483647\r\n", b":1\r\n", 8),
    "an array of all texts": (b"*1000000000\r\n", b"$1\r\nx\r\n", 8),
    "a line": (b"+", b"x", 64),
    "an error": (b"-ERR ", b"x", 64),
    "a length": (b"$", b"0", 64),
    "an entry of 100 MiB": (
        b"*1\r\n*2\r\n" + bulk("0-9000000000000000") +
        b"*4\r\n$1\r\nt\r\n$1\r\nt\r\n$1\r\nd\r\n$104857600\r\n", b"x", 100),
    "a name of 50 MiB": (
        b"*1\r\n*2\r\n" + bulk("0-9000000000000000") +
        b"*4\r\n$52428800\r\n", b"x", 50),
    "an entry of all fields": (
        b"*1\r\n*2\r\n" + bulk("0-9000000000000000") +
        b"*2000000000\r\n", b"$1\r\nd\r\n$1\r\nx\r\n", 16),
    "an id": (b"*1\r\n*2\r\n$52428800\r\n", b"1", 50),
    "silence": (b"", b"", 0),
}

# What Redis replies with, and a word of what a node makes of it.
ERRORS = {
    "LOADING Redis is loading the dataset in memory": "loading",
    "MASTERDOWN Link with MASTER is down": "without its master",
    "NOAUTH Authentication required.": "--redis-auth-file",
    "WRONGPASS invalid username-password pair": "--redis-auth-file",
    "READONLY You can't write against a read only replica.": "replica",
    "UNBLOCKED force unblock from blocking operation": "replica",
    "ERR something that nobody knows": "something that nobody knows",
}

PLACES = ["INFO", "SCRIPT", "EVALSHA", "XRANGE", "XREAD"]


class Replies(NodesTest):
    workers = 8
    grown = 0  # the most that the memory of a node has grown by

    def pair(self):
        """A fake of its own with a node of its own."""
        fake = FakeRedis()
        self.addCleanup(fake.close)
        fake.append("t", "first")
        node = Node(fake.address)
        fake.wait_ready(0)
        self.wait(node.is_well, "the node is ready")
        return fake, node

    def each(self, cases, check):
        """check(fake, node, case) for all cases, on several nodes at once."""
        pairs = [self.pair() for _ in range(min(self.workers, len(cases)))]

        def share(n):
            for case in cases[n::len(pairs)]:
                try:
                    check(*pairs[n], case)
                except AssertionError as error:
                    log = "".join(pairs[n][1].log[-8:])
                    raise AssertionError(f"{case}: {error}\n{log}") from None

        with ThreadPoolExecutor(len(pairs)) as pool:
            for _ in pool.map(share, range(len(pairs))):
                pass
        return pairs

    def check_good(self, fake, node):
        """What the log has, the node has, once, and what is published now."""
        self.wait(node.is_well, "the node is well")
        node.publish("t", "last")
        answer = node.read("t", "earliest",
                           lambda block: block.get("data") == "last")
        data = [block["data"] for block in answer.blocks if "data" in block]
        held = [dict(zip(fields[::2], fields[1::2]))
                for _, fields in fake.entries]
        held = [fields["d"] for fields in held if fields.get("t") == "t"]
        self.assertEqual(data, held)

    # -------------------------------------------------- replies that are cut

    def cut(self, fake, node, place):
        before, pairs = fake.cuts, fake.pairs()
        fake.cut = place
        fake.drop()
        fake.append("t", f"one {place}")
        fake.append("t", f"two {place}", "e", "name", "r", "1000")
        self.wait(lambda: fake.cuts > before, "the reply is cut")
        fake.wait_ready(pairs + 1)
        self.assertEqual(node.health()[0], 200)

    def test_cut_at_every_byte(self):
        """Of what a node is sent from its connects to the end of a read."""
        fake, node = self.pair()
        pairs = fake.pairs()
        fake.drop()
        fake.append("t", f"one {(0, 100)}")
        fake.append("t", f"two {(0, 100)}", "e", "name", "r", "1000")
        fake.wait_ready(pairs)
        lengths = [fake.lengths[fake.ready, role] for role in (0, 1)]
        places = [(role, at) for role in (0, 1)
                  for at in range(lengths[role])]
        print(f"    {len(places)} places")
        self.random.shuffle(places)
        self.workers = 12
        for fake, node in self.each(places, self.cut):
            self.check_good(fake, node)
            self.assertFalse(node.has_logged("event=log_gap"))
            away = [line for line in node.log if "state=away" in line]
            self.assertGreaterEqual(len(away), fake.cuts)

    def test_answer_to_a_publish_cut(self):
        """The event is in the log; the publisher is told that nobody knows."""
        def check(fake, node, at):
            pairs = fake.pairs()

            def spoil(words, reply):
                if words[0] == "EVALSHA" and "cut" in words[-1]:
                    fake.spoil = None
                    return [reply[:at], None]

            fake.spoil = spoil
            status, text = node.request("POST", "/events/t", b"cut %d" % at)
            self.assertEqual(status, 503)
            self.assertIn('"outcome":"unknown"', text)
            fake.wait_ready(pairs)
        length = len(bulk("0-1795545048131024"))
        for fake, node in self.each(list(range(length)), check):
            self.check_good(fake, node)
            self.assertFalse(node.has_logged("event=log_gap"))

    def test_byte_by_byte(self):
        fake, node = self.pair()
        fake.spoil = lambda words, reply: [reply[n:n + 1]
                                           for n in range(len(reply))]
        for n in range(20):
            pairs = fake.pairs()
            fake.append("t", f"data {n}")
            node.publish("t", f"published {n}")
            if n % 4 == 0:
                fake.drop()
                fake.wait_ready(pairs)
                self.wait(node.is_well, "the node is well")
        fake.spoil = None
        self.check_good(fake, node)

    # --------------------------------------------------- replies that are late

    def publish_unread(self, fake, node, pool):
        """Publishes while the node reads nothing: the event is in the log, and
        the publisher waits for its answer."""
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def spoil(words, reply):
            if words[0] in ("XRANGE", "XREAD"):
                go_on.wait(SECONDS)

        fake.spoil = spoil
        entries = len(fake.entries)
        answer = pool.submit(node.request, "POST", "/events/t", b"x")
        self.wait(lambda: len(fake.entries) > entries, "it is in the log")
        self.holds(0.5, lambda: not answer.done(), "the publisher waits")
        return answer, go_on

    def test_answered_when_it_has_been_read(self):
        fake, node = self.pair()
        with ThreadPoolExecutor(1) as pool:
            answer, go_on = self.publish_unread(fake, node, pool)
            go_on.set()
            self.assertEqual(answer.result()[0], 201)

    def test_nothing_can_be_read(self):
        """What does not answer is left, and the outcome is unknown."""
        fake, node = self.pair()
        pairs = fake.pairs()
        with ThreadPoolExecutor(1) as pool:
            answer, go_on = self.publish_unread(fake, node, pool)
            self.wait(node.is_log_away, "the node gives up the connection")
            status, text = answer.result()
            self.assertEqual(status, 503)
            self.assertIn('"outcome":"unknown"', text)
            go_on.set()
        fake.wait_ready(pairs)
        fake.spoil = None
        self.check_good(fake, node)

    # -------------------------------------------------- replies that are bad

    def say(self, fake, node, place, pieces):
        """Instead of the next reply to that command. The node gives up this
        pair of connections and is well again with the next."""
        pairs = fake.pairs()
        state = {"memory": 0}

        def spoil(words, reply):
            if words[0] == place and fake.spoil is spoil:
                fake.spoil = None
                return self.pieces(pieces, node, state)

        fake.spoil = spoil
        published = None
        if place == "EVALSHA":
            published = node.request("POST", "/events/t", b"unknown")
        elif place == "XRANGE":
            fake.append("t", "another")
        elif place != "XREAD":
            fake.drop()
        fake.wait_ready(pairs + (place in ("INFO", "SCRIPT")))
        self.assertIsNone(fake.spoil)
        self.grown = max(self.grown, state["memory"])
        self.assertLess(state["memory"], BOUND)
        self.assertEqual(node.health()[0], 200)
        if published:
            self.assertEqual(published[0], 503)

    def pieces(self, pieces, node, state):
        """With how much the node's memory has grown meanwhile."""
        before = node.memory()
        for n, piece in enumerate(pieces):
            yield piece
            if n % 16 == 0:
                state["memory"] = max(state["memory"], node.memory() - before)

    def check_logged(self, node, cases):
        away = [line for line in node.log if "state=away" in line]
        self.assertGreaterEqual(len(away), len(cases))

    def test_malformed(self):
        cases = [(place, reply) for reply in MALFORMED for place in PLACES]
        self.random.shuffle(cases)
        pairs = self.each(cases, lambda fake, node, case: self.say(
            fake, node, case[0], [case[1]]))
        for n, (fake, node) in enumerate(pairs):
            self.check_good(fake, node)
            self.check_logged(node, cases[n::len(pairs)])

    def test_misplaced(self):
        cases = [(place, reply) for reply in MISPLACED for place in PLACES[:-1]
                 if place != "EVALSHA" or reply[:1] != b"-"]
        self.random.shuffle(cases)
        pairs = self.each(cases, lambda fake, node, case: self.say(
            fake, node, case[0], [case[1]]))
        for n, (fake, node) in enumerate(pairs):
            self.check_good(fake, node)
            self.check_logged(node, cases[n::len(pairs)])

    def test_errors_that_say_why(self):
        """While Redis replies with them, the log is away for that reason."""
        fake, node = self.pair()
        for error, reason in ERRORS.items():
            def spoil(words, reply):
                if words[0] in ("XRANGE", "XREAD", "EVALSHA"):
                    return [f"-{error}\r\n".encode()]

            pairs = fake.pairs()
            fake.spoil = spoil
            fake.append("t", error)
            self.wait(lambda: node.is_log_away() and reason in node.health()[1],
                      f"the log is away: {reason}")
            status, text = node.request("POST", "/events/t", b"x")
            self.assertEqual(status, 503)
            fake.spoil = None
            fake.wait_ready(pairs)
            self.check_good(fake, node)

    def test_words_of_redis_are_told_as_text(self):
        """Whatever bytes are in an error, the answer to a publish is JSON."""
        fake, node = self.pair()
        pairs = fake.pairs()

        def spoil(words, reply):
            if words[0] == "EVALSHA" and "x" in words:
                return []
            if words[0] in ("XRANGE", "XREAD") and reply != b"*-1\r\n":
                return [b'-ERR "what" \\ is \x01\x7f\xff this\r\n']

        fake.spoil = spoil
        status, text = node.request("POST", "/events/t", b"x")
        self.assertEqual(status, 503)
        answer = json.loads(text)
        self.assertEqual(answer["outcome"], "unknown")
        self.assertIn("'what' ' is", answer["error"])
        fake.spoil = None
        fake.wait_ready(pairs)
        self.check_good(fake, node)

    def test_without_end(self):
        def check(fake, node, case):
            place, name = case
            first, rest, size = ENDLESS[name]
            piece = rest * (65536 // max(len(rest), 1))
            self.say(fake, node, place, [first] + [piece] * (size * 16))

        cases = [(self.random.choice(PLACES), name) for name in ENDLESS
                 if not ENDLESS[name][0].startswith(b"*1\r\n*2")]
        cases += [("XRANGE", name) for name in ENDLESS]
        self.workers = 4
        for fake, node in self.each(cases, check):
            self.wait(node.is_well, "the node is well")
        print(f"    memory grew by {self.grown // 1024} KiB at the most")

    def test_spoiled_at_random(self):
        """Whatever it is told, a node lives on and is well in the end."""
        def check(fake, node, case):
            pairs = fake.pairs()
            end = time.monotonic() + 0.5

            def spoil(words, reply):
                if self.random.random() < 0.5:
                    return None
                bytes_ = bytearray(reply)
                for _ in range(self.random.randint(1, 3)):
                    at = self.random.randrange(len(bytes_))
                    bytes_[at:at + self.random.randint(0, 2)] = \
                        self.random.choices(b"\r\n$*+-:0123456789x\0\xff",
                                            k=self.random.randint(0, 2))
                    bytes_ += b"\n" * (not bytes_)
                return [bytes(bytes_)]

            fake.spoil = spoil
            while time.monotonic() < end:
                node.request("POST", "/events/t", b"x")
                fake.append("t", "y")
            fake.spoil = None
            fake.drop()
            fake.wait_ready(pairs)

        for fake, node in self.each(list(range(64)), check):
            self.wait(node.is_well, "the node is well")
            node.publish("u", "last")
            node.read("u", "earliest", lambda block:
                      block.get("data") == "last")
