"""A picture in the making, progress.html."""

import base64
import json
import re
import socket
import struct

from harness import PageTest

STEPS = 16
MARKUP = "<img src=x onerror=\"document.title = 'run'\">"
OUTAGE = ("--retry", "100", "--drain-spread", "100", "--interval", "0")
# the smallest PNG there is, one point
PNG = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAA"
       "C0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


class Progress(PageTest):
    def begin(self, *options, start=True):
        self.start(*OUTAGE, *options)
        self.open("progress.html")
        if start:
            self.click("#start-btn")

    # --------------------------------------------------- what is on the page

    def state(self, who="reader"):
        return self.find(f"#{who} .state").get_attribute("data-state")

    def wait_for_state(self, state, who="reader"):
        self.wait(lambda: self.state(who) == state, f"the {who} is {state}")

    def step(self, who="reader"):
        return self.script("return document.querySelector(arguments[0]).value",
                           f"#{who} progress")

    def wait_for_step(self, step, who="reader"):
        self.wait(lambda: self.step(who) >= step, f"the {who} is at {step}")

    def ways(self, who="reader"):
        return self.script("""
            return [...document.querySelectorAll(arguments[0])]
              .map((mark) => mark.className)""", f"#{who} .steps li")

    def image(self, who="reader"):
        """Its address and width, where it is one that the browser shows."""
        return self.script("""
            const image = document.querySelector(arguments[0]);
            return [image.getAttribute("src"), image.naturalWidth]""",
                           f"#{who} img")

    def topic(self):
        return re.search(r"\?topic=(.*)", self.driver.current_url)[1]

    def published(self):
        """All events of the topic, as the server holds them."""
        _, text = self.server.request(
            "GET", f"/events/{self.topic()}?lastEventId=earliest")
        return re.findall(r"^event: progress\ndata: (.*)$", text, re.M)

    # ------------------------------------------------------------------ tests

    def test_late_and_cut(self):
        self.begin()
        self.wait_for_step(4)
        self.click("#cut-btn")
        self.wait_for_state("cutOff")
        at_cut = self.step()
        self.click("#join-btn")
        self.wait_for_step(1, "late")
        self.assertGreaterEqual(self.step("late"), at_cut)
        self.assertIn("before", self.ways("late"))
        self.wait_for_state("live")
        self.wait_for_state("done")
        self.wait_for_state("done", "late")
        ways = self.ways()
        self.assertEqual(len(ways), STEPS)
        self.assertEqual(set(ways), {"live", "caught"}, "every step has come")
        self.assertEqual(set(ways[:at_cut]), {"live"})
        self.assertGreaterEqual(ways.count("caught"), 3)
        self.assertEqual(self.image(), self.image("late"))
        self.check_published()
        # who comes when it is finished gets it too
        self.click("#join-btn")
        self.wait_for_state("done", "late")
        self.assertEqual(self.ways("late"), ["before"] * 15 + ["live"])
        self.assertEqual(self.image(), self.image("late"))

    def check_published(self):
        sizes = []
        for number, data in enumerate(self.published(), 1):
            self.assertLess(len(data), 64 << 10)
            event = json.loads(data)
            self.assertEqual([event["step"], event["total"]], [number, STEPS])
            png = base64.b64decode(event["image"].split(",")[1], validate=True)
            sizes.append(struct.unpack(">I", png[16:20])[0])
        self.assertEqual(len(sizes), STEPS)
        self.assertEqual(sizes, sorted(sizes), "it sharpens")
        self.assertEqual((sizes[0], sizes[-1]), (8, 256))
        self.assertEqual(self.image(), [event["image"], 256])

    def test_another_tab_and_stop(self):
        self.begin()
        self.wait_for_step(2)
        address = self.find("#tab-link").get_attribute("href")
        self.tab()
        self.open(address)
        self.wait_for_step(2)
        self.switch(0)
        self.click("#stop-btn")
        self.wait_for_state("stopped")
        self.wait(lambda: "Stopped after" in self.text("#publisher-status"),
                  "the publisher says so")
        step = self.step()
        self.assertLess(step, STEPS)
        self.switch(1)
        self.wait_for_state("stopped")
        self.assertEqual(self.step(), step)
        # finished it stays, also for one who comes later
        self.reload()
        self.wait_for_state("stopped")
        self.assertEqual(self.step(), step)
        # a new picture is a topic of its own
        self.switch(0)
        old = self.topic()
        self.click("#start-btn")
        self.wait_for_step(1)
        self.assertNotEqual(self.topic(), old)
        self.assertEqual(self.ways()[0], "live")

    def test_the_publisher_goes_away(self):
        self.begin()
        self.wait_for_step(2)
        self.reload()
        self.wait_for_state("stopped")
        self.assertGreaterEqual(self.step(), 2)
        self.assertLess(self.step(), STEPS)
        self.assertEqual(self.find("#reader .note").is_displayed(), False)

    def test_the_upload_breaks_off(self):
        """A publisher that promised an end and broke off: not done."""
        self.begin(start=False)
        self.open("progress.html?topic=demo/broken")
        self.wait_for_state("live")
        step = json.dumps({"step": 1, "total": 1, "image": PNG})
        block = f"event: progress\ndata: {step}\n\n".encode()
        head = (b"POST /events/demo/broken?end=1 HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: text/event-stream\r\nContent-Length: 9999\r\n"
                b"\r\n")
        with socket.create_connection(("127.0.0.1", self.server.port)) as upload:
            upload.sendall(head + block)
            self.wait_for_step(1)
        self.wait_for_state("stopped")

    def test_killed_with_a_history_file(self):
        self.allow_outage()
        self.begin("--history-file", f"{self.folder}/history")
        self.wait_for_step(3)
        self.server.kill()
        self.wait_for_state("reconnecting")
        self.wait(lambda: "cannot be reached" in self.text("#publisher-status"),
                  "the publisher says so")
        self.server.run()
        self.wait_for_state("done")
        self.assertEqual(len(self.ways()), STEPS)
        self.assertLessEqual(set(self.ways()), {"live", "caught"})
        self.assertFalse(self.find("#reader .note").is_displayed())

    def test_killed_without_one(self):
        self.allow_outage()
        self.begin()
        self.wait_for_step(3)
        self.server.kill()
        self.wait_for_state("reconnecting")
        self.server.run()
        self.wait(lambda: "are gone" in self.text("#reader .note"),
                  "the gap is told")
        self.shot("progress-gap")
        self.wait_for_state("done")

    def test_what_is_published_is_text(self):
        self.begin(start=False)
        self.open("progress.html?topic=demo/text")
        self.wait_for_state("live")
        step = {"step": 1, "total": 2, "image": PNG}
        texts = [MARKUP] + [json.dumps({**step, **bad}) for bad in (
            {"image": MARKUP}, {"image": f"{PNG}\" onerror=\"x"},
            {"image": "data:image/svg+xml;base64,PHN2Zz4="},
            {"image": "javascript:alert(1)"}, {"image": "/x.png"},
            {"step": MARKUP}, {"total": MARKUP}, {"step": 3}, {"step": 0},
            {"total": 1e9})] + ["null", "[]", "7", '"text"']
        for query in ("", "?event=progress"):
            for text in texts:
                self.publish("demo/text", text, query)
                self.wait(lambda: text in self.text("#reader .note"),
                          f"{text} is shown as it is")
        self.shot("progress-text")
        self.assertEqual(self.image(), [None, 0])
        self.assertNotEqual(self.driver.title, "run")
        self.publish("demo/text", json.dumps(step), "?event=progress")
        self.wait(lambda: self.image() == [PNG, 1], "a picture is shown")

    def test_refused(self):
        self.allow_console("413")
        self.begin("--max-event", "2000")
        self.wait(lambda: "refuses step" in self.text("#publisher-status"),
                  "the server's reason is shown")
        self.assertIn("2000", self.text("#publisher-status"))
        self.assertEqual(
            self.find("#start-btn").get_attribute("aria-disabled"), "false")
        self.shot("progress-refused")

    def test_bad_topics(self):
        self.start("--interval", "0")
        for topic in ("..", "a/../b", "a//b", "a b", "x" * 256, MARKUP):
            self.open(f"progress.html?topic={topic}")
            self.wait(lambda: self.text("#publisher-status").startswith(
                "Nothing"), f"{topic} is no topic")
            self.assertEqual(self.state(), "idle")

    def test_keyboard(self):
        self.begin(start=False)
        self.press_on("start-btn")
        self.wait_for_step(2)
        self.assertEqual(self.focus(), "start-btn")
        self.press_on("cut-btn")
        self.wait_for_state("cutOff")
        self.press_on("join-btn")
        self.wait_for_step(2, "late")
        self.wait_for_state("live")
        self.press("Shift+Tab")
        self.assertEqual(self.focus(), "cut-btn")
        for _ in range(2):
            self.press("Shift+Tab")
        self.assertEqual(self.focus(), "stop-btn")
        self.press("Space")
        self.wait_for_state("stopped")

    def focus(self):
        return self.script("return document.activeElement.id")

    def press_on(self, button):
        for _ in range(20):
            if self.focus() == button:
                return self.press("Enter")
            self.press("Tab")
        self.fail(f"{button} cannot be reached by key")

    def test_matrix(self):
        self.begin(start=False)
        self.matrix("progress-begun")
        self.look()
        self.speak("en")
        self.click("#start-btn")
        self.wait_for_step(5)
        self.click("#cut-btn")
        self.wait_for_state("cutOff")
        self.wait_for_state("live")
        self.click("#join-btn")
        self.wait_for_step(6, "late")
        self.matrix("progress")
