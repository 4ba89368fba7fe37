"""The pictures of README.md: run.py ./ssed --pictures makes them anew.

It needs ImageMagick's convert.
"""

import os
import subprocess

from harness import PageTest

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pictures")


class Pictures(PageTest):
    def take(self, name):
        """What the window shows, in few colours, for it to be small."""
        path = os.path.join(FOLDER, f"{name}.png")
        subprocess.run(["convert", self.shot(f"picture-{name}"), "-strip",
                        "+dither", "-colors", "64", f"PNG8:{path}"],
                       check=True)
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

    def tokens(self, reader):
        return int(self.text(f".reader:nth-child({reader}) .tokens"))

    def say(self, *texts):
        for text in texts:
            self.publish("", text)
        if self.text("#connection-status") == "Connected":
            self.wait(lambda: texts[-1] in self.text("#messages"), texts[-1])
