"""nginx, HAProxy and Caddy with the configurations of README.md."""

import json
import os
import signal
import socket
import sys
import threading
import time

import harness
from harness import TOKEN, Browser, KeptServer, Lines, ProxyTest
from shared import LEEWAY, SECONDS, free_port, sign, wait

SECRET = "a secret that is long enough to be one"


class Common:
    kind = None  # the class of the proxy

    def start(self, *options, changes=None, rights=None):
        """A server, and the proxy before it."""
        self.start_server(*options, rights=rights)
        self.start_proxy(self.kind, changes)

    def test_events_arrive_at_once(self):
        """Each before the next one is published, however small it is, for a
        client that would like compression best."""
        self.start()
        for version in ("--http1.1", "--http2"):
            with self.subTest(version):
                curl = Lines(self.proxy.curl(
                    version, "-i", "-H", "Accept-Encoding: gzip, br, zstd",
                    "/events/x", text=True),
                    ("HTTP", "content-enc", "id", "data"))
                self.addCleanup(curl.end)
                wait(lambda: len(curl.lines) >= 2, "the stream begins")
                self.assertIn(version.replace("--http", "HTTP/"), curl.lines[0])
                for _ in range(10):
                    data = f"data: {self.publish()}"
                    wait(lambda: data in curl.lines, f"{data} arrives", 1)
                self.assertNotIn("content-enc", "".join(curl.lines).lower())

    def test_resume(self):
        self.start()
        ids = []
        for n in range(6):
            status, text = self.server.request(
                "POST", "/events/x", str(n).encode(), self.bearer(TOKEN))
            ids.append(json.loads(text)["id"])
        browser = Browser(self.proxy)
        for path, header in (("/events/x", {"last-event-id": ids[2]}),
                             (f"/events/x?lastEventId={ids[2]}", {}),
                             ("/events/x?last=3", {}),
                             ("/events?topic=x&topic=chat%2F42&last=3", {})):
            with self.subTest(path):
                reader = browser.open(path, **header)
                wait(lambda: reader.data == ["3", "4", "5"], "what was missed")
                self.assertIn("last-event-id", reader.headers)
                self.assertNotIn("ssed.gap", reader.events)
        reader = browser.open("/events/x", **{"last-event-id": "1"})
        wait(lambda: reader.data == list("012345"), "all that is held")
        self.assertEqual(reader.events, ["ssed.gap"])

    def test_publish_with_the_token(self):
        self.start()
        self.check_publishing(
            (401, {}), (401, self.bearer("another")), (201, self.bearer(TOKEN)))
        origin = f"https://localhost:{self.proxy.port}"
        for status, value in ((201, origin), (403, "https://localhost"),
                              (403, "https://other.example")):
            headers = {**self.bearer(TOKEN), "Origin": value}
            self.check_publishing((status, headers))

    def test_publish_with_signed_tokens(self):
        self.start(rights=["--secret-file", self.secret("secret", SECRET),
                           "--public", "news"])

        def token(**claims):
            return sign(SECRET, {"exp": 60, **claims})

        good = token(read=["x"], write=["x"])
        self.check_publishing(
            (401, {}), (401, self.bearer("a.b.c")),
            (403, self.bearer(token(read=["x"]))), (201, self.bearer(good)),
            (201, {"Cookie": f"ssed_token={good}"}))
        browser = Browser(self.proxy)
        for status, topic, headers in (
                (401, "x", {}), (403, "y", self.bearer(good)),
                (200, "x", self.bearer(good)), (200, "news", {}),
                (200, "x", {"cookie": f"a=b; ssed_token={good}"}),
                (200, f"x?token={good}", {})):
            reader = browser.open(f"/events/{topic}", **headers)
            wait(lambda: reader.statuses, "an answer")
            self.assertEqual(reader.statuses, [status])
        short = token(exp=1 - LEEWAY, read=["x"])
        reader = browser.open("/events/x", **self.bearer(short))
        wait(lambda: reader.gave_up == 401, "the token expires")
        self.assertEqual(reader.events, ["ssed.expired"])

    def test_who_comes_through_it_is_not_local(self):
        self.start(rights=[])
        status, text = self.check_publishing((403, {}))
        self.assertIn("proxy", text)
        status, text = self.server.request("POST", "/events/x", b"here")
        self.assertEqual(status, 201, text)

    def test_publish_through_the_unix_socket_alone(self):
        path = os.path.join(self.folder, "socket")
        self.start("--publish", "unix", "--listen", f"unix:{path}", "--listen",
                   f"127.0.0.1:{free_port()}", rights=[])
        self.check_publishing((403, {}))
        with socket.socket(socket.AF_UNIX) as back_end:
            back_end.connect(path)
            back_end.sendall(b"POST /events/x HTTP/1.1\r\nHost: x\r\n"
                             b"Content-Length: 1\r\n\r\n1")
            self.assertIn(b" 201 ", back_end.recv(65536))

    def check_publishing(self, *cases):
        for expected, headers in cases:
            status, _, text = self.proxy.request("POST", "/events/x", b"1",
                                                 headers)
            self.assertEqual(status, expected, (headers, text))
        return status, text

    def test_streamed_publish(self):
        """Each event goes out before the next one is sent. The second publish
        is ended by a DELETE."""
        self.start()
        browser = Browser(self.proxy)
        reader = browser.open("/events/x")
        wait(reader.is_open, "the stream begins")
        for version in ("--http1.1", "--http2"):
            with self.subTest(version):
                curl = self.stream(version)
                for _ in range(5):
                    self.send(curl, reader)
                answer, _ = curl.communicate(timeout=SECONDS)
                self.assertIn(b'"count":5', answer)
                self.assertTrue(answer.endswith(b" 201"), answer)
        curl = self.stream("--http2", topic="long")
        answer, _ = curl.communicate(b"data: %d\n\n" % 10**1000 * 3000)
        self.assertIn(b'"count":3000', answer)
        for version in ("--http1.1", "--http2"):
            with self.subTest(version):
                topic = f"stopped{version}"
                reader = browser.open(f"/events/{topic}")
                curl = self.stream(version, topic=topic)
                self.send(curl, reader)
                status, _, _ = self.proxy.request(
                    "DELETE", f"/events/{topic}", None, self.bearer(TOKEN))
                self.assertEqual(status, 200)
                answer = self.stopped(curl)
                self.assertIn(b"has been finished", answer)
                self.assertTrue(answer.endswith(b" 409"), answer)

    def test_a_hundred_streams_on_one_connection(self):
        self.start()
        browser = Browser(self.proxy)
        readers = [browser.open(f"/events?topic=x&topic=own/{n}")
                   for n in range(100)]
        wait(lambda: all(reader.is_open() for reader in readers),
             "all streams are open")
        for n in range(20):
            self.publish()
        for n in range(100):
            self.publish(f"own/{n}", f"for {n}")
        for n, reader in enumerate(readers):
            expected = [*map(str, range(20)), f"for {n}"]
            wait(lambda: reader.data == expected, f"{n} gets what is its own")
            self.assertEqual(reader.statuses, [200])
        self.assertEqual(browser.connections, 1)

    def check_readers(self, readers, first=0):
        """They got every event since then, once and in order, and none gave
        up or was told of a gap."""
        for reader in readers:
            wait(lambda: len(reader.data) >= self.published - first,
                 f"all has come to {reader.name}")
            self.assertEqual(reader.data, self.numbers(first))
            self.assertEqual(reader.events, [])
            self.assertIsNone(reader.gave_up)

    def publish_while(self, going_on):
        deadline = time.monotonic() + SECONDS
        while going_on():
            self.assertLess(time.monotonic(), deadline, "it goes on for ever")
            self.publish()
            time.sleep(0.01)

    def test_proxy_restarted(self):
        self.start()
        readers = self.open_readers()
        self.publish()
        self.proxy.kill()
        self.publish_while(lambda: not all(reader.ends for reader in readers))
        self.proxy.start()
        self.publish_while(
            lambda: not all(reader.is_open() for reader in readers))
        self.publish()
        self.check_readers(readers)

    def reload(self):
        """What is open goes on."""
        self.start(changes=self.kind.grace)
        readers = self.open_readers()
        self.publish()
        self.proxy.reload()
        published = self.published + 10
        self.publish_while(lambda: self.published < published)
        wait(lambda: all(len(reader.data) == published for reader in readers),
             "what is open goes on")
        self.assertFalse(any(reader.ends for reader in readers))
        return readers

    def test_ssed_restarted(self):
        """In an orderly way or not: for as long as it is away readers are
        told to come back, and publishers that it is away."""
        self.start(*self.keep(), "--sync", "none",
                   changes=getattr(self.kind, "impatient", None))
        readers = self.open_readers()
        self.publish()
        for end in (self.server.kill, self.server.stop):
            for reader in readers:
                reader.forget()
            end()
            wait(lambda: all(reader.ends > 1 for reader in readers),
                 "they have come back while it is away")
            status, _, _ = self.proxy.request("POST", "/events/x", b"1",
                                              self.bearer(TOKEN))
            self.assertIn(status, (502, 503))
            self.server.run()
            wait(lambda: all(reader.is_open() for reader in readers),
                 "they are back")
            for reader in readers:
                self.assertEqual(set(reader.statuses), {200})
            self.publish()
        self.check_readers(readers)

    def publisher(self, number):
        """It publishes in a thread; its answer comes into a list."""
        answer = []
        thread = threading.Thread(target=lambda: answer.extend(
            self.proxy.request("POST", "/events/x", str(number).encode(),
                               self.bearer(TOKEN))))
        thread.start()
        return thread, answer

    def pause(self, seconds):
        begun = time.monotonic()
        wait(lambda: time.monotonic() > begun + seconds, "the time goes by")

    def test_what_a_reader_gets_without_that(self):
        """It gives up, as an EventSource would."""
        self.start(changes=self.kind.unhelped)
        readers = self.open_readers(1)
        self.server.kill()
        wait(lambda: readers[0].gave_up in (502, 503), "it gives up")

    def test_ssed_replaced_with_its_socket_kept(self):
        """As by systemd: nobody is told anything."""
        self.start(*self.keep())
        self.server.stop()
        with socket.create_server(("127.0.0.1", self.server.port)) as listener:
            self.server = KeptServer(listener, *self.server.options)
            readers = self.open_readers()
            for _ in range(2):
                for reader in readers:
                    reader.forget()
                self.server.stop()
                publisher, answer = self.publisher(self.published)
                self.published += 1
                wait(lambda: self.is_waiting(listener), "somebody waits")
                self.server.run()
                publisher.join()
                self.assertEqual(answer[0], 201)
                self.check_readers(readers)
                for reader in readers:
                    self.assertEqual(reader.statuses, [200])

    def is_waiting(self, listener):
        """A connection is there that nobody has accepted."""
        info = listener.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 256)
        return int.from_bytes(info[24:28], sys.byteorder)  # tcpi_unacked

    def test_a_closed_tab(self):
        self.start()
        readers = self.open_readers(3)
        self.assertEqual(self.subscribers(), 3)
        readers[0].act("close")
        wait(lambda: self.subscribers() == 2, "a stream is closed", 5)
        readers[0].browser.kill()
        wait(lambda: self.subscribers() == 0, "their connection is closed", 5)
        curl = Lines(self.proxy.curl("--http1.1", "/events/x", text=True),
                     "id")
        wait(lambda: curl.lines, "the stream begins")
        self.assertEqual(self.subscribers(), 1)
        curl.end()
        # without an event, or a heartbeat, that cannot be sent any more
        wait(lambda: len(self.logged("event=unsubscribed")) == 4,
             "HTTP/1.1 as well", 5)

    def test_a_reader_that_does_not_read(self):
        """The proxy keeps little for it; ssed notices, and cuts it off where
        the history has overtaken it. Another on its connection goes on."""
        self.start("--history-bytes", "4M", "--history", "1000")
        slow, quick = self.open_readers(2)
        self.publish()
        wait(lambda: slow.data and quick.data, "both read")
        before = self.proxy.memory()
        slow.act("pause")
        data = "x" * 60000
        for n in range(600):
            self.publish(data=f"{n} {data}")
            if n % 20 == 19:
                wait(lambda: len(quick.data) == n + 2, "the other gets all")
        wait(lambda: self.logged("reason=overrun"), "it is cut off")
        self.assertLess(self.proxy.memory() - before, 10 << 20)
        self.assertEqual(quick.ends, 0)
        slow.act("resume")
        wait(lambda: slow.events == ["ssed.gap"], "it is told of the gap")
        wait(lambda: slow.data[-1] == quick.data[-1], "it goes on")

    def test_no_room(self):
        """ssed's own answers pass as they are."""
        self.start("--max-connections", "1")
        reader, = self.open_readers(1)
        status, headers, _ = self.proxy.request("POST", "/events/x", b"1",
                                                self.bearer(TOKEN))
        self.assertEqual((status, headers["Retry-After"]), (503, "2"))
        late = reader.browser.open("/events/x")
        wait(lambda: len(late.statuses) > 1, "it comes back")
        self.assertEqual(set(late.statuses), {200})
        reader.act("close")
        wait(late.is_open, "there is room")


