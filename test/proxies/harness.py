"""What the tests of proxies share: nginx, HAProxy and Caddy with the
configurations of README.md, and who speaks through them.

    proxy = Nginx(folder, server.port)                # listens on proxy.port
    browser = Browser(proxy)                          # one HTTP/2 connection
    reader = browser.open("/events/x")                # an EventSource
    wait(lambda: reader.data == ["1", "2"], "both have come")

Each replacement in a configuration has to find what it replaces, so README.md
cannot change without its test.
"""

import atexit
import contextlib
import functools
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest

from shared import (SECONDS, Process, Server, fields_of, free_port, give_up,
                    remove, ssed, stop_processes, stop_servers, wait)

HERE = os.path.dirname(os.path.abspath(__file__))
README = os.path.join(HERE, "..", "..", "README.md")
PATHS = "/etc/ssl/ssed"


def block(text):
    """The block of README.md that has this text."""
    with open(README, encoding="utf-8") as file:
        blocks = re.findall(r"^```\w+\n(.*?)^```$", file.read(), re.M | re.S)
    found, = [each for each in blocks if text in each]
    return found


def replace(text, changes):
    for old, new in changes.items():
        if old not in text:
            raise AssertionError(f"README.md has no more {old!r}")
        text = text.replace(old, new)
    return text


# for all that is on the disk only while the tests run
FOLDER = tempfile.mkdtemp(prefix="ssed-proxies-")
TOKEN = "a-token-that-is-long-enough"

atexit.register(remove, FOLDER)
atexit.register(stop_servers)
atexit.register(stop_processes)


@functools.cache
def certificate():
    """Its file. It is for localhost and signs itself; its key is beside it."""
    path = os.path.join(FOLDER, "cert.pem")
    key = os.path.join(FOLDER, "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
         "30", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", key, "-out", path],
        check=True, stderr=subprocess.DEVNULL)
    with open(os.path.join(FOLDER, "ssed.pem"), "w") as both:
        for name in (path, key):
            with open(name) as file:
                both.write(file.read())
    return path


class Proxy(Process):
    """A proxy before a server. `changes` are made in its configuration, as to
    the ports and paths of README.md."""

    count = 0

    def __init__(self, folder, target, changes=None):
        Proxy.count += 1
        super().__init__(f"{type(self).__name__}-{Proxy.count}", folder)
        self.folder = os.path.join(folder, self.name)
        os.mkdir(self.folder)
        self.port = free_port()
        self.target = target
        certificate()
        self.file = os.path.join(self.folder, "config")
        self.configure(changes or {})
        self.start()

    def configure(self, changes):
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(self.text(changes))

    def start(self):
        self.launch(*self.command())
        wait(self.is_ready, f"{self.name} is ready")

    def is_ready(self):
        self.check()
        with contextlib.suppress(OSError), \
                socket.create_connection(("127.0.0.1", self.port)):
            return True

    def memory(self):
        """The memory of its process and of those that it has started."""
        pids, total = [self.process.pid], 0
        for pid in pids:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                pids += file.read().split()
            with open(f"/proc/{pid}/status") as file:
                resident = re.search(r"VmRSS:\s+(\d+)", file.read())
                total += int(resident[1]) * 1024
        return total

    def request(self, method, path, body=None, headers=None):
        """The status, the header fields and the text, with HTTP/1.1."""
        context = ssl.create_default_context(cafile=certificate())
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=SECONDS, context=context)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()

    def curl(self, *arguments, **options):
        path = arguments[-1]
        return subprocess.Popen(
            ["curl", "-sN", "--cacert", certificate(),
             *arguments[:-1], f"https://localhost:{self.port}{path}"],
            stdout=subprocess.PIPE, **options)


class Nginx(Proxy):
    silent = {"proxy_read_timeout 40s": "proxy_read_timeout 2s"}
    grace = {"worker_shutdown_timeout 30s": "worker_shutdown_timeout 2s"}
    pause = {"client_body_timeout 1h": "client_body_timeout 1s"}
    anonymous = {"proxy_set_header X-Forwarded-For $remote_addr;": "",
                 "proxy_set_header Host $http_host;": ""}
    unhelped = {"error_page 502 504 = @away;": ""}

    def text(self, changes):
        temporary = "".join(
            f"{name}_temp_path {self.folder}/{name};\n" for name in
            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        text = (f"daemon off;\npid {self.folder}/pid;\n" +
                block("worker_shutdown_timeout") +
                f"http {{\naccess_log off;\ngzip on;\n{temporary}\n" +
                block("proxy_pass http") + "}\n")
        return replace(text, {
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "server_name events.example": "server_name localhost",
            "127.0.0.1:3000": f"127.0.0.1:{self.target}",
            PATHS: FOLDER, **changes})

    def command(self):
        return ["/usr/sbin/nginx", "-e", "stderr", "-c", self.file]

    def kill(self):
        """Its workers would outlive it."""
        self.process.terminate()
        self.process.wait(SECONDS)
        Process.running.discard(self)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)


