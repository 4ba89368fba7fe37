"""The smallest example, clock.html."""

from harness import PageTest

MARKUP = "<img src=x onerror=\"document.title = 'run'\">"


class Clock(PageTest):
    def items(self):
        return self.script(
            "return [...list.children].map((item) => item.textContent)")

    def test_the_newest_ten(self):
        self.start("--interval", "20")
        self.open("clock.html")
        self.wait(lambda: len(self.items()) == 10, "ten messages")
        self.assertTrue(all("当前时间" in item for item in self.items()))
        first = self.items()[0]
        self.wait(lambda: first not in self.items(), "all of them have gone")
        self.assertEqual(len(self.items()), 10)

    def test_it_comes_back(self):
        self.allow_outage()
        self.start("--interval", "0", "--retry", "100", "--history-file",
                   f"{self.folder}/history")
        self.open("clock.html")
        self.publish_when_open("one")
        self.server.kill()
        self.server.restart()
        self.publish("", "two")
        self.wait(lambda: self.items() == ["two", "one"], "both, once")

    def publish_when_open(self, text):
        self.wait(lambda: self.script("return source.readyState") == 1, "open")
        self.publish("", text)
        self.wait(lambda: self.items()[:1] == [text], f"“{text}” is shown")

    def test_markup_is_text(self):
        self.start("--interval", "0")
        self.open("clock.html")
        self.publish_when_open(MARKUP)
        self.assertEqual(self.find_all("main img"), [])

    def test_it_shows_its_own_code(self):
        self.start()
        self.open("clock.html")
        self.assertIn('new EventSource("/events")', self.text("#code"))
        self.assertIn('<ul id="list"></ul>', self.text("#code"))

    def test_matrix(self):
        self.start("--interval", "0")
        self.open("clock.html")
        for text in ("当前时间: 2026/11/24 12:00:00", MARKUP, "x" * 120):
            self.publish_when_open(text)
        self.matrix("clock")