class TimeOuts:
    """What has time-outs, and forwards without saying so if it is not told."""

    def test_reloaded(self):
        """When the time of grace is over, what was open goes on behind the new
        configuration."""
        readers = self.reload()
        self.publish_while(lambda: not all(
            reader.ends and reader.is_open() for reader in readers))
        self.check_readers(readers)

    def test_heartbeats_keep_a_stream(self):
        """Without them the proxy ends it, and it comes back."""
        self.start("--heartbeat", "1", changes=self.kind.silent)
        reader, = self.open_readers(1)
        wait(lambda: len(reader.blocks) >= 5, "silence for twice as long")
        self.assertEqual(reader.ends, 0)
        self.server.restart(*self.server.options, "--heartbeat", "0")
        wait(lambda: reader.ends and reader.is_open(), "it is back")
        ends = reader.ends
        wait(lambda: reader.ends > ends and reader.is_open(),
             "the proxy ends it, and it is back")

    def test_ssed_hangs(self):
        """Its readers, and one that comes meanwhile, are told to come back."""
        self.start("--heartbeat", "1", changes=self.kind.silent)
        readers = self.open_readers(2)
        self.publish()
        wait(lambda: all(reader.data for reader in readers), "both read")
        self.server.process.send_signal(signal.SIGSTOP)
        late = readers[0].browser.open("/events/x?lastEventId=earliest")
        readers.append(late)
        wait(lambda: all(reader.ends > 1 for reader in readers),
             "they have come back")
        self.server.process.send_signal(signal.SIGCONT)
        wait(lambda: all(reader.is_open() for reader in readers),
             "all streams are open")
        self.publish()
        self.check_readers(readers)
        for reader in readers:
            self.assertEqual(set(reader.statuses), {200})

    def test_a_streamed_publish_may_pause(self):
        self.start(changes=self.kind.silent)
        reader, = self.open_readers(1)
        curls = [self.stream(version) for version in ("--http1.1", "--http2")]
        for curl in curls:
            self.send(curl, reader)
        self.pause(3)
        for curl in curls:
            self.send(curl, reader)
            answer, _ = curl.communicate(timeout=SECONDS)
            self.assertTrue(answer.endswith(b" 201"), answer)

    def test_but_not_for_ever(self):
        self.start(changes=self.kind.pause)
        reader, = self.open_readers(1)
        curl = self.stream("--http1.1")
        self.send(curl, reader)
        self.pause(2)
        self.assertNotIn(b'"count"', self.stopped(curl))

    def test_one_that_does_not_say_that_it_forwards(self):
        """Its clients are taken for local ones, unless something better says
        who may publish."""
        for rights, status in (
                ([], 201), (["--publish", "unix"], 403),
                (["--token-file", self.secret("token", TOKEN)], 401)):
            self.start(changes=self.kind.anonymous, rights=rights)
            self.check_publishing((status, {}))


