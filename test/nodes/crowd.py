"""A crowd of subscribers and publishers, all in one thread beside the test's.

A subscriber reads one stream after the other and remembers every event, gap and
end. It comes back with its last event id, to any node, and where it hops it
goes away by itself in the middle of a stream. A publisher keeps the books.

    crowd = Crowd(test, [port, port], 10, 3, hops=True)
    crowd.wait_acknowledged(100)      # so many more
    crowd.settle(gaps="none")         # all is over; the books balance

The data of an event is "PUBLISHER.NUMBER", and so each is unique.
"""

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter

from books import END, Books, Gap
from shared import SECONDS, fields_of, wait

PATIENCE = 30       # seconds for an answer, which is more than the server needs
READ_TIMEOUT = 20   # seconds of silence in a stream; it has heartbeats


class Parser:
    """The answer to a request to subscribe; on_block() gets each block."""

    def __init__(self, on_block):
        self.on_block = on_block
        self.status = 0
        self.headers = {}
        self.raw = self.text = b""
        self.length = 0
        self.complete = False  # its end has come

    def feed(self, data):
        self.raw += data
        if not self.status and not self.read_head():
            return
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while self.read_chunk():
                pass
        else:
            self.text += self.raw
            self.length += len(self.raw)
            self.raw = b""
            self.complete = \
                str(self.length) == self.headers.get("content-length")
        *blocks, self.text = self.text.split(b"\n\n")
        for block in blocks:
            self.on_block(fields_of(block.decode()))

    def read_head(self):
        head, end, rest = self.raw.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = head.decode().split("\r\n")
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self.status = int(first.split()[1])
        self.raw = rest
        return True

    def read_chunk(self):
        line, end, rest = self.raw.partition(b"\r\n")
        size = int(line, 16) if end else 0
        if not end or len(rest) < size + 2:
            return False
        self.text += rest[:size]
        self.raw = rest[size + 2:]
        self.complete = size == 0
        return size > 0


class Stream(asyncio.Protocol):
    """One connection of a subscriber."""

    def __init__(self, request, on_block, loop):
        self.request = request
        self.parser = Parser(on_block)
        self.over = loop.create_future()
        self.heard = time.monotonic()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.heard = time.monotonic()
        self.parser.feed(data)
        if self.parser.complete or self.parser.status not in (0, 200):
            self.transport.abort()

    def connection_lost(self, error):
        if not self.over.done():
            self.over.set_result(None)


