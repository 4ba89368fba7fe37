"""The server's state, status.html, on the listener of --admin."""

import http.client
import re
import signal
import socket

from harness import PageTest


class Status(PageTest):
    def begin(self, *options, **view):
        self.start("--interval", "0", "--admin", "127.0.0.1:0", *options)
        self.admin = self.server.admin_port
        self.open(f"http://127.0.0.1:{self.admin}/", **view)
        self.wait_for_state("well")

    def subscribe(self, path, size=0):
        """A subscriber that reads nothing."""
        peer = socket.socket()
        self.addCleanup(peer.close)
        if size:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        peer.connect(("127.0.0.1", self.server.port))
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return peer

    def ask(self, path, port, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path)
        status = connection.getresponse().status
        connection.close()
        return status

    # --------------------------------------------------- what is on the page

    def state(self):
        return self.find("#state").get_attribute("data-state")

    def wait_for_state(self, state):
        self.wait(lambda: self.state() == state, f"the state is {state}")

    def findings(self):
        return self.text("#findings")

    def wait_for_finding(self, text):
        self.wait(lambda: text in self.findings(), f"“{text}” is told")

    def card(self, key):
        return self.text(f"#card-{key} .value")

    def wait_for_card(self, key, text):
        self.wait(lambda: self.card(key) == text, f"{key} is {text}")

    def rows(self, key):
        return self.script("""
            return [...document.querySelectorAll(`#table-${arguments[0]} tbody tr`)]
              .map((row) => [...row.cells].map((cell) => cell.textContent))""",
            key)

    def line(self, name):
        """Where the line of a chart goes: [[x, y], …]."""
        path = self.script("""
            const i = CHARTS.findIndex(({ name }) => name === arguments[0]);
            return charts[i].nodes.line.getAttribute("d")""", name) or ""
        return [[float(number) for number in pair.split()]
                for pair in re.split("[ML]", path) if pair]

    def points(self):
        """How many events have come."""
        return self.script("return points.length")

    # ------------------------------------------------------------------ tests

    def test_numbers_change(self):
        self.begin()
        self.wait_for_card("subscribers", "0")
        peers = [self.subscribe("/events/chat/42") for _ in range(3)]
        self.subscribe("/events")
        self.wait_for_card("subscribers", "4")
        self.assertEqual(self.rows("mostSubscribers"),
                         [["chat/42", "3", "0"], ["(main stream)", "1", "0"]])
        for n in range(5):
            self.publish("chat/42", f"text {n}")
        self.wait(lambda: "5 since" in self.text("#card-eventsIn .faint"),
                  "five events in")
        self.wait(lambda: "events: 5," in self.text("#card-ring .faint"),
                  "five events held")
        self.assertEqual(self.publish("chat/42", b"\xff")[0], 400)
        self.wait_for_card("refused", "1")
        self.assertEqual(self.rows("refused"), [["400", "1", "1"]])
        for peer in peers:
            peer.close()
        self.wait_for_card("subscribers", "1")
        self.wait(lambda: ["closed", "3", "3"] in self.rows("ended"),
                  "three have gone")
        self.assertEqual(self.state(), "well")

    def test_a_gap_is_told(self):
        self.begin("--history", "2")
        for n in range(4):
            self.publish("", f"text {n}")
        self.subscribe("/events?lastEventId=1")
        self.wait_for_finding("Gaps told in the last minute: 1")
        self.wait_for_state("look")
        self.wait_for_card("gaps", "1")
        self.assertIn("warned",
                      self.find("#card-gaps").get_attribute("class"))

    def test_charts_are_drawn(self):
        self.begin()
        self.subscribe("/events")
        self.wait_for_card("subscribers", "1")
        seen = self.points()
        for n in range(20):
            self.publish("", f"text {n}")
        self.wait(lambda: self.points() > seen + 4, "some seconds")
        ins, subscribers = self.line("eventsIn"), self.line("subscribers")
        # on the base line, up, and down again
        self.assertEqual(ins[-1][1], 59)
        self.assertEqual(min(y for _, y in ins), 3)
        self.assertEqual(subscribers[0][1], 59)
        self.assertEqual(subscribers[-1], [300, 3])
        xs = [x for x, _ in subscribers]
        self.assertEqual(xs, sorted(xs))
        for name in ("memory", "turn"):
            self.assertGreater(len(self.line(name)), 3, name)
        label = self.find("#charts svg").get_attribute("aria-label")
        self.assertEqual(label, "Subscribers: 1 now, 1 at most")

    def test_cut_for_lag(self):
        self.begin("--history", "20", "--history-bytes", "4M")
        slow = self.subscribe("/events/big", size=4096)
        self.wait_for_card("subscribers", "1")
        text = "x" * 60000
        for n in range(40):
            self.publish("big", text)
        self.wait_for_finding("Subscribers cut for lag in the last minute: 1")
        self.wait_for_state("look")
        self.wait_for_card("overrun", "1")
        self.wait(lambda: ["overrun", "1", "1"] in self.rows("ended"), "a row")
        self.assertIn("M", self.script(
            "return document.querySelector('#charts .cuts[d*=M]')"
            ".getAttribute('d')"))
        self.shot("status-cut")
        slow.close()

    def test_lag_is_seen(self):
        self.begin()
        self.subscribe("/events/slow", size=4096)
        self.wait_for_card("subscribers", "1")
        for n in range(40):
            self.publish("slow", "x" * 60000)
        self.wait(lambda: self.rows("mostLag")[0][0] == "slow", "it lags")
        self.assertGreater(int(self.rows("mostLag")[0][2]), 1)
        self.wait(lambda: self.card("lag") not in ("0 µs", "–"), "for a time")
        self.assertEqual(self.state(), "well")

    def test_the_server_goes_and_comes(self):
        self.allow_outage()
        self.begin()
        self.publish("", "text")
        self.wait(lambda: "1 since" in self.text("#card-eventsIn .faint"),
                  "one event in")
        seen = self.points()
        self.server.kill()
        self.wait_for_state("lost")
        self.assertIn("No contact since", self.text("#state"))
        self.check_fits()
        self.shot("status-lost")
        options = [option.replace("127.0.0.1:0", f"127.0.0.1:{self.admin}")
                   for option in self.server.options]
        self.server.options = options
        self.server.run()
        self.wait_for_state("well")
        self.wait_for_finding("started anew")
        self.assertIn("0 since", self.text("#card-eventsIn .faint"))
        # what was before is still on the charts, and there is a hole
        self.assertGreater(self.points(), seen)
        path = self.script("return charts[0].nodes.line.getAttribute('d')")
        self.assertEqual(path.count("M"), 2)

    def test_drain(self):
        self.allow_outage()
        self.begin("--drain-delay", "5")
        self.server.process.send_signal(signal.SIGTERM)
        self.wait_for_finding("about to drain")
        self.assertEqual(self.state(), "look")
        self.wait_for_state("lost")
        self.server.stop()

    def test_too_many(self):
        self.allow_console("503")
        self.begin()
        others = [self.stream() for _ in range(15)]
        self.tab()
        self.open(f"http://127.0.0.1:{self.admin}/")
        self.wait_for_state("full")
        others[0].close()
        self.wait_for_state("well")

    def stream(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin)
        self.addCleanup(connection.close)
        connection.request("GET", "/status")
        self.assertEqual(connection.getresponse().status, 200)
        return connection

    def test_a_page_that_is_left_reads_no_more(self):
        self.begin()
        others = [self.stream() for _ in range(15)]
        self.assertEqual(self.ask("/status", self.admin, "HEAD"), 503)
        self.driver.get("about:blank")
        self.wait(lambda: self.ask("/status", self.admin, "HEAD") == 200,
                  "its place is free")
        self.driver.back()
        self.wait(lambda: self.ask("/status", self.admin, "HEAD") == 503,
                  "it reads again")
        self.wait_for_state("well")
        for one in others:
            one.close()

    def test_it_is_for_the_admin_listener(self):
        self.begin()
        for path in ("/status.html", "/status.js", "/status", "/metrics"):
            self.assertEqual(self.ask(path, self.server.port), 404, path)
        for path in ("/index.html", "/ssed.js", "/events"):
            self.assertEqual(self.ask(path, self.admin), 404, path)
        self.assertEqual(self.script(
            "return [...document.querySelectorAll('.bar a')]"
            ".map((link) => link.getAttribute('href'))"),
            ["./", "metrics", "topics"])
        self.assertEqual(self.text(".bar [aria-current=page]"), "Status")
        for path in ("/metrics", "/topics", "/status.html"):
            self.assertEqual(self.ask(path, self.admin), 200, path)

    def test_a_long_topic_fits(self):
        name = "a" * 250 + "~:@-."
        self.begin()
        self.subscribe(f"/events/{name}")
        self.wait(lambda: self.rows("mostSubscribers")[0][0] == name, "a row")
        self.look(360)
        self.check_fits()

    def test_keyboard(self):
        self.begin()
        self.wait(lambda: self.points() > 4, "some seconds")
        for _ in range(10):
            if self.script("return document.activeElement.id") == "charts":
                break
            self.press("Tab")
        hint = self.text("#charts-hint")
        self.press("Arrow_Left", "Arrow_Left")
        self.wait(lambda: "Escape leads back" in self.text("#charts-hint"),
                  "an earlier moment")
        self.assertTrue(self.find("#charts .cursor").get_attribute("d"))
        self.press("Escape")
        self.assertEqual(self.text("#charts-hint"), hint)
        self.assertFalse(self.find("#charts .cursor").get_attribute("d"))

    def test_matrix(self):
        self.begin("--history", "3")
        for n in range(6):
            self.publish("chat/42", f"text {n}")
        for path in ("/events/chat/42?lastEventId=1", "/events/chat/43",
                     "/events/jobs/eu-west/render/frame-000123", "/events"):
            self.subscribe(path)
        self.publish("chat/42", b"\xff")
        self.wait_for_card("refused", "1")
        self.wait(lambda: self.points() > 5, "some seconds")
        self.matrix("status")
        for language in ("en", "zh"):
            self.look(360)
            self.speak(language)
            self.shot(f"status-360-{language}")
            self.check_fits()
