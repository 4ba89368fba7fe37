"""Topics that need a token: from its issue to its expiry and beyond, in a page;
and what the bundled pages say without one."""

import contextlib
import http.server
import json
import os
import shutil
import threading
from urllib.parse import urlencode

from harness import PageTest
from shared import LEEWAY, sign, ssed

SECRET = "a secret that only the back end and ssed know"
COOKIE = "ssed_token"

# As the README has it: the cookie comes from a back end, before the stream and
# again when its token has expired. `got` is what came, `said` what happened.
PAGE = """<!doctype html>
<html lang="en">
<title>rights</title>
<link rel="icon" href="data:,">
<script src="ssed.js"></script>
<script>
const query = new URLSearchParams(location.search);
const got = [], said = [];
const login = () => fetch(query.get("login"), { credentials: "include" });
let source;

async function read(url) {
  await login();
  source = new EventSource(url);
  source.onmessage = (event) => got.push(event.data);
  source.onerror = () => said.push("error " + source.readyState);
  source.addEventListener("ssed.expired", (event) => {
    said.push("expired " + event.data);
    source.close();
    read("/events/x?lastEventId=" + event.lastEventId);
  });
}

function share(token) {
  source = new SsedSource("/events/x?lastEventId=earliest", token && { token });
  source.onmessage = (event) => got.push(event.data);
  source.onerror = () => said.push("error " + source.readyState);
  source.addEventListener("expired", (event) => {
    said.push("expired " + event.data);
    if (!token) login();
  });
}

const ways = {
  cookie: () => read("/events/x?lastEventId=earliest"),
  "": () => (source = new EventSource("/events/x")),
  "shared cookie": () => login().then(() => share()),
  "shared renewal": () => share(login),
  "shared query": () =>
    share(async () => (await fetch(query.get("token"))).text()),
};
ways[query.get("way")]();
</script>
</html>
"""