class HAProxy(Proxy):
    silent = {"timeout server 40s": "timeout server 2s"}
    grace = {"hard-stop-after 30s": "hard-stop-after 2s"}
    pause = {"set-timeout server 1h if METH_POST": "set-timeout server 1s",
             "timeout client 1h": "timeout client 1s"}
    anonymous = {"option forwardfor": ""}
    unhelped = {"http-after-response set-status 200": "http-after-response "
                "set-status 503"}
    old = None  # the process before a reload

    def text(self, changes):
        text = block("haproxy -f haproxy.cfg")
        text = text[text.index("global\n"):text.index("\nEND\n")]
        text = re.sub(r"\n    server [bc] .*", "", text)
        return replace(text + "\n", {
            "    bind 127.0.0.1:8000\n": "",
            "127.0.0.1:8443": f"127.0.0.1:{self.port}",
            "127.0.0.1:3001": f"127.0.0.1:{self.target}",
            "ssed.pem": f"{FOLDER}/ssed.pem", **changes})

    def command(self):
        return ["/usr/sbin/haproxy", "-f", self.file]

    def reload(self):
        """The old process ends when it has no more connections."""
        self.old = self.process
        self.launch(*self.command(), "-sf", str(self.old.pid))

    def kill(self):
        super().kill()
        if self.old:
            self.old.kill()
            self.old.wait()
            self.old = None


class Caddy(Proxy):
    """Its admin endpoint, without which there is no reload, is a Unix socket of
    the test's own."""

    grace = {"grace_period 5s": "grace_period 1s"}
    unhelped = {"handle_errors {": "handle /nothing {"}
    impatient = {"lb_try_duration 5s": "lb_try_duration 500ms"}

    def text(self, changes):
        return replace(block("reverse_proxy"), {
            "{\n\tgrace": "{\n\tauto_https disable_redirects\n"
            f"\tadmin unix/{self.folder}/admin\n\tgrace",
            "events.example": f"https://localhost:{self.port}",
            "\ttls": "\tbind 127.0.0.1\n\ttls",
            "127.0.0.1:3000": f"127.0.0.1:{self.target}",
            PATHS: FOLDER, **changes})

    def command(self):
        return ["env", f"HOME={self.folder}", f"XDG_DATA_HOME={self.folder}",
                f"XDG_CONFIG_HOME={self.folder}", "caddy", "run", "--config",
                self.file, "--adapter", "caddyfile"]

    def reload(self):
        subprocess.run(
            ["caddy", "reload", "--force", "--address",
             f"unix/{self.folder}/admin", "--config", self.file, "--adapter",
             "caddyfile"], check=True, timeout=SECONDS,
            stderr=subprocess.DEVNULL)


class Reader:
    """An EventSource; see client.mjs."""

    def __init__(self, browser, name):
        self.browser = browser
        self.name = name
        self.statuses = []
        self.headers = {}
        self.blocks = []
        self.ends = 0        # how often its stream has ended
        self.reads = False
        self.gave_up = None  # the status at which it did

    @property
    def data(self):
        return [fields["data"] for fields in list(self.blocks)
                if "data" in fields and "event" not in fields]

    @property
    def events(self):
        return [fields["event"] for fields in list(self.blocks)
                if "event" in fields]

    def take(self, news):
        if "status" in news:
            self.statuses.append(news["status"])
            self.headers = news["headers"]
        if "block" in news:
            fields = fields_of(news["block"])
            self.blocks.append(fields)
            self.reads = "id" in fields  # which comes from ssed alone
        if "ended" in news:
            self.ends += 1
            self.reads = False
        self.gave_up = news.get("gave_up", self.gave_up)

    def act(self, act):
        self.browser.say({"name": self.name, "act": act})

    def is_open(self):
        return self.reads

    def forget(self):
        """What it was told, but for what it has read."""
        self.statuses, self.ends = [], 0


