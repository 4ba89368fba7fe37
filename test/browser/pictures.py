"""The pictures of README.md: run.py ./ssed --pictures makes them anew.

It needs ImageMagick's convert.
"""

import http.client
import math
import os
import selectors
import socket
import subprocess
import threading
import time

from harness import PageTest

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pictures")


class Pictures(PageTest):
    def take(self, name, height=2000):
        """What the page shows at its top, in few colours, for it to be
        small."""
        path = os.path.join(FOLDER, f"{name}.png")
        subprocess.run(["convert", self.shot(f"picture-{name}"), "-strip",
                        "-crop", f"x{height}+0+0", "+repage", "+dither",
                        "-colors", "64", f"PNG8:{path}"], check=True)
        print(f"  {os.path.getsize(path):,} bytes: {path}")

    def pictures_catch_up(self):
        self.start("--interval", "0")
        self.open("index.html")
        self.look(width=960, height=840)
        self.wait(lambda: self.text("#connection-status") == "Connected",
                  "the page is connected")
        self.say("Build 4711: 214 of 214 tests passed")
        self.click("#disconnect-btn")
        self.say("Build 4711 is released", "Build 4712: compiling",
                 "Build 4712: 213 of 214 tests passed")
        self.click("#connect-btn")
        self.wait(lambda: self.text("#catchup-count") == "3", "it caught up")
        self.say("Build 4713: compiling")
        self.take("catch-up")

    def pictures_chat(self):
        self.start("--interval", "0")
        self.open("chat.html")
        self.look(width=960, height=900)
        self.click("[data-prompt=retry]")
        self.wait(lambda: self.tokens(1) > 60, "some of the answer")
        self.click("#second-btn")
        self.wait(lambda: self.tokens(2) > 180, "the second has caught up")
        self.click(".cut")
        self.wait(lambda: self.tokens(2) > self.tokens(1) + 20,
                  "one is cut, the other goes on")
        self.take("chat")

    seconds = 420

    def pictures_status(self):
        """Five minutes of a server with something to do."""
        self.start("--interval", "0", "--history", "30000", "--admin",
                   "127.0.0.1:0")
        self.open(f"http://127.0.0.1:{self.server.admin_port}/")
        self.look(width=960, height=900)
        load = Load(self.server.port)
        try:
            self.wait(lambda: self.script("return points.length") > 297,
                      "five minutes", seconds=400)
            self.take("status", height=1245)
        finally:
            load.stop()

    def tokens(self, reader):
        return int(self.text(f".reader:nth-child({reader}) .tokens"))

    def say(self, *texts):
        for text in texts:
            self.publish("", text)
        if self.text("#connection-status") == "Connected":
            self.wait(lambda: texts[-1] in self.text("#messages"), texts[-1])


class Load:
    """Subscribers that come and go, some that do not read, and a publisher
    whose rate has waves."""

    TOPICS = [f"events/{name}" for name in
              ("chat/42", "chat/43", "jobs/render/7", "jobs/render/8",
               "prices/eur-usd", "prices/eur-gbp", "status/eu-west",
               "status/us-east", "build/4711", "build/4712", "orders")]

    def __init__(self, port):
        self.port = port
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.subscribe, daemon=True),
                        threading.Thread(target=self.publish, daemon=True)]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def wave(self, period):
        return 1 + math.sin(time.monotonic() / period)

    def connect(self, topic):
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        peer.connect(("127.0.0.1", self.port))
        peer.sendall(f"GET /{topic} HTTP/1.1\r\n"
                     "Host: localhost\r\n\r\n".encode())
        return peer

    def subscribe(self):
        peers, number = selectors.DefaultSelector(), 0
        slow, next_slow = [], time.monotonic()
        while not self.stopped.is_set():
            if time.monotonic() >= next_slow:
                slow += [self.connect(topic) for topic in self.TOPICS[2:4]]
                next_slow += 130
            wanted = 60 + int(60 * self.wave(30))
            while len(peers.get_map()) < wanted:
                number += 1
                # the first topics have the most
                topic = self.TOPICS[number * number % 121 // 11]
                peers.register(self.connect(topic), selectors.EVENT_READ)
            while len(peers.get_map()) > wanted:
                peer = next(iter(peers.get_map().values())).fileobj
                peers.unregister(peer)
                peer.close()
            for key, _ in peers.select(0.05):
                key.fileobj.recv(65536)
        for peer in slow + [key.fileobj for key in peers.get_map().values()]:
            peer.close()

    def publish(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        for number in range(1, 1 << 30):
            if self.stopped.wait(0.01 / (1 + 3 * self.wave(17))):
                break
            topic = self.TOPICS[number % len(self.TOPICS)]
            connection.request("POST", f"/{topic}", f"event {number} " * 12)
            connection.getresponse().read()
        connection.close()
