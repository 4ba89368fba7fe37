"""What holds on each page: the bar, the languages, the keys."""

from contextlib import contextmanager

from harness import PageTest

FILES = ["", "chat.html", "progress.html", "monitor.html", "inspect.html",
         "clock.html"]
# what the key Tab should reach, in its order; of radio buttons one
CONTROLS = """
const radios = new Set();
return [...document.querySelectorAll(
  "a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((node) => node.checkVisibility({ visibilityProperty: true }))
  .filter((node) => !node.disabled && node.tabIndex >= 0)
  .filter(({ type, name }) => {
    const first = type !== "radio" || !radios.has(name);
    if (type === "radio") radios.add(name);
    return first;
  })"""
FOCUSED = """
const node = document.activeElement;
const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(node);
return {
  node: node === document.body ? null : node,
  seen: (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) ||
    boxShadow !== "none",
  name: node.outerHTML.slice(0, 100),
}"""
# how a control is told by its name, as a screen reader does
NAMELESS = CONTROLS + """
  .filter((node) => !(node.textContent.trim() || node.title ||
    node.ariaLabel || node.placeholder || node.value ||
    node.labels?.[0]?.textContent.trim()))
  .map((node) => node.outerHTML)"""


class AllPages(PageTest):
    def setUp(self):
        super().setUp()
        self.start("--interval", "0")

    @contextmanager
    def page(self, file, language="en"):
        with self.subTest(page=file or "index.html", language=language):
            self.open(file, language=language)
            self.wait(self.settled, "the page is there")
            yield
            # errors are those of this page
            self.check_console()

    def settled(self):
        """The controls, when they have not changed for two frames."""
        controls = self.script(CONTROLS)
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return self.script(CONTROLS) == controls and controls

    def links(self):
        return self.script("""
            return [...document.querySelectorAll(".bar a")]
              .map((link) => link.getAttribute("href"))""")

    def language(self):
        return self.script("return document.documentElement.lang")[:2]

    def test_bar(self):
        for file in FILES:
            with self.page(file):
                self.assertEqual(self.links(), [name or "./" for name in FILES])
                marked = self.find_all(".bar [aria-current=page]")
                self.assertEqual(
                    [link.get_attribute("href") for link in marked],
                    [self.server.url + file])
                self.assertTrue(self.script(
                    "return document.body.firstElementChild"
                    ".matches('nav.bar')"))

    def test_links_lead_from_page_to_page(self):
        self.open("clock.html")
        for link in self.links():
            self.click(f".bar a[href='{link}']")
            # a page may add what it shows: ?topic=…
            url = self.server.url + link.removeprefix("./")
            self.wait(lambda: self.driver.current_url.split("?")[0] == url, url)
            self.wait(lambda: self.text("h1").strip(), "a heading")

    def test_each_has_a_title(self):
        titles = set()
        for language in ("en", "zh"):
            for file in FILES:
                with self.page(file, language):
                    self.assertRegex(self.driver.title, r"^ssed · .")
                    self.assertEqual(len(self.find_all("h1")), 1)
                    self.assertTrue(self.text("h1").strip())
                    titles.add(self.driver.title)
        # clock.html has both languages in one
        self.assertEqual(len(titles), 2 * len(FILES) - 1, titles)

    def test_the_language_holds(self):
        self.open("")
        for language, other in (("zh", "en"), ("en", "zh")):
            self.speak(language)
            for link in self.links():
                self.click(f".bar a[href='{link}']")
                self.wait(lambda: self.text("#language-btn"), "the button")
                self.assertEqual(self.language(), language)
                self.assertEqual(self.find("#language-btn")
                                 .get_attribute("lang")[:2], other)

    def test_it_is_the_browsers_language_at_first(self):
        self.driver.get(self.server.url)
        self.assertEqual(self.language(), "en")

    def test_tab_reaches_each_control(self):
        for file in FILES:
            with self.page(file):
                for node in self.script(CONTROLS):
                    self.press("Tab")
                    focus = self.script(FOCUSED)
                    self.assertEqual(
                        self.group(focus["node"]), self.group(node),
                        f"{focus['name']} has the focus, and not "
                        f"{node.get_attribute('outerHTML')}")
                    self.assertTrue(focus["seen"], f"no ring: {focus['name']}")
                self.assertEqual(self.find_all(
                    "[tabindex]:not([tabindex='0'], [tabindex='-1'])"), [])

    def group(self, node):
        """For a radio button what it shares with its group."""
        if node and node.get_attribute("type") == "radio":
            return node.get_attribute("name")
        return node

    def test_each_control_has_a_name(self):
        for language in ("en", "zh"):
            for file in FILES:
                with self.page(file, language):
                    self.assertEqual(self.script(NAMELESS), [])

    def test_first_views(self):
        # index.html and clock.html begin at once: see their own tests
        for file in FILES[1:-1]:
            with self.page(file):
                self.matrix(f"first-{file.removesuffix('.html')}")