class Browser(Process):
    """One HTTP/2 connection at a time, and what is read through it."""

    def __init__(self, proxy):
        super().__init__("node", proxy.folder)
        self.readers = {}
        self.connections = 0
        self.process = subprocess.Popen(
            ["node", os.path.join(HERE, "client.mjs"), str(proxy.port),
             certificate()], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        Process.running.add(self)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            news = json.loads(line)
            name = news.pop("name")
            if name:
                self.readers[name].take(news)
            else:
                self.connections += 1

    def say(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def open(self, path, **headers):
        reader = Reader(self, str(len(self.readers)))
        self.readers[reader.name] = reader
        self.say({"name": reader.name, "path": path, "headers": headers})
        return reader

    def kill(self):
        super().kill()
        self.process.stdin.close()


class Lines:
    """The lines that a program prints with one of these beginnings."""

    def __init__(self, process, wanted):
        self.process = process
        self.wanted = wanted
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            if line.startswith(self.wanted):
                self.lines.append(line.strip())

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class KeptServer(Server):
    """With a socket that stays when it ends, as from systemd."""

    def __init__(self, listener, *options):
        self.stdin = listener
        super().__init__(*options, port=listener.getsockname()[1])

    def command(self):
        return ["sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 '
                "</dev/null", "sh", ssed(), *self.options]


class ProxyTest(unittest.TestCase):
    seconds = 60  # that a test may take

    def setUp(self):
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(self.seconds)
        self.addCleanup(signal.alarm, 0)
        self.folder = tempfile.mkdtemp(dir=FOLDER)
        self.addCleanup(stop_processes)
        self.addCleanup(stop_servers)
        self.published = 0

    def tearDown(self):
        for server in list(Server.running):
            server.stop()

    # --------------------------------------------------------- what runs

    def secret(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", opener=lambda path, flags:
                  os.open(path, flags, 0o600)) as file:
            file.write(text)
        return path

    def start_server(self, *options, rights=None):
        if rights is None:
            rights = ["--token-file", self.secret("token", TOKEN)]
        self.server = Server("--interval", "0", "--retry", "100",
                             "--drain-spread", "100", *rights, *options,
                             port=free_port())

    def start_proxy(self, kind, changes=None):
        self.proxy = kind(self.folder, self.server.port, changes)

    def keep(self):
        return "--history-file", os.path.join(self.folder, "history")

    def open_readers(self, count=20):
        """All of one browser."""
        browser = Browser(self.proxy)
        readers = [browser.open("/events/x") for _ in range(count)]
        wait(lambda: all(reader.is_open() for reader in readers),
             "all streams are open")
        return readers

    def publish(self, topic="x", data=None):
        """Not through the proxy. The data is one number after the other."""
        data = data or str(self.published)
        status, text = self.server.request(
            "POST", f"/events/{topic}", data.encode(), self.bearer(TOKEN))
        self.assertEqual(status, 201, text)
        self.published += 1
        return data

    def bearer(self, token):
        return {"Authorization": f"Bearer {token}"}

    def numbers(self, first=0):
        return [str(n) for n in range(first, self.published)]

    def subscribers(self):
        """Of one topic, which gets an event for that."""
        status, text = self.server.request(
            "POST", "/events/x", b"how many", self.bearer(TOKEN))
        return json.loads(text)["subscribers"]

    def logged(self, text):
        return [line for line in list(self.server.log) if text in line]

    def stream(self, *options, topic="x"):
        return self.proxy.curl(
            *options, "-X", "POST", "-T", "-", "-w", " %{http_code}", "-H",
            f"Authorization: Bearer {TOKEN}", "-H",
            "Content-Type: text/event-stream", f"/events/{topic}",
            stdin=subprocess.PIPE)

    def send(self, curl, reader):
        """An event, of which the rest of the body is not waited for."""
        data = str(self.published)
        curl.stdin.write(f"data: {data}\n\n".encode())
        curl.stdin.flush()
        self.published += 1
        wait(lambda: data in reader.data, f"{data} arrives")

    def stopped(self, curl):
        """The answer to a publish that somebody else has ended. curl looks at
        it when it has read some more."""
        def has_ended():
            with contextlib.suppress(BrokenPipeError):
                curl.stdin.write(b": more\n")
                curl.stdin.flush()
            return curl.poll() is not None

        wait(has_ended, "curl has ended")
        with contextlib.suppress(BrokenPipeError):
            curl.stdin.close()
        with curl.stdout:
            return curl.stdout.read()
