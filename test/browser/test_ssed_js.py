"""ssed.js, on a page that has nothing else."""

import json
import os
import shutil
import threading
from contextlib import contextmanager
from urllib.parse import quote

from harness import PageTest
from shared import ssed

# What was dispatched, also before a reload: `got` the data, `said` the rest.
PAGE = """<!doctype html>
<html lang="en">
<title>ssed.js</title>
<link rel="icon" href="data:,">
<script src="ssed.js"></script>
<script>
const query = new URLSearchParams(location.search);
const [got, said] = JSON.parse(sessionStorage.getItem("kept") ?? "[[], []]");
const options = JSON.parse(query.get("options"));
const source = new SsedSource(query.get("url"), options);
const say = (text) => said.push(text);
source.onopen = () => say("open");
source.onerror = () => say("error " + source.readyState);
source.onmessage = (event) => {
  got.push(event.data);
  say("message " + event.lastEventId);
};
for (const name of ["named", "gap", "end", "expired"])
  source.addEventListener(name, (event) => say(name + " " + event.data));
addEventListener("pagehide", () =>
  sessionStorage.setItem("kept", JSON.stringify([got, said])));
</script>
</html>
"""
TABS = 8

# Every fifth of what the reading tab tells does not reach this one.
LOSSY = """
window.BroadcastChannel = class extends BroadcastChannel {
  set onmessage(act) {
    let n = 0;
    super.onmessage = (event) => {
      if (!event.data.told || ++n % 5) act(event);
    };
  }
};"""


