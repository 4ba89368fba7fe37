"""What Chromium does when ssed is away: an EventSource, which has to be helped,
and SsedSource, which has not."""

import os

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

import harness
from harness import FOLDER, HERE, ProxyTest
from shared import SECONDS, wait

# headless, and speaking to nobody but the proxies
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update",
         "--disable-default-apps", f"--user-data-dir={FOLDER}/profile")

OPEN = """
window.data = {};
window.sources = {};
for (const [name, kind, url] of arguments[0]) {
  data[name] = [];
  sources[name] = new { EventSource, SsedSource }[kind](url);
  sources[name].onmessage = (event) => data[name].push(event.data);
}"""


class Browser(ProxyTest):
    def setUp(self):
        super().setUp()
        options = Options()
        options.binary_location = "/usr/bin/chromium"
        options.accept_insecure_certs = True
        for flag in FLAGS:
            options.add_argument(flag)
        self.driver = webdriver.Chrome(
            options=options, service=Service("/usr/bin/chromedriver"))
        self.addCleanup(self.driver.quit)

    def ask(self, name, what):
        return self.driver.execute_script(f"return {what}[arguments[0]]", name)

    def state(self, name):
        return self.driver.execute_script(
            "return sources[arguments[0]].readyState", name)

    def test_while_ssed_is_away(self):
        """Most of it from a page of another origin."""
        self.start_server(*self.keep())
        sources, helped, unhelped = [], [], []
        for kind in (harness.Caddy, harness.HAProxy, harness.Nginx):
            name = kind.__name__
            self.start_proxy(kind)
            url = f"https://localhost:{self.proxy.port}/events/x"
            helped.append(name)
            sources.append((name, "EventSource", url))
            self.start_proxy(kind, kind.unhelped)
            url = f"https://localhost:{self.proxy.port}/events/x"
            unhelped.append(f"{name} as it comes")
            sources.append((unhelped[-1], "EventSource", url))
            helped.append(f"{name} with ssed.js")
            sources.append((helped[-1], "SsedSource", url))
        self.driver.get(f"https://localhost:{self.proxy.port}/")
        with open(os.path.join(HERE, "../../static/ssed.js")) as file:
            self.driver.execute_script(file.read() + OPEN, sources)
        for name, *_ in sources:
            wait(lambda: self.state(name) == 1, f"{name} is open")
        self.publish()
        for name, *_ in sources:
            wait(lambda: self.ask(name, "data") == ["0"], f"{name} reads")
        self.server.kill()
        for name in unhelped:
            wait(lambda: self.state(name) == 2, f"{name} gives up")
        self.server.run()
        self.publish()
        for name in helped:
            wait(lambda: self.ask(name, "data") == ["0", "1"],
                 f"{name} comes back", 2 * SECONDS)
        for name in unhelped:
            self.assertEqual(self.ask(name, "data"), ["0"])