class BackEnd:
    """/login gives the cookie, /token the token: a new one with each
    request."""

    def __init__(self, claims):
        self.claims = claims
        self.tokens = []
        back_end = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                token = back_end.token()
                origin = self.headers.get("Origin")
                self.send_response(200)
                if origin:
                    self.send_header("Access-Control-Allow-Origin", origin)
                    self.send_header("Access-Control-Allow-Credentials", "true")
                if self.path == "/login":
                    self.send_header(
                        "Set-Cookie", f"{COOKIE}={token}; Path=/events; "
                        "HttpOnly; SameSite=Strict")
                    token = ""
                self.end_headers()
                self.wfile.write(token.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self):
        self.tokens.append(sign(SECRET, self.claims))
        return self.tokens[-1]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Rights(PageTest):
    def begin(self, *options, read="x", exp=3600):
        root = os.path.join(self.folder, "root")
        shutil.copytree(os.path.join(os.path.dirname(ssed()), "static"), root)
        with open(os.path.join(root, "rights.html"), "w") as file:
            file.write(PAGE)
        secret = os.path.join(self.folder, "secret")
        with open(secret, "w", opener=lambda path, flags:
                  os.open(path, flags, 0o600)) as file:
            file.write(SECRET + "\n")
        self.start("--root", root, "--secret-file", secret, "--interval", "0",
                   "--retry", "100", *options)
        self.back_end = BackEnd({"read": [read], "exp": exp})
        self.addCleanup(self.back_end.close)
        self.writer = sign(SECRET, {"write": ["*"], "exp": 3600})
        self.sent = 0

    def visit(self, way):
        login = self.back_end.url + "/login"
        self.open(self.server.url + "rights.html?" + urlencode(
            {"way": way, "login": login, "token": self.back_end.url + "/token"}))

    def send(self):
        headers = {"Authorization": "Bearer " + self.writer}
        status, _ = self.server.request("POST", "/events/x", str(self.sent),
                                        headers)
        self.assertEqual(status, 201)
        self.sent += 1

    @contextlib.contextmanager
    def publishing(self):
        over = threading.Event()

        def publish():
            while not over.wait(0.01):
                self.send()

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def check_all(self):
        wanted = [str(n) for n in range(self.sent)]
        self.wait(lambda: len(self.script("return got")) >= len(wanted), "all")
        self.assertEqual(self.script("return got"), wanted)

    def expired(self):
        return [json.loads(said[8:])["exp"]
                for said in self.script("return said")
                if said.startswith("expired ")]

    def check_expiry(self, way, tabs=1):
        self.begin(exp=2 - LEEWAY)  # it is accepted for two seconds more
        with self.publishing():
            for n in range(tabs):
                if n:
                    self.tab()
                self.visit(way)
            self.wait(lambda: len(self.expired()) >= 2, "two have expired")
            self.back_end.claims["exp"] = 3600
            before = self.sent
            self.wait(lambda: self.sent > before + 50, "more is sent")
        for n in range(tabs):
            self.switch(n)
            self.check_all()
            self.wait(lambda: self.script("return source.readyState") == 1,
                      "it is open")

    def test_a_cookie_from_issue_to_expiry(self):
        self.check_expiry("cookie")
        log = "".join(self.server.log)
        self.assertGreaterEqual(log.count("reason=expired"), 2)
        for token in self.back_end.tokens:
            self.assertNotIn(token.rsplit(".", 1)[1], log)

    def test_ssed_js_with_a_cookie_that_is_renewed_at_expiry(self):
        self.check_expiry("shared cookie")

    def test_ssed_js_renews_the_cookie(self):
        self.check_expiry("shared renewal")

    def test_ssed_js_with_a_token_in_the_query(self):
        self.check_expiry("shared query")

    def test_ssed_js_in_two_tabs(self):
        self.check_expiry("shared query", tabs=2)

    def test_without_a_token_an_event_source_stops(self):
        self.begin()
        self.allow_console("401")
        self.visit("")
        self.wait(lambda: self.script("return source.readyState") == 2,
                  "it is closed")

    def test_ssed_js_stops_where_it_may_not_read(self):
        self.begin(read="y")
        self.allow_console("403")
        self.visit("shared query")
        self.wait(lambda: self.script("return source.readyState") == 2,
                  "it is closed")
        self.assertEqual(self.script("return said"), ["error 2"])

    # ------------------------------------------------------------- the pages

    def refused(self):
        shown = self.find(".refused")
        return shown.is_displayed() and shown.text

    def test_pages_say_why_they_may_not_read(self):
        self.begin()
        self.allow_console("401")
        for page in ("", "chat.html?topic=x", "progress.html?topic=x",
                     "monitor.html", "clock.html"):
            with self.subTest(page=page):
                self.open(page)
                self.wait(self.refused, "the page says so")
                self.assertIn("ssed_token", self.refused())
                self.assertIn("does not let", self.refused())
                self.speak("zh")
                self.assertIn("不允许", self.refused())
                self.assertIn("ssed_token", self.refused())
                self.look(375)
                self.check_fits()

    def test_a_page_reads_when_it_may(self):
        self.begin(read="")
        self.allow_console("401")
        self.open("")
        self.wait(self.refused, "the page says so")
        self.driver.add_cookie({"name": COOKIE, "value": self.back_end.token(),
                                "httpOnly": True})
        self.wait(lambda: not self.find(".refused").is_displayed(), "it reads")
        self.wait(lambda: self.text("#connection-status") == "Connected",
                  "it is connected")

    def test_the_main_stream_is_public(self):
        self.begin("--public", "")
        self.open("")
        self.wait(lambda: self.text("#connection-status") == "Connected",
                  "it is connected")
        self.assertFalse(self.find(".refused").is_displayed())

    def test_inspect_shows_it(self):
        self.begin("--heartbeat", "1")
        self.allow_console("401")
        for topics in ("topic=x", ""):
            self.driver.get(self.server.url)
            token = sign(SECRET, {"read": ["x", ""], "exp": 2 - LEEWAY})
            self.driver.add_cookie({"name": COOKIE, "value": token})
            self.open("inspect.html?" + topics)
            self.wait(lambda: "Expired: the token was valid until" in
                      self.text("#rows"), "the block")
            self.wait(lambda: "401" in self.text("#rows"), "the refusal")
            self.assertIn("the token has expired", self.text("#rows"))
