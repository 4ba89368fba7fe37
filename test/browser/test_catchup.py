"""The catch-up page, index.html."""

import json
import threading

from harness import PageTest

# Keeps the ids of all messages of all pages of this tab, as they come.
RECORD = """
window.EventSource = class extends EventSource {
  constructor(...values) {
    super(...values);
    this.addEventListener("message", ({ data, lastEventId }) => {
      const { type } = JSON.parse(data);
      if (type !== "message" && type !== "catch_up_message") return;
      const seen = JSON.parse(sessionStorage.getItem("seen") ?? "[]");
      sessionStorage.setItem("seen", JSON.stringify([...seen, lastEventId]));
    });
  }
};"""
SHOWN = """
return [...document.querySelectorAll("#messages > div")].map((row) => ({
  look: row.className,
  text: row.querySelector(".text").textContent,
  id: row.querySelector(".id").textContent,
}))"""
MARKUP = "<img src=x onerror=\"document.title = 'run'\">"


class CatchUp(PageTest):
    def setUp(self):
        super().setUp()
        self.sent = []

    def begin(self, *options, **view):
        self.start("--interval", "0", "--retry", "100", "--drain-spread", "100",
                   *options)
        self.open("index.html", **view)
        self.wait_for_state("connected")

    # --------------------------------------------------- what is on the page

    def state(self):
        return self.find("#connection-status").get_attribute("data-state")

    def wait_for_state(self, state):
        self.wait(lambda: self.state() == state, f"the page is {state}")

    def shown(self, look=""):
        """The rows of the log, those of a look or all."""
        return [row for row in self.script(SHOWN) if look in row["look"]]

    def shown_ids(self):
        return [row["id"] for row in self.shown() if row["id"]]

    def wait_for_text(self, text):
        self.wait(lambda: text in self.text("#messages"), f"“{text}” is shown")

    def wait_for_all(self):
        """All that was sent is shown, in order, nothing twice."""
        self.wait(lambda: self.shown_ids()[-1:] == self.sent[-1:],
                  "the newest message is shown")
        self.assertEqual(self.shown_ids(), self.sent)

    def send(self, *texts):
        for text in texts:
            status, answer = self.publish("", text)
            self.assertEqual(status, 201)
            self.sent.append(str(json.loads(answer)["id"]))

    # ------------------------------------------------------------------ tests

    def test_the_clock_ticks(self):
        self.start("--interval", "50")
        self.open("index.html")
        self.wait(lambda: len(self.shown("live")) >= 3, "three messages")
        ids = [int(id) for id in self.shown_ids()]
        self.assertEqual(ids, list(range(ids[0], ids[0] + len(ids))))
        self.assertEqual(self.state(), "connected")

    def test_what_was_missed_comes_first(self):
        self.begin()
        self.send("one", "two")
        self.wait_for_all()
        self.click("#disconnect-btn")
        self.wait_for_state("closed")
        self.send("three", "four", "five")
        self.assertEqual(len(self.shown_ids()), 2)
        self.click("#connect-btn")
        self.wait_for_state("connected")
        self.send("six")
        self.wait_for_all()
        self.assertEqual([row["text"] for row in self.shown("caught-up")],
                         ["[caught up] three", "[caught up] four",
                          "[caught up] five"])
        self.assertEqual(self.text("#catchup-count"), "3")
        self.assertEqual(self.text("#message-count"), "6")
        self.assertEqual(self.text("#last-event-id"), self.sent[-1])
        self.assertEqual(self.shown("warning"), [])

    def test_a_cut_connection_comes_back(self):
        self.allow_outage()
        self.begin()
        proxy = self.proxy()
        self.open(proxy.url)
        self.wait_for_state("connected")
        for n in range(5):
            self.send(f"before {n}")
            self.wait_for_all()
            proxy.cut()
            self.send(f"meanwhile {n}")
            self.wait_for_all()
        self.assertEqual(self.shown("warning"), [])

    def test_it_goes_on_trying_behind_a_bad_proxy(self):
        self.allow_outage()
        self.allow_console("status of 502")
        self.begin()
        proxy = self.proxy()
        self.open(proxy.url)
        self.wait_for_state("connected")
        self.send("before")
        self.wait_for_all()
        proxy.status = 502
        proxy.cut()
        self.wait_for_state("error")
        self.send("meanwhile")
        proxy.status = None
        self.wait_for_all()
        self.assertEqual(len(self.shown("caught-up")), 1)

    def test_reloads_lose_nothing(self):
        self.begin()
        script = self.cdp("Page.addScriptToEvaluateOnNewDocument",
                          source=RECORD)
        self.reload()
        self.wait_for_state("connected")
        going = threading.Event()

        def publish():
            while not going.wait(0.005):
                self.send("tick")

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            for _ in range(8):
                count = len(self.sent)
                self.wait(lambda: len(self.sent) > count + 20, "20 more")
                self.reload()
        finally:
            going.set()
            publisher.join()
        self.wait(lambda: self.seen()[-1:] == self.sent[-1:], "the newest")
        self.assertEqual(self.seen(), self.sent)

    def seen(self):
        return json.loads(self.script(
            "return sessionStorage.getItem('seen') ?? '[]'"))

    def test_killed_without_a_history_file_a_gap_is_told(self):
        self.allow_outage()
        self.begin()
        self.send("one")
        self.wait_for_all()
        self.server.kill()
        self.wait_for_state("reconnecting")
        self.server.restart()
        self.wait_for_text("Some messages are gone")
        self.wait_for_state("connected")
        self.assertIn(self.sent[0], self.shown("warning")[0]["text"])
        self.send("two")
        self.wait_for_all()
        self.assertEqual(len(self.shown("warning")), 1)

    def test_killed_with_a_history_file_it_goes_on(self):
        self.allow_outage()
        self.begin("--history-file", f"{self.folder}/history")
        for end in (self.server.kill, self.server.stop):
            self.send("before")
            self.wait_for_all()
            end()
            self.wait_for_state("reconnecting")
            self.server.restart()
            self.send("meanwhile")
            self.wait_for_all()
        self.assertEqual(self.shown("warning"), [])

    def test_what_is_evicted_is_told(self):
        self.begin("--history", "2")
        self.send("one")
        self.wait_for_all()
        self.click("#disconnect-btn")
        self.send("two", "three", "four")
        self.click("#connect-btn")
        self.wait_for_text("Some messages are gone")
        self.wait_for_text("four")
        self.assertEqual(self.shown_ids(), [self.sent[0], *self.sent[2:]])

    def test_publish(self):
        self.begin()
        self.type("#publish-text", "hello, 你好\n")
        self.wait_for_text("hello, 你好")
        self.wait(lambda: self.shown_ids()[0] in self.text("#publish-result"),
                  "the id of what was published")
        self.assertIn("sent to 1 connected", self.text("#publish-result"))
        self.assertEqual(self.script(
            "return document.getElementById('publish-text').value"), "")

    def test_nothing_is_not_published(self):
        self.begin()
        self.type("#publish-text", "\n")
        self.send("something")
        self.wait_for_all()
        self.assertEqual(self.text("#publish-result"), "")

    def test_a_refusal_is_told(self):
        self.allow_console("status of 413")
        self.begin("--max-event", "10")
        self.type("#publish-text", "more than ten bytes\n")
        self.wait(lambda: self.find_all("#publish-result.bad"), "the refusal")
        # it can be mended and sent again
        self.assertEqual(self.script(
            "return document.getElementById('publish-text').value"),
            "more than ten bytes")

    def test_an_absent_server_is_told(self):
        self.allow_outage()
        self.begin()
        self.server.stop()
        self.type("#publish-text", "hello\n")
        self.wait(lambda: "cannot be reached" in self.text("#publish-result"),
                  "the failure")

    def test_markup_is_text(self):
        self.begin()
        self.type("#publish-text", MARKUP + "\n")
        self.wait_for_text(MARKUP)
        self.send(MARKUP)
        self.wait_for_text(MARKUP)
        self.click("#disconnect-btn")
        self.send(MARKUP)
        self.click("#connect-btn")
        self.wait(lambda: len(self.shown("caught-up")) == 1, "it caught up")
        self.assertEqual(self.find_all("#messages img"), [])
        self.assertEqual(self.driver.title,
                         "ssed · Nothing lost: reconnect and catch up")

    def test_a_thousand_at_once(self):
        self.begin()
        body = "".join(f"data: message {n}\n\n" for n in range(1000))
        self.click("#disconnect-btn")
        self.assertEqual(self.stream(body)[0], 201)
        self.click("#connect-btn")
        self.wait(lambda: self.text("#catchup-count") == "1000", "all of them")
        self.assertEqual(self.stream(body)[0], 201)
        self.wait(lambda: self.text("#message-count") == "2000", "as many live")
        self.wait_for_text("message 999")
        self.assertLessEqual(len(self.shown()), 300)
        # who scrolls back to read is left there
        self.script("document.getElementById('messages').scrollTop = 0")
        self.wait(lambda: self.find("#newest-btn").is_displayed(), "the button")
        self.send("below")
        self.wait_for_text("below")
        self.assertLess(self.scrolled(), 100)
        self.click("#newest-btn")
        self.wait(lambda: not self.find("#newest-btn").is_displayed(), "gone")
        self.assertGreater(self.scrolled(), 1000)

    def test_the_newest_stays_in_view(self):
        self.begin()
        self.send(*(f"message {n} " + "word " * 40 for n in range(12)))
        for width in (375, 1280, 375):
            self.look(width)
            self.wait(lambda: self.below() == 0, f"the newest, {width} wide")
        # and when the answer below takes some of the room
        self.type("#publish-text", "published\n")
        self.wait(lambda: self.text("#publish-result"), "the answer")
        self.wait(lambda: self.below() == 0, "what was published")
        self.assertFalse(self.find("#newest-btn").is_displayed())

    def below(self):
        """Pixels of the log that are out of view below."""
        return self.script("""
            const log = document.getElementById("messages");
            return Math.floor(log.scrollHeight - log.scrollTop -
              log.clientHeight);""")

    def stream(self, body):
        return self.server.request("POST", "/events", body.encode(),
                                   {"Content-Type": "text/event-stream"})

    def scrolled(self):
        return self.script(
            "return document.getElementById('messages').scrollTop")

    def test_clear_buttons(self):
        self.begin()
        self.send("one")
        self.wait_for_all()
        self.click("#clear-messages-btn")
        self.wait(lambda: not self.shown(), "an empty log")
        self.wait(lambda: self.text("#message-count") == "0", "no messages")
        self.assertEqual(self.text("#last-event-id"), self.sent[0])
        self.click("#clear-history-btn")
        self.answer(False)
        self.assertEqual(self.text("#last-event-id"), self.sent[0])
        self.click("#clear-history-btn")
        self.assertIn("Forget the last event id", self.answer(True))
        self.wait_for_text("local history cleared")
        self.assertEqual(self.text("#last-event-id"), "none")
        self.send("two")
        self.reload()
        self.wait_for_state("connected")
        self.assertNotIn("one", self.text("#messages"))

    def test_keys_alone(self):
        self.begin()
        self.focus_by_tab("disconnect-btn")
        self.press("Enter")
        self.wait_for_state("closed")
        self.send("missed")
        self.press("Shift+Tab")
        self.assertEqual(self.focused(), "connect-btn")
        self.press("Space")
        self.wait_for_text("missed")
        # the button that does nothing now keeps the focus
        self.assertEqual(self.focused(), "connect-btn")
        self.press("Enter")
        self.focus_by_tab("publish-text")
        self.press(*"typed", "Enter")
        self.wait_for_text("typed")
        self.assertEqual(self.focused(), "publish-text")

    def focused(self):
        return self.script("return document.activeElement.id")

    def focus_by_tab(self, id):
        for _ in range(30):
            if self.focused() == id:
                return
            self.press("Tab")
        self.fail(f"{id} is not reached with Tab")

    def test_languages(self):
        self.begin(language="zh")
        self.send("你好")
        self.wait_for_all()
        self.assertEqual(self.text("#connection-status"), "已连接")
        self.wait_for_text("[系统] 连接建立成功")
        self.click("#language-btn")
        self.assertEqual(self.text("#connection-status"), "Connected")
        # also what was there before
        self.wait_for_text("[system] connected")
        self.assertNotIn("系统", self.text("#messages"))
        self.wait_for_all()
        self.reload()
        self.assertEqual(self.text("#disconnect-btn"), "Disconnect")

    def test_two_tabs(self):
        self.begin()
        self.tab()
        self.open("index.html")
        self.wait_for_state("connected")
        self.send("both")
        self.wait_for_all()
        self.switch(0)
        self.wait_for_all()
        # one is left behind, the other goes on
        self.click("#disconnect-btn")
        self.wait_for_state("closed")
        self.send("one of them")
        self.switch(1)
        self.wait_for_all()
        self.switch(0)
        self.assertEqual(len(self.shown_ids()), 1)
        # its old position does not replace that of the other
        self.switch(1)
        self.driver.get("about:blank")
        self.switch(0)
        self.script("dispatchEvent(new Event('visibilitychange'))")
        self.switch(1)
        self.open("index.html")
        self.wait_for_state("connected")
        self.assertEqual(self.shown_ids(), [])
        self.switch(0)
        self.click("#connect-btn")
        self.wait_for_all()
        self.assertEqual(len(self.shown("caught-up")), 1)

    def test_matrix(self):
        self.allow_outage()
        self.begin()
        self.send("Build 4711 has started", "12 of 40 tests have passed")
        self.wait_for_all()
        self.server.kill()
        self.wait_for_state("reconnecting")
        self.matrix("catchup-reconnecting")
        self.server.restart()
        self.wait_for_state("connected")
        self.send("Build 4712 has started", MARKUP, "构建 4713 已开始")
        self.wait_for_all()
        self.click("#disconnect-btn")
        self.matrix("catchup-disconnected")
        self.send("40 of 40 tests have passed", "A long line: " + "word " * 40)
        self.send("x" * 120)
        self.click("#connect-btn")
        self.wait_for_state("connected")
        self.type("#publish-text", "Release 1.8 is out\n")
        self.wait_for_text("Release 1.8 is out")
        self.find("#publish-text").send_keys("and the next")
        self.matrix("catchup")
