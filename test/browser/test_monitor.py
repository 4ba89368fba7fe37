"""Live analysis, monitor.html."""

import json
import time

from harness import PageTest

MARKUP = "<img src=x onerror=\"document.title = 'run'\">"
TOPICS = ("load", "latency", "queue", "finding")
OUTAGE = ("--retry", "100", "--drain-spread", "100")

# Notes how long the page's frames take, and how many of them are painted.
FRAMES = """
window.frames = [];
let last = 0;
const askForFrame = requestAnimationFrame;
window.requestAnimationFrame = (paint) => askForFrame((now) => {
  painted++;
  paint(now);
});
window.painted = 0;
askForFrame(function next() {
  const now = performance.now();
  if (last) frames.push(now - last);
  last = now;
  askForFrame(next);
});"""

# How much of the chart has the colour of a CSS variable.
COLOURED = """
const context = new OffscreenCanvas(1, 1).getContext("2d");
context.fillStyle = getComputedStyle(document.documentElement)
  .getPropertyValue(arguments[0]);
context.fillRect(0, 0, 1, 1);
const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
const chart = document.querySelector("#chart");
const { data } = chart.getContext("2d")
  .getImageData(0, 0, chart.width, chart.height);
let count = 0;
for (let i = 0; i < data.length; i += 4)
  count += data[i] === r && data[i + 1] === g && data[i + 2] === b;
return count"""


