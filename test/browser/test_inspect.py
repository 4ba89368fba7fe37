"""inspect.html, the network tab of event streams."""

import http.client
import json
import os
import socket
import subprocess

from harness import PageTest

MARKUP = "<img src=x onerror=\"document.title = 'run'\">"
EVENTS = 100000

# How long the frames took, and how many nodes the page had at the most.
WATCH = """
window.watched = { frames: [], nodes: 0 };
let before = performance.now();
requestAnimationFrame(function frame(now) {
  watched.frames.push(now - before);
  watched.nodes =
    Math.max(watched.nodes, document.getElementsByTagName("*").length);
  before = now;
  requestAnimationFrame(frame);
});"""

# Scrolls through the whole list, a step a frame.
SCROLL = """
const [done] = arguments;
const list = document.getElementById("rows");
const rows = new Set();
let step = 0;
requestAnimationFrame(function frame() {
  list.scrollTop = list.scrollHeight * (step % 60) / 60;
  rows.add(document.querySelector("#space > div .data").textContent);
  if (++step < 120) requestAnimationFrame(frame);
  else done(rows.size);
});"""

# Cuts a text at every place and says where the blocks were others.
CUTS = r"""
const text = ": hi\r\nid: 1\rdata: a\n\r\ndata:b\rdata:\rdata: c\r\n\r\n" +
  "event: e\ndata\n\n\n\nretry: 5\n\nid: 2";
const read = (pieces) => {
  const cutter = newCutter();
  return JSON.stringify([...pieces.flatMap((piece) =>
    [...cut(cutter, piece)].map(({ fields }) => fields)), cutter.text]);
};
const whole = read([text]);
const bad = [];
for (let i = 0; i <= text.length; i++)
  for (let j = i; j <= text.length; j++) {
    const pieces = [text.slice(0, i), text.slice(i, j), text.slice(j)];
    if (read(pieces) !== whole) bad.push([i, j]);
  }
return [whole, bad];"""


