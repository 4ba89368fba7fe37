"""What the tests of the pages share: one browser, and for each test a page of
its own and a server of its own.

    class Chat(PageTest):
        def test_something(self):
            self.start("--interval", "0")
            self.open("chat.html")
            self.click("#send")
            self.wait(lambda: "x" in self.text("#answer"), "the answer has x")
"""

import atexit
import contextlib
import os
import re
import shutil
import signal
import tempfile
import unittest
from base64 import b64decode

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from urllib3.exceptions import HTTPError

from proxy import Proxy
from shared import SECONDS, Server, give_up, stop_servers, wait

# for all that is on the disk only while the tests run
FOLDER = tempfile.mkdtemp(prefix="ssed-browser-")
SHOTS = os.path.abspath(".build/screenshots")
WIDTHS = {1280: 800, 375: 812}
VIEWS = [(width, dark, language) for width in WIDTHS
         for dark in (False, True) for language in ("en", "zh")]

# headless, and speaking to nobody but the servers of the tests
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic
    --disable-dev-shm-usage --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-default-apps
    --force-color-profile=srgb --lang=en-US""".split()

# Where a page puts its text too wide, or forgets a word.
FITS = """
return {
  wide: document.documentElement.scrollWidth - innerWidth,
  wordless: [...document.querySelectorAll("[data-text]")]
    .filter((node) => !node.textContent.trim())
    .map((node) => node.dataset.text),
}"""

# Texts with less contrast than WCAG's level AA asks for, as "2.9 the text".
# What does nothing now (aria-disabled) is exempt, as it is there.
PALE = """
const context = new OffscreenCanvas(1, 1).getContext("2d",
  { willReadFrequently: true });