class Subscriber:
    def __init__(self, crowd, name, topics, home=None):
        self.crowd = crowd
        self.name = name
        self.topics = topics  # an empty name is the main stream
        self.home = home      # the node that it stays with, or None: it hops
        self.first = None     # the position that it began with
        self.position = 0
        self.seen = []        # ids, in the order they came
        self.gaps = []
        self.places = []      # (position, port) of each connection
        self.beats = 0        # blocks that had no event
        self.at_end = False   # an end of a topic was the last event
        self.ended = 0        # streams that the server ended, with topics open
        self.cut = 0          # and without the last chunk
        self.statuses = Counter()
        self.faults = []
        self.connected = False

    def fault(self, text):
        self.faults.append(f"{self.name}: {text}")

    def history(self, id_):
        """Where it was when it should have got this event, for a message."""
        around = [place for place in self.places if place[0] <= id_][-2:] + \
                 [place for place in self.places if place[0] > id_][:2]
        gaps = [(gap.begin, gap.until, gap.open) for gap in self.gaps]
        return f"(position, port): {around}; gaps: {gaps}"

    # ------------------------------------------------------------- reading

    def request(self):
        if self.topics == [""]:
            target = "/events"
        elif len(self.topics) == 1:
            target = f"/events/{self.topics[0]}"
        else:
            target = "/events?" + "&".join(f"topic={topic}"
                                           for topic in self.topics)
        self.at_end = False
        lines = [f"GET {target} HTTP/1.1", "Host: 127.0.0.1"]
        if self.first is not None:
            lines.append(f"Last-Event-ID: {self.position}")
        return "\r\n".join([*lines, "", ""]).encode()

    async def run(self):
        random_ = self.crowd.random
        while not self.crowd.reading_over:
            port = self.home or random_.choice(self.crowd.ports)
            try:
                stream = await self.connect(port)
            except OSError:
                self.statuses["refused"] += 1
                await asyncio.sleep(random_.uniform(0.05, 0.2))
                continue
            await self.read(stream)
            await asyncio.sleep(random_.uniform(0.01, 0.2))

    async def connect(self, port):
        loop = self.crowd.loop
        self.places.append((self.position, port))
        _, stream = await loop.create_connection(
            lambda: Stream(self.request(), self.take, loop), "127.0.0.1", port)
        return stream

    async def read(self, stream):
        end = float("inf") if self.home else \
            time.monotonic() + self.crowd.random.uniform(0.1, 3)
        self.connected = True
        while not stream.over.done() and not self.crowd.reading_over:
            now = time.monotonic()
            if now > end:
                break
            if now > stream.heard + READ_TIMEOUT:
                self.fault(f"{READ_TIMEOUT} s without a heartbeat")
                break
            await asyncio.wait([stream.over], timeout=min(0.25, end - now))
        self.connected = False
        parser = stream.parser
        if stream.over.done():
            self.statuses[parser.status] += 1
        if stream.over.done() and parser.status == 200 and not self.at_end:
            self.ended += 1
            self.cut += not parser.complete
        stream.transport.abort()

    # -------------------------------------------------------------- blocks

    def take(self, block):
        """The bytes are data of this subscriber's one open stream."""
        id_ = int(block["id"]) if block.get("id") else None
        kind = block.get("event", "")
        data = block.get("data")
        if self.topics == [""] and data is not None:
            self.take_message(id_, json.loads(data))
        elif kind == "ssed.gap":
            self.take_gap(id_, json.loads(data)["topics"])
        elif kind == "ssed.end":
            self.take_event(id_, json.loads(data)["topic"], END)
        elif data is not None:
            self.take_event(id_, kind, data)
        elif id_ is not None:
            self.take_position(id_)

    def take_message(self, id_, message):
        if message["type"] in ("message", "catch_up_message"):
            self.take_event(id_, "", message["message"])
        elif message["type"] == "gap":
            self.take_gap(id_, self.topics)
        elif id_ is not None:
            self.take_position(id_)

    def take_event(self, id_, topic, data):
        if id_ is None or id_ <= self.position:
            self.fault(f"{id_} {data} comes after {self.position}")
            return
        if topic not in self.topics:
            self.fault(f"{id_} {data} is of {topic!r}, not {self.topics}")
        self.crowd.books.appeared(id_, topic, data)
        self.seen.append(id_)
        self.position = id_
        self.at_end = data == END
        for gap in self.gaps[-1:]:
            gap.close(topic, id_)

    def take_position(self, id_):
        self.beats += 1
        if self.first is None:
            self.first = id_
        if id_ < self.position:
            self.fault(f"the position {id_} comes after {self.position}")
        self.position = max(self.position, id_)
        for gap in self.gaps:
            for topic in list(gap.open):
                gap.close(topic, id_)

    def take_gap(self, id_, topics):
        if self.first is None:
            self.fault("a gap before it had a position")
            self.first = 0
        self.gaps.append(Gap(self.position, topics))
        if id_ is None or id_ < self.position:
            self.fault(f"the gap's position {id_} comes after {self.position}")
        self.position = max(self.position, id_ or 0)


class Broken(Exception):
    """The answer did not come; the request may have been sent, or not."""

    def __init__(self, sent):
        super().__init__()
        self.verdict = "unknown" if sent else "refused"