class SsedJs(PageTest):
    def begin(self, *options):
        root = os.path.join(self.folder, "root")
        shutil.copytree(os.path.join(os.path.dirname(ssed()), "static"), root)
        with open(os.path.join(root, "tabs.html"), "w") as file:
            file.write(PAGE)
        self.start("--root", root, "--interval", "0", "--retry", "100",
                   *options)
        self.sent = 0

    def visit(self, url="/events/x", base=None, **options):
        """Opens the page in the present tab."""
        query = f"url={quote(url)}&options={quote(json.dumps(options))}"
        self.open(f"{base or self.server.url}tabs.html?{query}")

    def send(self, count=1):
        """Publishes 0, 1, 2 and so on; returns how many readers there are."""
        for _ in range(count):
            status, answer = self.publish("x", str(self.sent))
            self.assertEqual(status, 201)
            self.sent += 1
        return json.loads(answer)["subscribers"]

    @contextmanager
    def publishing(self):
        """Sends one after another meanwhile."""
        over = threading.Event()

        def publish():
            while not over.wait(0.002):
                self.send()

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def readers(self):
        """How many there are, told by the answer to a publish."""
        _, answer = self.publish("x", "?", "?event=count")
        return json.loads(answer)["subscribers"]

    def got(self):
        return self.script("return got")

    def said(self):
        return self.script("return said")

    def state(self):
        return self.script("return source.readyState")

    def wait_for_state(self, state):
        self.wait(lambda: self.state() == state, f"readyState is {state}")

    def wait_for_all(self, first=0):
        """Everything that was sent since, once and in order."""
        wanted = [str(n) for n in range(first, self.sent)]
        self.wait(lambda: len(self.got()) >= len(wanted), "all events")
        self.assertEqual(self.got(), wanted)

    # ---------------------------------------------------------- interface

    def test_is_an_event_source(self):
        self.begin()
        self.visit()
        self.wait_for_state(1)
        self.send(2)
        self.publish("x", "a\nb", "?event=named")
        self.publish("x", "\n", "?event=named")
        self.wait(lambda: "named " in self.said(), "the named events")
        self.assertIn("named a\nb", self.said())
        self.wait_for_all()
        self.assertEqual(self.script(
            "return [SsedSource.CONNECTING, SsedSource.OPEN, SsedSource.CLOSED,"
            " source.url, source instanceof EventTarget]"),
            [0, 1, 2, self.server.url + "events/x", True])
        self.script("source.close()")
        self.assertEqual(self.state(), 2)
        self.wait(lambda: self.readers() == 0, "the connection is closed")

    def test_begins_where_the_url_says(self):
        self.begin()
        self.send(20)
        self.visit("/events/x?last=5")
        self.wait_for_all(15)
        self.tab()
        self.visit("/events/x?lastEventId=earliest")
        self.wait_for_all()
        self.tab()
        self.visit("/events/x")
        self.wait_for_state(1)
        self.send(3)
        self.wait_for_all(20)

    def test_end_closes_it(self):
        self.begin()
        self.visit()
        self.wait_for_state(1)
        self.tab()
        self.visit()
        self.wait_for_state(1)
        self.send(3)
        self.delete("x")
        for tab in range(2):
            self.switch(tab)
            self.wait_for_state(2)
            self.wait_for_all()
            ends = [said for said in self.said() if said.startswith("end ")]
            self.assertEqual(len(ends), 1)
            self.assertEqual(json.loads(ends[0][4:])["topic"], "x")

    def test_gap(self):
        self.begin("--history", "10")
        self.visit()
        self.wait_for_state(1)
        self.send(3)
        self.wait_for_all()
        url = self.driver.current_url
        self.driver.get("about:blank")
        self.send(30)
        self.driver.get(url)
        self.wait(lambda: self.got()[-1] == "32", "the newest")
        gaps = [said for said in self.said() if said.startswith("gap ")]
        self.assertEqual(len(gaps), 1)
        self.assertEqual(json.loads(gaps[0][4:])["topics"], ["x"])
        self.assertEqual(self.got(),
                         [str(n) for n in [*range(3), *range(23, 33)]])

    def test_gap_of_the_main_stream(self):
        self.begin()
        self.visit("/events?lastEventId=1")
        self.wait(lambda: any(said.startswith("gap ") for said in self.said()),
                  "the gap")

    def test_what_a_topic_says_is_never_taken_for_the_servers_own(self):
        self.begin()
        self.visit()
        self.wait_for_state(1)
        texts = ['{"type":"expired","exp":1}',
                 '{"type":"gap","message":"部分历史消息已无法补发"}']
        for text in texts:
            self.publish("x", text)
        self.wait(lambda: len(self.got()) == len(texts), "both messages")
        self.assertEqual(self.got(), texts)
        self.assertFalse([said for said in self.said()
                          if said.startswith(("gap", "expired"))])

    # ---------------------------------------------------------- many tabs

    def open_tabs(self, url="/events/x", **options):
        for n in range(TABS):
            if n:
                self.tab()
            self.visit(url, **options)
            self.wait_for_state(1)

    def test_eight_tabs_share_a_connection(self):
        self.begin()
        self.open_tabs()
        self.wait(lambda: self.readers() == 1, "one connection")
        self.assertEqual(self.send(200), 1)
        for tab in range(TABS):
            self.switch(tab)
            self.wait_for_all()

    def test_closing_the_tab_that_reads(self):
        self.begin()
        self.open_tabs()
        with self.publishing():
            for _ in range(4):  # the lock goes from the oldest tab to the next
                before = self.sent
                self.wait(lambda: self.sent > before + 100, "some are sent")
                self.switch(0)
                self.driver.close()
        for tab in range(TABS - 4):
            self.switch(tab)
            self.wait_for_all()
        self.wait(lambda: self.readers() == 1, "one connection")

    def test_leaving_the_tab_that_reads(self):
        """The browser keeps the page for the way back; its lock and its
        connection go, and it goes on when it comes back."""
        self.begin()
        for n in range(2):
            if n:
                self.tab()
            self.visit()
            self.wait_for_state(1)
        self.send(5)
        self.switch(0)
        self.wait_for_all()
        self.driver.get("about:blank")
        self.send(5)
        self.switch(1)
        self.wait_for_all()
        self.assertEqual(self.readers(), 1)
        self.switch(0)
        self.driver.back()
        self.wait_for_all()
        self.wait(lambda: self.readers() == 1, "one connection")
        self.send(5)
        for tab in range(2):
            self.switch(tab)
            self.wait_for_all()

    def test_tabs_that_come_late_or_reload(self):
        self.begin()
        self.visit("/events/x?lastEventId=earliest")
        for n in range(1, TABS):
            self.send(20)
            self.tab()
            self.visit("/events/x?lastEventId=earliest")
        for tab in range(TABS):
            self.switch(tab)
            self.wait_for_all()
            self.send(10)
            self.reload()
        for tab in range(TABS):
            self.switch(tab)
            self.wait_for_all()
        self.wait(lambda: self.readers() == 1, "one connection")

    def test_tabs_that_come_while_events_do(self):
        self.begin()
        self.send(10)
        with self.publishing():
            for n in range(4):
                if n:
                    self.tab()
                self.visit("/events/x?last=5")
                self.wait(lambda: len(self.got()) > 50, "some have come")
        for tab in range(4):
            self.switch(tab)
            self.wait_for_all(int(self.got()[0]))
        self.wait(lambda: self.readers() == 1, "one connection")

    def test_a_tab_that_misses_some_asks_for_them(self):
        self.begin("--heartbeat", "1")
        self.visit()
        self.wait_for_state(1)
        self.tab()
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=LOSSY)
        self.visit()
        self.wait_for_state(1)
        self.send(20)
        for tab in range(2):
            self.switch(tab)
            self.wait_for_all()

    def test_the_tab_that_reads_hangs(self):
        self.begin()
        self.visit(heartbeat=0.5)
        self.wait_for_state(1)
        reader = self.driver.current_window_handle
        self.tab()
        self.visit(heartbeat=0.5)
        self.wait_for_state(1)
        self.driver.switch_to.window(reader)
        # as a debugger, or a loop without end, stops it
        self.script("setTimeout(() => { const end = Date.now() + 6000;"
                    " while (Date.now() < end); })")
        self.switch(1)
        self.send(10)
        self.wait_for_all()
        self.switch(0)
        self.wait_for_all()
        self.assertEqual(self.readers(), 2)

    # -------------------------------------------------------- bad networks

    def test_reload_goes_on(self):
        self.begin()
        self.visit()
        self.wait_for_state(1)
        for _ in range(5):
            self.send(10)
            self.reload()
        self.wait_for_all()
        self.tab()
        self.visit()
        self.wait_for_state(1)
        self.assertEqual(self.got(), [])

    def test_forgets_when_told_so(self):
        self.begin()
        self.send(5)
        self.visit("/events/x?last=3", remember=False)
        self.wait(lambda: len(self.got()) == 3, "three")
        self.reload()
        self.wait(lambda: len(self.got()) == 6, "the same three")

    def test_bad_gateway(self):
        self.begin()
        self.allow_outage()
        self.allow_console("502")
        proxy = self.proxy()
        self.visit(base=proxy.url)
        self.wait_for_state(1)
        self.send(3)
        self.wait_for_all()
        proxy.status = 502
        proxy.cut()
        self.wait_for_state(0)
        self.send(3)
        errors = self.said().count("error 0")
        self.wait(lambda: self.said().count("error 0") > errors + 1,
                  "it tries again")
        proxy.status = None
        self.wait_for_all()
        self.assertEqual(self.state(), 1)

    def test_silence(self):
        self.begin("--heartbeat", "1")
        proxy = self.proxy()
        self.visit(base=proxy.url, heartbeat=1)
        self.wait_for_state(1)
        self.send()
        self.wait_for_all()
        proxy.hold()
        self.send(3)
        self.wait(lambda: "error 0" in self.said(), "it is taken for dead")
        proxy.let_go()
        self.wait_for_all()

    def test_a_quiet_stream_is_not_dead(self):
        self.begin("--heartbeat", "1")
        self.visit(heartbeat=0.5)
        self.wait_for_state(1)
        for _ in range(3):
            position = self.script("return sessionStorage[source.url]")
            self.publish("other", "moves the newest id on")
            self.wait(lambda: self.script(
                "return sessionStorage[source.url]") != position,
                "a heartbeat")
        self.assertNotIn("error 0", self.said())

    def test_server_killed_and_restarted(self):
        self.begin("--history-file", os.path.join(self.folder, "history"))
        self.allow_outage()
        self.open_tabs()
        self.send(10)
        self.server.kill()
        self.server.run()
        self.send(10)
        for tab in range(TABS):
            self.switch(tab)
            self.wait_for_all()
            self.assertFalse([s for s in self.said() if s.startswith("gap")])

    def test_without_web_locks(self):
        self.begin()
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=(
            "Object.defineProperty(navigator, 'locks', { value: undefined })"))
        self.visit()
        self.wait_for_state(1)
        self.send(5)
        self.wait_for_all()

    def test_not_allowed(self):
        self.begin()
        self.allow_console("400")
        self.visit("/events/a%2Fb")
        self.wait_for_state(2)
        self.assertEqual(self.said(), ["error 2"])