class Nginx(Common, TimeOuts, ProxyTest):
    kind = harness.Nginx


class HAProxy(Common, TimeOuts, ProxyTest):
    kind = harness.HAProxy

    def test_a_drain_is_noticed(self):
        """From /healthz; what is open goes on meanwhile."""
        self.start("--drain-delay", "10")
        reader, = self.open_readers(1)
        self.server.process.terminate()
        wait(lambda: self.proxy.request("POST", "/events/x")[0] == 503,
             "nothing new is led to it", 10)
        self.publish()
        self.check_readers([reader])
        self.assertEqual(reader.ends, 0)

    def test_requests_wait_for_ssed(self):
        """One that comes while it is started again is not refused."""
        self.start()
        for _ in range(2):
            self.server.kill()
            publisher, answer = self.publisher(0)
            self.pause(0.5)
            self.assertEqual(answer, [])
            self.server.run()
            publisher.join()
            self.assertEqual(answer[0], 201)


class Caddy(Common, ProxyTest):
    kind = harness.Caddy

    def test_reloaded(self):
        """What was open goes on for as long as it lasts; a new stream has the
        new configuration."""
        readers = self.reload()
        first = self.published
        late = self.open_readers(2)
        self.publish()
        self.check_readers(readers)
        self.check_readers(late, first)

    def test_ended(self):
        """The time of grace is what it waits for its readers."""
        self.start(changes=self.kind.grace)
        readers = self.open_readers(2)
        self.proxy.process.terminate()
        self.proxy.process.wait(5)
        wait(lambda: all(reader.ends for reader in readers), "they are cut off")

    def test_readers_wait_for_ssed(self):
        """One that comes while it is started again is not told to come back.
        Publishers are refused: Caddy sends no body twice."""
        self.start()
        self.server.kill()
        reader = Browser(self.proxy).open("/events/x")
        self.pause(0.5)
        self.assertEqual(reader.statuses, [])
        self.server.run()
        wait(reader.is_open, "it is answered")
        self.assertEqual(reader.statuses, [200])