class Client:
    """Requests to one node, over one connection for as long as it lasts."""

    def __init__(self, port):
        self.port = port
        self.writer = None

    async def open(self):
        try:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port)
        except OSError:
            raise Broken(False) from None

    def close(self):
        if self.writer:
            self.writer.transport.abort()
        self.writer = None

    async def request(self, method, target, body=b"", lines=()):
        """(status, headers, body)"""
        if not self.writer:
            await self.open()
        self.writer.write("\r\n".join([
            f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *lines,
            f"Content-Length: {len(body)}", "", ""]).encode() + body)
        return await self.answer()

    async def answer(self):
        try:
            return await asyncio.wait_for(self.read_answer(), PATIENCE)
        except (OSError, EOFError):
            self.close()
            raise Broken(True) from None
        except BaseException:
            self.close()
            raise

    async def read_answer(self):
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await self.reader.readexactly(
            int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(first.split()[1]), headers, body.decode()


class Publisher:
    """One event after the other, to any node and into any topic. Now and then
    it finishes the topic; with `streams`, it also publishes several at once."""

    def __init__(self, crowd, name):
        self.crowd = crowd
        self.name = name
        self.count = 0
        self.clients = {}

    def client(self):
        port = self.crowd.random.choice(self.crowd.publish_ports)
        return self.clients.setdefault(port, Client(port))

    def data(self):
        self.count += 1
        return f"{self.name}.{self.count}"

    async def run(self):
        crowd = self.crowd
        while not crowd.publishing_over:
            topic = crowd.random.choice(crowd.published_topics)
            choice = crowd.random.random()
            try:
                if topic and choice < 0.03:
                    await self.finish(topic)
                elif topic and crowd.streams and choice < 0.06:
                    await self.stream(topic)
                else:
                    await self.publish(topic)
            except asyncio.TimeoutError:
                crowd.books.fault(f"{self.name}: no answer in {PATIENCE} s")
            await asyncio.sleep(crowd.random.uniform(0, 2 * crowd.pause))
        for client in self.clients.values():
            client.close()

    async def publish(self, topic):
        books, data = self.crowd.books, self.data()
        floor = books.newest
        target = f"/events/{topic}?event={topic}" if topic else "/events"
        try:
            status, headers, body = await self.client().request(
                "POST", target, data.encode())
        except Broken as broken:
            self.failed(data, broken.verdict)
            return
        if status == 201:
            books.acknowledge(int(json.loads(body)["id"]), topic, data, floor)
        else:
            self.failed(data, self.verdict(status, headers, body))

    async def finish(self, topic):
        books = self.crowd.books
        try:
            status, headers, body = await self.client().request(
                "DELETE", f"/events/{topic}")
        except Broken as broken:
            self.failed("", broken.verdict)
            return
        if status == 200:
            books.acknowledge_end(int(json.loads(body)["id"]), topic)
        elif status != 404:
            self.failed("", self.verdict(status, headers, body))

    async def stream(self, topic):
        """Several events in one body. What was published so far is told."""
        books = self.crowd.books
        events = [self.data() for _ in range(self.crowd.random.randint(1, 8))]
        body = "".join(f"event: {topic}\ndata: {data}\n\n" for data in events)
        end = self.crowd.random.choice(["", "", "?end=1"])
        try:
            status, headers, body = await self.client().request(
                "POST", f"/events/{topic}{end}", body.encode(),
                ["Content-Type: text/event-stream"])
        except Broken as broken:
            for data in events:
                self.failed(data, broken.verdict)
            return
        # one event is under way at a time; a stop may come before or after it
        verdict = "unknown" if status in (201, 409) else \
            self.verdict(status, headers, body)
        answer = json.loads(body) if body.startswith("{") else {}
        count = answer.get("count", 0)
        if status == 201 and count != len(events):
            books.fault(f"201 for {count} of {events}")
        for data in events[:count]:
            books.acknowledge_data(topic, data)
        for data in events[count:count + 1]:
            self.failed(data, verdict)
        # a balancer does not know how far it came
        for data in events[count + 1:]:
            self.failed(data, "refused" if "count" in answer else verdict)

    def verdict(self, status, headers, body):
        """What a 503 says, or a balancer; whatever else is a fault."""
        if status == 503 and "outcome" in body:
            answer = json.loads(body)
            if answer["outcome"] == "unknown" and answer["error"]:
                return "unknown"
        elif status == 503 and headers.get("retry-after", "").isdecimal():
            return "refused"
        elif status in (502, 504) and self.crowd.balanced:
            return "unknown"
        self.crowd.books.fault(f"{self.name}: {status} {headers} {body!r}")
        return "unknown"

    def failed(self, data, verdict):
        self.crowd.told[verdict] += 1
        if data and verdict == "refused":
            self.crowd.books.refused.add(data)


class Crowd:
    def __init__(self, test, ports, subscribers, publishers, topics=6,
                 hops="half", streams=False, pause=0.01, publish_ports=None,
                 balanced=False):
        """hops: "all" subscribers, "half" of them, or "none"; pause: seconds
        between two events of a publisher; balanced: the nodes are behind a
        balancer, which has answers of its own."""
        self.random = random.Random(test.random.random())
        self.ports = ports
        self.publish_ports = publish_ports or ports
        self.pause = pause
        self.streams = streams
        self.balanced = balanced
        self.books = Books()
        self.told = Counter()
        # the last one is the main stream
        self.published_topics = [f"topic/{n}" for n in range(topics)] + [""]
        self.reading_over = self.publishing_over = False
        self.subscribers = [self.subscriber(n, subscribers, hops)
                            for n in range(subscribers)]
        self.publishers = [Publisher(self, f"p{n}")
                           for n in range(publishers)]
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        self.reads = self.send(subscriber.run()
                               for subscriber in self.subscribers)
        wait(lambda: all(subscriber.first is not None
                         for subscriber in self.subscribers),
             "all subscribers have a position")
        self.writes = self.send(publisher.run()
                                for publisher in self.publishers)

    def subscriber(self, n, of, hops):
        chosen = [""] if n % 10 == 9 else self.random.sample(
            self.published_topics[:-1], self.random.choice([1, 1, 2, 3]))
        stays = hops == "none" or hops == "half" and n < of / 2
        home = self.ports[n % len(self.ports)] if stays else None
        return Subscriber(self, f"s{n}", chosen, home)

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def send(self, coroutines):
        return [asyncio.run_coroutine_threadsafe(coroutine, self.loop)
                for coroutine in coroutines]

    @property
    def staying(self):
        """Those whose streams only the server ends."""
        return [subscriber for subscriber in self.subscribers
                if subscriber.home]

    # ------------------------------------------------------------- waiting

    def wait_acknowledged(self, count, seconds=SECONDS):
        """So many more."""
        count += len(self.books.acknowledged)
        wait(lambda: len(self.books.acknowledged) >= count,
             "events are acknowledged", seconds)

    def wait_told(self, what, count=1, seconds=SECONDS):
        """So many more publishers were "refused", or told "unknown"."""
        count += self.told[what]
        wait(lambda: self.told[what] >= count, f"publishers are told: {what}",
             seconds)

    def wait_beats(self, count=1):
        """So many heartbeats more for each stream that is open."""
        beats = {subscriber: subscriber.beats for subscriber in self.staying
                 if subscriber.connected}
        wait(lambda: all(subscriber.beats >= n + count or
                         not subscriber.connected
                         for subscriber, n in beats.items()),
             "all streams have heartbeats")

    def wait_gaps(self, subscribers=None):
        """Each is told of a gap that it has not been told of yet."""
        gaps = {subscriber: len(subscriber.gaps)
                for subscriber in subscribers or self.subscribers}
        return lambda: wait(lambda: all(len(subscriber.gaps) > n
                                        for subscriber, n in gaps.items()),
                            "all are told of a gap")

    def open_streams(self):
        """Of those that stay: how often their streams were ended."""
        return [subscriber.ended for subscriber in self.staying]

    # -------------------------------------------------------------- the end

    def stop_publishing(self):
        self.publishing_over = True
        for write in self.writes:
            write.result(PATIENCE + SECONDS)

    def caught_up(self):
        newest = {}
        for id_, (topic, _) in list(self.books.names.items()):
            newest[topic] = max(newest.get(topic, 0), id_)
        return all(subscriber.position >=
                   max(newest.get(topic, 0) for topic in subscriber.topics)
                   for subscriber in self.subscribers)

    def settle(self, gaps="none", dump=None):
        """The end; gaps: how many subscribers were told of one: "none", "all"
        or "any"; dump: what is in the log, where it has lost nothing."""
        self.stop_publishing()
        try:
            wait(self.caught_up, "all subscribers have all events")
        except AssertionError as error:
            behind = [(s.name, s.topics, s.position, s.places[-2:], s.statuses)
                      for s in self.subscribers][:5]
            self.books.fault(f"{error} {behind}")
        self.close()
        books = self.books
        if dump:
            entries = dump()
            books.take_dump(entries)
            books.check_dump(entries)
        faults = books.settle(self.subscribers)
        told = [subscriber.name for subscriber in self.subscribers
                if subscriber.gaps]
        if gaps == "none" and told:
            faults.append(f"told of a gap without reason: {told}")
        if gaps == "all" and len(told) < len(self.subscribers):
            faults.append(f"only these were told of a gap: {told}")
        print(f"    {self.figures()}", flush=True)
        if faults:
            raise AssertionError(f"{len(faults)} faults, such as\n" +
                                 "\n".join(map(str, faults[:8])))

    def figures(self):
        books = self.books
        statuses = sum((s.statuses for s in self.subscribers), Counter())
        return (f"{len(books.acknowledged) + len(books.without_id)} "
                f"acknowledged, {self.told['refused']} refused, "
                f"{self.told['unknown']} unknown; "
                f"{sum(len(s.seen) for s in self.subscribers)} received, "
                f"{sum(len(s.places) for s in self.subscribers)} streams, "
                f"{sum(len(s.gaps) for s in self.subscribers)} gaps told, "
                f"{dict(statuses)}")

    def close(self):
        if not self.loop.is_running():
            return
        self.reading_over = self.publishing_over = True
        for task in self.reads + self.writes:
            task.result(PATIENCE + SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