class Inspect(PageTest):
    def begin(self, page, *options, **view):
        self.start("--interval", "0", "--retry", "100", "--drain-spread", "100",
                   *options)
        self.open(page, **view)

    def wait_for_state(self, state):
        self.wait(lambda: self.find("#connection-status").get_attribute(
            "data-state") == state, f"the page is {state}")

    def lines(self):
        """All lines that are kept, as the export has them."""
        text = self.script("return JSON.stringify(lines.map(record))")
        return json.loads(text)

    def wait_for_line(self, key, value):
        return self.wait(lambda: [line for line in self.lines()
                                  if value in (line.get(key) or "")],
                         f"a line whose {key} has {value}")

    def rows(self):
        return self.script("""
            return [...document.querySelectorAll("#space > div")]
              .filter((row) => !row.hidden && row.line)
              .sort((a, b) => a.line.n - b.line.n)
              .map((row) => row.innerText)""")

    def data(self):
        return [line["data"] for line in self.lines() if "data" in line]

    # ----------------------------------------------------------- the lines

    def test_every_block(self):
        self.begin("inspect.html?topic=x", "--heartbeat", "1")
        self.wait_for_state("connected")
        self.publish("x", '{"a":[1,2.50,12345678901234567890],"b":{"c":null}}',
                     "?event=json")
        self.publish("x", "two\nlines")
        self.wait_for_line("data", "two")
        self.publish("other", "moves the newest id on")
        self.wait(lambda: sum("data" not in line for line in self.lines()) >= 5,
                  "a heartbeat")
        self.delete("x")
        self.wait_for_state("finished")
        lines = self.lines()
        notes = [line["note"] for line in lines if "note" in line]
        self.assertIn("GET " + self.server.url + "events/x", notes)
        first = next(line for line in lines if "note" not in line)
        self.assertIn(f"200 OK, the stream starts at {first['id']}", notes)
        self.assertTrue(any(note.startswith("204") for note in notes))
        self.assertEqual(first["retry"], 100)
        self.assertNotIn("data", first)
        event = next(line for line in lines if line.get("event") == "json")
        self.assertIn("2.50", event["data"])
        self.assertEqual([line["event"] for line in lines if "event" in line],
                         ["json", "ssed.end"])
        self.assertTrue(any("End: the topic x is finished" in row
                            for row in self.rows()))
        # a number is shown as it was written
        self.script("""
            [...document.querySelectorAll("#space > div")]
              .find((row) => !row.hidden && row.innerText.includes("json"))
              .click()""")
        self.wait(lambda: self.script("""
            const values = document.querySelectorAll("#details details")[1];
            if (values) values.open = true;
            return !!values"""), "the event's values")
        self.wait(lambda: "2.50" in self.text("#details .tree"), "2.50")
        self.assertIn("12345678901234567890", self.text("#details .tree"))

    def test_gap_and_pause(self):
        self.begin("inspect.html?topic=x&lastEventId=5", "--history", "10")
        self.wait(lambda: any("Gap: asked to go on from 5" in row
                              for row in self.rows()), "the gap")
        self.find("#pause").clear()
        self.type("#pause", "0.01")
        self.publish("x", "after a pause")
        self.wait(lambda: "pause" in self.text("#space .paused"), "in words")

    def test_an_answer_breaks_off(self):
        self.begin("inspect.html?topic=x")
        self.wait_for_state("connected")
        with socket.create_connection(("127.0.0.1", self.server.port)) as model:
            model.sendall(b"POST /events/x?end=1 HTTP/1.1\r\n"
                          b"Host: localhost\r\nContent-Type: text/event-stream\r\n"
                          b"Content-Length: 1000\r\n\r\ndata: half\n\n")
            self.wait_for_line("data", "half")
        self.wait(lambda: any("the topic x has broken off" in row
                              for row in self.rows()), "the end in words")

    def test_cuts_anywhere(self):
        self.begin("inspect.html?topic=x")
        whole, bad = self.script(CUTS)
        self.assertEqual(bad, [])
        self.assertEqual(json.loads(whole), [
            [": hi", "id: 1", "data: a"],
            ["data:b", "data:", "data: c"], ["event: e", "data"],
            ["retry: 5"], "id: 2"])

    def test_markup_stays_text(self):
        self.begin("inspect.html?topic=x")
        self.wait_for_state("connected")
        self.publish("x", MARKUP)
        self.publish("x", json.dumps({MARKUP: [MARKUP]}),
                     "?event=<img%20src=x>")
        self.wait_for_line("data", "[")
        self.wait(lambda: sum(MARKUP in row for row in self.rows()) == 1,
                  "the rows")
        self.click("#rows")
        for key in ("End", "Up"):
            self.press(key)
            self.wait(lambda: MARKUP[:8] in self.text("#details"),
                      "the details")
        self.type("#filter", MARKUP)
        self.type("#publish-data", MARKUP)
        self.type("#publish-topic", MARKUP)
        self.click("#publish-form button[type=submit]")
        self.allow_console("400")
        self.wait(lambda: self.text("#publish-result"), "the refusal")
        self.assertEqual(self.find_all("main img"), [])
        self.assertNotEqual(self.driver.title, "run")

    # ---------------------------------------------------------- connection

    def test_resumes_after_a_kill(self):
        history = os.path.join(self.folder, "history")
        self.begin("inspect.html?topic=x", "--history-file", history)
        self.allow_outage()
        self.wait_for_state("connected")
        self.publish("x", "1")
        self.wait_for_line("data", "1")
        self.server.kill()
        self.wait_for_line("note", "Reconnecting in 0.1 s")
        self.server.run()
        self.publish("x", "2")
        self.wait_for_line("data", "2")
        self.assertEqual(self.data(), ["1", "2"])
        self.wait_for_line("note", "with the header Last-Event-ID: ")
        self.wait_for_state("connected")

    def test_any_server(self):
        self.begin("inspect.html")
        self.start("--interval", "0", "--retry", "100")
        proxy = self.proxy()
        self.allow_outage()
        url = proxy.url + "events/x"
        self.open(self.driver.current_url.split("?")[0] + "?url=" + url)
        self.wait_for_state("connected")
        self.publish("x", "1")
        self.wait_for_line("data", "1")
        proxy.cut()
        self.wait_for_line("note", "lastEventId=")
        self.publish("x", "2")
        self.wait_for_line("data", "2")
        self.assertEqual(self.data(), ["1", "2"])

    def test_gives_up_as_an_event_source(self):
        self.begin("inspect.html")
        self.allow_outage()
        self.allow_console("502")
        proxy = self.proxy()
        self.open(proxy.url + "inspect.html?topic=x")
        self.wait_for_state("connected")
        proxy.status = 502
        proxy.cut()
        self.wait_for_state("error")
        self.wait_for_line("note", "502")
        proxy.status = None
        self.click("#connect-btn")
        self.wait_for_state("connected")
        self.click("#disconnect-btn")
        self.wait_for_state("closed")

    def test_fetches_http_alone(self):
        self.begin("inspect.html?url=javascript:document.title='run'")
        for address in ("javascript:document.title='run'", "data:text/html,x",
                        "file:///etc/passwd", "http://a:b@127.0.0.1/"):
            self.find("#address").clear()
            self.type("#address", address)
            self.click("#connect-btn")
            self.wait(lambda: "no http:" in self.text("#connect-result"), "no")
        self.assertEqual(self.lines(), [])
        self.assertNotEqual(self.driver.title, "run")

    # ------------------------------------------------------------ the list

    def test_hundred_thousand(self):
        self.begin("inspect.html?topic=x", "--history", "200000")
        self.wait_for_state("connected")
        self.script(WATCH)
        # not the clock: the machine may have other things to do
        self.cdp("Performance.enable", timeDomain="threadTicks")
        self.addCleanup(self.cdp, "Performance.disable")
        self.cpu = self.cpu_time()
        body = "".join(f"data: {n}\n\n" for n in range(EVENTS))
        self.stream("x", body)
        self.wait(lambda: self.script("return next") > EVENTS, "all are shown",
                  seconds=60)
        self.assertTrue(self.script(
            "return lines.filter((line) => line.data !== undefined)"
            ".every((line, i) => line.data === String(i))"))
        self.check_smooth("reading")
        seen = self.driver.execute_async_script(SCROLL)
        self.assertGreater(seen, 50)
        self.check_smooth("scrolling")
        self.type("#filter", "data: 99")
        wanted = sum(str(n).startswith("99") for n in range(EVENTS))
        self.wait(lambda: self.script("return next === count && shown.length")
                  == wanted, "filtered")
        self.check_smooth("filtering")

    def cpu_time(self):
        """What the page's thread has worked, in ms."""
        metrics = self.cdp("Performance.getMetrics")["metrics"]
        return 1000 * next(metric["value"] for metric in metrics
                           if metric["name"] == "TaskDuration")

    def check_smooth(self, what):
        frames = sorted(self.script("return watched.frames.splice(0)"))
        nodes = self.script("return watched.nodes")
        worked, self.cpu = self.cpu_time() - self.cpu, self.cpu_time()
        each = worked / len(frames)
        print(f"    {what} {EVENTS} events: {nodes} nodes, {len(frames)} frames"
              f" of {each:.1f} ms work, the slowest painted after"
              f" {frames[-1]:.0f} ms")
        self.assertLess(nodes, 500)
        self.assertLess(each, 40)
        self.assertLess(worked, 5000)

    def stream(self, topic, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        connection.request("POST", f"/events/{topic}", body.encode(),
                           {"Content-Type": "text/event-stream"})
        self.assertEqual(connection.getresponse().status, 201)
        connection.close()

    def test_oldest_are_dropped(self):
        self.begin("inspect.html?topic=x")
        self.wait_for_state("connected")
        self.script("""
            for (let i = 0; i < 250000; i++)
              add({ raw: `data: ${i}\\n\\n`, data: `${i}`, look: "event-row" });
        """)
        self.wait(lambda: self.script("return next === count"), "all")
        self.assertLessEqual(self.script("return lines.length"), 200000)
        self.assertLessEqual(self.script("return shown.length"), 200000)
        self.assertIn("are dropped", self.text("#shown"))
        self.wait(lambda: "249999" in self.rows()[-1], "the newest in view")

    def test_filter_freeze_clear_export(self):
        self.begin("inspect.html?topic=x")
        self.wait_for_state("connected")
        for n in range(20):
            self.publish("x", f"n{n}.")
        self.wait_for_line("data", "n19.")
        self.type("#filter", "n1")
        self.wait(lambda: len(self.rows()) == 11, "n1, n10 to n19")
        self.script("URL.createObjectURL = (blob) => {"
                    " blob.text().then((text) => window.saved = text);"
                    " return 'blob:none'; };"
                    "HTMLAnchorElement.prototype.click = () => {}")
        self.click("#export-json-btn")
        text = self.wait(lambda: self.script("return window.saved"), "JSON")
        saved = [json.loads(line) for line in text.splitlines()]
        self.assertEqual([line["data"] for line in saved],
                         ["n1."] + [f"n{n}." for n in range(10, 20)])
        self.script("window.saved = ''")
        self.click("#export-raw-btn")
        text = self.wait(lambda: self.script("return window.saved"), "text")
        self.assertEqual(text.count("\n\n"), 11)
        self.assertTrue(text.endswith("data: n19.\n\n"))
        self.find("#filter").clear()
        self.type("#filter", " ")
        self.wait(lambda: "23 of 23" in self.text("#shown"), "all again")
        self.click("#freeze-btn")
        self.publish("x", "later")
        self.wait(lambda: "1 more" in self.text("#shown"), "one waits")
        self.assertFalse(any("later" in row for row in self.rows()))
        self.click("#freeze-btn")
        self.wait(lambda: any("later" in row for row in self.rows()), "no more")
        self.click("#clear-btn")
        self.wait(lambda: self.rows() == [], "nothing is left")

    def test_keyboard(self):
        self.begin("inspect.html?topic=x")
        self.wait_for_state("connected")
        for n in range(50):
            self.publish("x", f"event {n}")
        self.wait(lambda: any("event 49" in row for row in self.rows()), "rows")
        self.script("document.getElementById('export-raw-btn').focus()")
        self.press("Tab")
        self.assertEqual(self.active(), "rows")
        self.press("End")
        self.wait(lambda: "event 49" in self.selected(), "the last")
        for _ in range(30):
            self.press("Up")
        self.wait(lambda: "event 19" in self.selected(), "30 up")
        self.assertIn("event 19", self.text("#details"))
        self.press("Home")
        self.wait(lambda: "GET" in self.selected(), "the first")
        self.press("Tab")
        self.press("Tab")
        self.assertEqual(self.active(), "details")

    def active(self):
        return self.script("return document.activeElement.id")

    def selected(self):
        return self.script("""
            const list = document.getElementById("rows");
            const id = list.getAttribute("aria-activedescendant");
            const row = document.getElementById(id);
            const box = row.getBoundingClientRect();
            const view = list.getBoundingClientRect();
            return row.ariaSelected === "true" && box.top >= view.top - 1 &&
              box.bottom <= view.bottom + 1 ? row.innerText : "not in view";""")

    # ------------------------------------------------------------- publish

    def test_publish_and_curl(self):
        self.begin("inspect.html?topic=chat/1")
        self.wait_for_state("connected")
        self.assertEqual(
            self.find("#publish-topic").get_attribute("value"), "chat/1")
        self.type("#publish-event", "it's")
        self.type("#publish-data", "it's @home")
        self.click("#publish-form button[type=submit]")
        self.wait(lambda: "Published with id" in self.text("#publish-result"),
                  "it is published")
        subprocess.run(["sh", "-c", self.text("#publish-curl")], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait(lambda: self.data() == ["it's @home"] * 2, "both have come")
        self.assertEqual({line["event"] for line in self.lines()
                          if "data" in line}, {"it's"})
        self.assertEqual(self.text("#read-curl"),
                         f"curl -N '{self.server.url}events/chat/1'")

    def test_fields_and_address(self):
        self.begin("inspect.html")
        self.wait_for_state("connected")
        self.type("#topics", "a b/c")
        self.script("const start = document.getElementById('start');"
                    "start.value = 'last';"
                    "start.dispatchEvent(new Event('input'))")
        self.type("#start-value", "5")
        address = self.find("#address").get_attribute("value")
        self.assertEqual(
            address, self.server.url + "events?topic=a&topic=b/c&last=5")
        self.click("#connect-btn")
        self.publish("b/c", "there")
        self.wait_for_line("data", "there")
        self.reload()
        self.wait_for_line("data", "there")
        self.assertEqual(self.find("#topics").get_attribute("value"), "a b/c")

    # --------------------------------------------------------- screenshots

    def test_matrix(self):
        self.start("--interval", "0", "--history", "12", "--retry", "100")
        for n in range(30):
            self.publish("chat/42", f"token {n}", "?event=token")
        self.open("inspect.html?topic=chat/42&lastEventId=5")
        self.wait_for_state("connected")
        self.find("#pause").clear()
        self.type("#pause", "0.05")
        self.publish("chat/42", json.dumps({
            "step": 3, "of": [1, 2.5, {"deep": None}], "done": False,
            "text": MARKUP}))
        self.wait_for_line("data", "step")
        self.click("#rows")
        self.press("End")
        self.wait(lambda: "step" in self.text("#details"), "the details")
        self.matrix("inspect")

    def test_matrix_of_an_end(self):
        self.begin("inspect.html?topic=chat/42")
        self.wait_for_state("connected")
        self.publish("chat/42", "one")
        self.wait_for_line("data", "one")
        self.delete("chat/42")
        self.wait_for_state("finished")
        self.click("#freeze-btn")
        self.matrix("inspect-end")