// paints colours over each other, the last on top
function painted(colours) {
  context.clearRect(0, 0, 1, 1);
  for (const { colour, alpha } of colours) {
    context.globalAlpha = alpha;
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
  }
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => value / 255).map((value) =>
    value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(node) {
  const layers = [{ colour: getComputedStyle(node).color, alpha: 1 }];
  for (let up = node; up; up = up.parentElement) {
    const { backgroundColor, opacity } = getComputedStyle(up);
    layers.unshift({ colour: backgroundColor, alpha: 1 });
    // an opacity is that of all that is inside
    for (const layer of layers) layer.alpha *= opacity;
  }
  layers.unshift({ colour: "white", alpha: 1 });
  const [dark, light] = [painted(layers), painted(layers.slice(0, -1))]
    .map(luminance).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

const pale = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim();
  const node = walker.currentNode.parentElement;
  if (!text || node.closest("[aria-disabled=true], script, noscript") ||
      !node.checkVisibility()) continue;
  const { fontSize, fontWeight } = getComputedStyle(node);
  const large = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
  const found = contrast(node);
  if (found < (large ? 3 : 4.5)) pale.add(`${found.toFixed(1)} ${text}`);
}
return [...pale]"""


class Browser:
    """The one Chromium of a run, started by the first test that needs it."""

    driver = None

    @classmethod
    def get(cls):
        if not cls.driver:
            options = Options()
            options.binary_location = "/usr/bin/chromium"
            for flag in [*FLAGS, f"--user-data-dir={FOLDER}/profile"]:
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            service = Service("/usr/bin/chromedriver")
            atexit.register(cls.quit, service)
            # an interrupt from the keyboard is for quit() to pass on
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            cls.driver = webdriver.Chrome(options=options, service=service)
            signal.signal(signal.SIGINT, handler)
            cls.driver.set_page_load_timeout(SECONDS)
            cls.driver.set_script_timeout(SECONDS)
        return cls.driver

    @classmethod
    def quit(cls, service):
        # one that was interrupted together with this program has gone
        with contextlib.suppress(WebDriverException, HTTPError):
            if cls.driver:
                cls.driver.quit()
        service.stop()


def remove_folder():
    shutil.rmtree(FOLDER, ignore_errors=True)
    return not os.path.exists(FOLDER)


# the last of these comes first, and Browser.get() adds one
atexit.register(lambda: wait(remove_folder, f"{FOLDER} is removed"))
atexit.register(stop_servers)


class PageTest(unittest.TestCase):
    seconds = 120  # that a test may take

    # ---------------------------------------------------------- life cycle

    def setUp(self):
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(self.seconds)
        self.addCleanup(signal.alarm, 0)
        self.allowed = []
        self.folder = tempfile.mkdtemp(dir=FOLDER)
        self.addCleanup(stop_servers)
        self.driver = Browser.get()
        self.fresh_tab()

    def fresh_tab(self):
        """Closes what the test before left, and its memory with it."""
        old = self.driver.window_handles
        self.driver.switch_to.new_window("tab")
        new = self.driver.current_window_handle
        for handle in old:
            self.driver.switch_to.window(handle)
            self.driver.close()
        self.driver.switch_to.window(new)
        self.driver.get_log("browser")
        self.cdp("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        self.cdp("Network.clearBrowserCache")
        self.cdp("Page.bringToFront")

    def tearDown(self):
        self.check_console()
        # its streams end, and with them what a server would wait for
        for handle in self.driver.window_handles:
            self.driver.switch_to.window(handle)
            self.driver.get("about:blank")
        for server in list(Server.running):
            server.stop()

    def check_console(self):
        lines = [entry["message"] for entry in self.driver.get_log("browser")
                 if entry["level"] == "SEVERE"]
        bad = [line for line in lines
               if not any(re.search(allowed, line) for allowed in self.allowed)]
        self.assertEqual(bad, [], "errors in the browser's console")

    def allow_console(self, pattern):
        """Errors that match it (a regular expression) are provoked."""
        self.allowed.append(pattern)

    def allow_outage(self):
        """The test has a server go away, which Chromium calls an error."""
        self.allow_console(r"net::ERR_(CONNECTION_|INCOMPLETE_CHUNKED|"
                           r"EMPTY_RESPONSE|SOCKET_)")

    # -------------------------------------------------------------- server

    def start(self, *options):
        """Another server; the newest is self.server."""
        self.server = Server(*options)
        return self.server

    def proxy(self):
        """Another proxy before self.server, see proxy.py."""
        proxy = Proxy(self.server.port)
        self.addCleanup(proxy.close)
        return proxy

    def publish(self, topic, body, query=""):
        """POST; an empty topic is the main stream. (status, text)"""
        path = f"/events/{topic}" if topic else "/events"
        if isinstance(body, str):
            body = body.encode()
        return self.server.request("POST", path + query, body)

    def delete(self, topic):
        return self.server.request("DELETE", f"/events/{topic}")

    # ------------------------------------------------------------- browser

    def cdp(self, method, **values):
        return self.driver.execute_cdp_cmd(method, values)

    def open(self, page, width=1280, dark=False, language="en"):
        """A page of the server, or any address, in the present tab."""
        self.look(width, dark)
        url = page if page.startswith("http") else self.server.url + page
        # set before the page's own scripts run, and left alone afterwards
        script = self.cdp("Page.addScriptToEvaluateOnNewDocument", source=(
            f"localStorage.setItem('ssed_language', '{language}')"))
        self.driver.get(url)
        self.cdp("Page.removeScriptToEvaluateOnNewDocument", **script)

    def look(self, width=1280, dark=False, height=None):
        scheme = {"name": "prefers-color-scheme",
                  "value": "dark" if dark else "light"}
        self.cdp("Emulation.setDeviceMetricsOverride", width=width,
                 height=height or WIDTHS.get(width, 800), deviceScaleFactor=1,
                 mobile=False)
        # a shot of the whole page has none, and so no narrower page
        self.cdp("Emulation.setScrollbarsHidden", hidden=True)
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def speak(self, language):
        """Changes the language with the bar's button, without the pointer,
        which would be seen hovering somewhere on the screenshots."""
        if self.script("return document.documentElement.lang.slice(0, 2)") \
                != language:
            self.script("document.getElementById('language-btn').click()")

    def reload(self):
        self.driver.refresh()

    def tab(self):
        """Another tab of the same profile, in front now."""
        self.driver.switch_to.new_window("tab")
        return len(self.driver.window_handles) - 1

    def switch(self, n):
        """To the tab that was opened as the nth, counted from 0."""
        self.driver.switch_to.window(self.driver.window_handles[n])
        self.cdp("Page.bringToFront")

    def answer(self, yes):
        """To the question that the page asks with confirm()."""
        question = self.wait(lambda: self.driver.switch_to.alert, "a question")
        text = question.text
        (question.accept if yes else question.dismiss)()
        return text

    # --------------------------------------------------------------- pages

    def find(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def find_all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css):
        """Its textContent, also where it is hidden or scrolled away."""
        return self.find(css).get_attribute("textContent")

    def click(self, css):
        self.find(css).click()

    def type(self, css, text):
        self.find(css).send_keys(text)

    def press(self, *keys):
        """Keys by their names (Tab, Enter, Space, "Shift+Tab") or letters."""
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            chain = webdriver.ActionChains(self.driver, duration=0)
            for name in held:
                chain.key_down(getattr(Keys, name.upper()))
            chain.send_keys(getattr(Keys, last.upper()) if len(last) > 1
                            else last)
            for name in held:
                chain.key_up(getattr(Keys, name.upper()))
            chain.perform()

    def script(self, source, *values):
        return self.driver.execute_script(source, *values)

    def wait(self, condition, what, seconds=SECONDS):
        """condition() may also fail for an element that is not there yet."""
        trouble = ""

        def fulfilled():
            nonlocal trouble
            try:
                return condition()
            except WebDriverException as error:
                trouble = f" ({error.msg})"
                return False

        try:
            return wait(fulfilled, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}{trouble}") from None

    # --------------------------------------------------------- screenshots

    def shot(self, name):
        """Keeps the whole page as .build/screenshots/NAME.png."""
        os.makedirs(SHOTS, exist_ok=True)
        if name == "failed":
            name = f"failed-{self.id()}"
        path = os.path.join(SHOTS, f"{name}.png")
        # the page as it is painted now, and not as of some frames ago
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        width, height, below = self.script("""
            const { clientWidth, scrollHeight } = document.documentElement;
            const height = Math.max(innerHeight, scrollHeight);
            return [clientWidth, height, height > innerHeight];""")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        # Chromium paints what is below the viewport one or two shots too late
        for _ in range(3 if below else 1):
            image = self.cdp("Page.captureScreenshot",
                             captureBeyondViewport=True, clip=clip)
        with open(path, "wb") as file:
            file.write(b64decode(image["data"]))
        return path

    def misfits(self):
        """What is wrong with how the page looks, in words."""
        fits = self.script(FITS)
        if fits["wide"] > 0:
            yield f"{fits['wide']} pixels too wide"
        yield from (f"no word for {text}" for text in fits["wordless"])
        yield from (f"too little contrast: {text}"
                    for text in self.script(PALE))

    def check_fits(self):
        self.assertEqual(list(self.misfits()), [])

    def matrix(self, name):
        """The page as it is now in every width, colour and language, without
        a reload: checked, and kept as NAME-1280-dark-zh.png and so on."""
        found = {}
        for width, dark, language in VIEWS:
            view = f"{width}-{'dark' if dark else 'light'}-{language}"
            self.look(width, dark)
            self.speak(language)
            self.shot(f"{name}-{view}")
            for misfit in self.misfits():
                found.setdefault(misfit, []).append(view)
        self.assertEqual(found, {})