class Monitor(PageTest):
    def begin(self, *options, source=True, prepare="", **view):
        self.start("--interval", "0", *options)
        if prepare:
            script = self.cdp("Page.addScriptToEvaluateOnNewDocument",
                              source=prepare)
        self.open("monitor.html", **view)
        if prepare:
            self.cdp("Page.removeScriptToEvaluateOnNewDocument", **script)
        self.prefix = self.script("return prefix")
        self.wait_for_state("live")
        if source:
            self.click("#source-btn")
            self.wait_for_figures(40)

    # --------------------------------------------------- what is on the page

    def state(self):
        return self.find("#state").get_attribute("data-state")

    def wait_for_state(self, state):
        self.wait(lambda: self.state() == state, f"the page is {state}")

    def figures(self):
        """For each series the source's numbers of what is on the chart."""
        return self.script("""
            return SERIES.map(({ points }) => points.map(({ n }) => n))""")

    def wait_for_figures(self, count):
        self.wait(lambda: all(len(one) >= count for one in self.figures()),
                  f"{count} figures of each series")

    def check_complete(self):
        """Nothing is missing on the chart, and nothing twice."""
        for numbers in self.figures():
            expected = list(range(numbers[0], numbers[0] + len(numbers)))
            self.assertEqual(numbers, expected)
        self.assertEqual(self.text("#missing"), "0")
        self.assertEqual(self.joints(), 3, "each line is in one piece")

    def joints(self):
        """Where a line on the chart begins."""
        return self.script("""
            return SERIES.flatMap(({ points }) => points)
              .filter(({ joined }) => !joined).length""")

    def findings(self):
        return self.script("""
            return [...document.querySelectorAll("#findings li")]
              .map((row) => row.querySelector("span").textContent)""")

    def wait_for_finding(self, text):
        self.wait(lambda: any(text in one for one in self.findings()),
                  f"“{text}” is told")

    def measured(self):
        """The number of the newest figure that the source has measured."""
        return self.script("return source.number")

    def wait_for_measured(self, more):
        wanted = self.measured() + more
        self.wait(lambda: self.measured() >= wanted, f"{more} more measured")

    def coloured(self, variable):
        return self.script(COLOURED, variable)

    # ------------------------------------------------------------------ tests

    def test_live(self):
        self.begin()
        self.wait(lambda: 50 <= int(self.text("#rate")) <= 80,
                  "about 60 events a second")
        p50, p99 = self.wait(lambda: self.ages(), "the age of events")
        self.assertLessEqual(0, p50)
        self.assertLessEqual(p50, p99)
        self.check_complete()
        # one connection, which is in all four topics
        self.assertEqual(self.script(
            "return new URL(stream.url).searchParams.getAll('topic')"),
            [f"{self.prefix}/{topic}" for topic in TOPICS])
        for topic in TOPICS:
            _, answer = self.publish(f"{self.prefix}/{topic}", "text")
            self.assertEqual(json.loads(answer)["subscribers"], 1)
        self.assertEqual(self.coloured("--caught-surface"), 0)
        self.assertGreater(self.coloured("--series-1"), 100)

    def ages(self):
        words = self.text("#age").split()
        return len(words) == 4 and (int(words[0]), int(words[2]))

    def test_pause(self):
        self.begin()
        self.click("#pause-btn")
        self.wait_for_state("paused")
        held = self.figures()
        self.wait_for_measured(60)
        self.assertEqual(self.figures(), held, "nothing comes while it pauses")
        self.press("Enter")
        self.wait_for_finding("Caught up on")
        self.check_complete()
        self.assertGreater(len(self.figures()[0]), len(held[0]) + 50)
        self.assertGreater(self.coloured("--caught-surface"), 1000)
        self.assertEqual(self.script("return gaps.length"), 0)
        self.shot("monitor-caught-up")
        self.wait(lambda: self.script(
            "return SERIES.every(({ last }) => !last.caught)"), "it is live")

    def test_pause_longer_than_the_history(self):
        self.begin("--history", "30")
        self.click("#pause-btn")
        self.wait_for_state("paused")
        self.wait_for_measured(60)
        self.click("#pause-btn")
        self.wait_for_finding("told of a gap")
        self.wait(lambda: int(self.text("#missing")) > 100, "figures are missing")
        self.wait_for_figures(60)
        self.assertGreater(self.coloured("--warn-surface"), 1000)
        self.assertEqual(self.joints(), 6, "each line has one gap")
        self.shot("monitor-gap")

    def test_killed_with_a_history_file(self):
        self.allow_outage()
        self.begin(*OUTAGE, "--history-file", f"{self.folder}/history")
        self.server.kill()
        self.wait_for_state("reconnecting")
        self.wait(lambda: "cannot be reached" in self.text("#source-status"),
                  "the source says so")
        self.wait_for_measured(20)
        self.server.run()
        self.wait_for_state("live")
        last = self.measured()
        self.wait(lambda: all(one[-1] > last for one in self.figures()),
                  "what waited has come")
        self.check_complete()
        self.assertFalse(any("gap" in one for one in self.findings()))

    def test_killed_without_one(self):
        self.allow_outage()
        self.begin(*OUTAGE)
        self.server.kill()
        self.wait_for_state("reconnecting")
        self.server.run()
        self.wait_for_finding("told of a gap")
        last = self.measured()
        self.wait(lambda: all(one[-1] > last for one in self.figures()),
                  "figures come again")
        self.assertEqual(self.script("return gaps.length"), 1)

    def test_two_tabs(self):
        self.begin()
        last = self.measured()
        address = self.find("#tab-link").get_attribute("href")
        self.tab()
        self.open(address)
        # what the window holds comes at once
        self.wait_for_figures(last)
        self.assertEqual([one[0] for one in self.figures()], [1, 1, 1])
        self.check_complete()
        self.click("#source-btn")
        self.switch(0)
        self.wait(lambda: "in another tab" in self.text("#source-status"),
                  "the other tab has taken over")
        for tab in (0, 1):
            self.switch(tab)
            self.wait(lambda: self.script(
                "return new Set(SERIES.map(({ last }) => last.run)).size === 1 "
                "&& SERIES.every(({ last }) => last.n > 20)"),
                "all figures are of the new source")
            self.assertEqual(self.text("#missing"), "0")
            self.assertEqual(self.joints(), 6, "two sources, two lines")

    def test_hidden(self):
        self.begin(prepare=FRAMES)
        self.driver.minimize_window()
        self.wait(lambda: self.script("return document.hidden"), "it is hidden")
        frames = self.script("return painted")
        read = self.script("return received")
        self.wait(lambda: self.script("return received") > read + 200,
                  "it goes on reading")
        self.assertLessEqual(self.script("return painted"), frames + 1)
        self.assertEqual(self.script("return unpainted.length"), 0)
        self.driver.set_window_rect(0, 0, 1280, 800)
        self.wait(lambda: self.script("return painted") > frames + 5,
                  "it paints again")
        self.check_complete()

    def test_what_is_published_is_text(self):
        self.begin(source=False)
        for topic in TOPICS:
            for query in ("", f"?event={topic}"):
                for text in (MARKUP, "null", f'{{"value":"{topic}"}}'):
                    text = f"{text} {topic}{query}"
                    self.publish(f"{self.prefix}/{topic}", text, query)
                    self.wait_for_finding(text)
        bad = json.dumps({"at": 1e300, "en": "never", "zh": "从不"})
        self.publish(f"{self.prefix}/finding", bad, "?event=finding")
        self.wait_for_finding("1e+300")
        both = json.dumps({"at": time.time() * 1000, "series": MARKUP,
                           "en": f"{MARKUP} en", "zh": f"{MARKUP} zh"})
        self.publish(f"{self.prefix}/finding", both, "?event=finding")
        self.wait_for_finding(f"{MARKUP} en")
        self.speak("zh")
        self.wait_for_finding(f"{MARKUP} zh")
        self.assertEqual(self.find_all("main img"), [])
        self.assertNotEqual(self.driver.title, "run")
        self.shot("monitor-text")

    def test_bounded(self):
        self.begin(source=False)
        now = int(time.time() * 1000)
        for number in range(3):
            self.stream("load", [
                {"run": 1, "n": n, "at": now - 6000 + n, "value": n % 100}
                for n in range(number * 1500, number * 1500 + 1500)])
        self.stream("finding", [
            {"at": now, "series": str(n), "en": f"number {n}", "zh": f"{n}"}
            for n in range(500)])
        self.wait_for_finding("number 499")
        self.assertLessEqual(len(self.findings()), 100)
        self.wait(lambda: self.figures()[0][-1:] == [4499], "the last has come")
        self.assertLessEqual(len(self.figures()[0]), 1800)
        # and what is older than the window goes
        self.stream("queue", [{"run": 1, "n": 1, "at": now - 70000, "value": 1}])
        self.wait(lambda: self.script("return SERIES[2].last?.n === 1"), "came")
        self.wait(lambda: self.figures()[2] == [], "it has gone")

    def stream(self, topic, events):
        body = "".join(f"event: {topic}\ndata: {json.dumps(event)}\n\n"
                       for event in events)
        status, _ = self.server.request(
            "POST", f"/events/{self.prefix}/{topic}", body.encode(),
            {"Content-Type": "text/event-stream"})
        self.assertEqual(status, 201)

    def test_finished(self):
        self.begin("--retry", "100")
        self.click("#source-btn")
        # requests that were under way would open the topics again
        self.wait(lambda: int(self.text("#rate")) == 0, "the source is quiet")
        for topic in TOPICS:
            self.assertEqual(self.delete(f"{self.prefix}/{topic}")[0], 200)
        self.wait_for_state("done")
        self.assertEqual(
            sum("Finished" in one for one in self.findings()), len(TOPICS))
        newest = self.figures()[0][-1]
        self.click("#source-btn")
        self.wait_for_state("live")
        self.wait(lambda: self.figures()[0][-1] < newest, "figures come again")

    def test_refused(self):
        self.allow_console("403")
        self.begin("--publish", "none", source=False)
        self.click("#source-btn")
        self.wait(lambda: "refuses" in self.text("#source-status"),
                  "the server's reason is shown")
        self.assertEqual(self.text("#source-btn"), "Start the source")
        self.shot("monitor-refused")

    def test_less_motion(self):
        self.begin(source=False, prepare=FRAMES)
        self.cdp("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-reduced-motion", "value": "reduce"}])
        self.click("#source-btn")
        self.wait_for_figures(20)
        painted, read = self.script("return [painted, received]")
        self.wait(lambda: self.script("return received") >= read + 180,
                  "three seconds of figures")
        self.assertLessEqual(self.script("return painted") - painted, 10)

    def test_smooth(self):
        """What the page itself needs for a frame, in the processor's time; how
        long frames take also depends on what else the machine does, so that is
        shown only."""
        self.begin(prepare=FRAMES)
        self.wait_for_figures(100)
        used, frames = self.work(3)
        self.assertGreater(frames, 10)
        self.assertLess(used / frames, 0.025, "processor time for a frame")
        print(f"  a frame: {1000 * used / frames:.1f} ms of the processor's "
              f"time; the longest of two seconds: {max(self.frames(2)):.0f} ms")

    def frames(self, seconds):
        self.script("frames.length = 0")
        self.wait(lambda: self.script("""
            return frames.reduce((sum, time) => sum + time, 0)""")
            >= 1000 * seconds, f"frames of {seconds} s")
        return self.script("return frames")

    def work(self, seconds):
        """The processor's time of the page's thread, and its frames."""
        self.cdp("Performance.enable", timeDomain="threadTicks")
        before = self.task_time()
        frames = len(self.frames(seconds))
        used = self.task_time() - before
        self.cdp("Performance.disable")
        return used, frames

    def task_time(self):
        metrics = self.cdp("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics
                    if metric["name"] == "TaskDuration")

    def test_keyboard(self):
        self.begin(source=False)
        self.press_on("source-btn")
        self.wait_for_figures(20)
        self.press_on("pause-btn")
        self.wait_for_state("paused")
        self.assertEqual(self.focus(), "pause-btn")
        self.press("Space")
        self.wait_for_state("live")
        self.wait_for_finding("Caught up")
        for stop in ("tab-link", "findings"):
            self.press("Tab")
            self.assertEqual(self.focus(), stop)

    def focus(self):
        return self.script("return document.activeElement.id")

    def press_on(self, button):
        for _ in range(20):
            if self.focus() == button:
                return self.press("Enter")
            self.press("Tab")
        self.fail(f"{button} cannot be reached by key")

    def test_matrix(self):
        self.begin(source=False)
        self.matrix("monitor-begun")
        self.look()
        self.speak("en")
        self.click("#source-btn")
        self.wait_for_figures(120)
        self.click("#pause-btn")
        self.wait_for_measured(60)
        self.click("#pause-btn")
        self.wait_for_finding("Caught up on")
        self.wait_for_figures(200)
        self.matrix("monitor")
