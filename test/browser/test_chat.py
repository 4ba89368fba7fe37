"""The chat page, chat.html."""

import json
import random
import re
import socket
import struct
import subprocess
import threading
import time

from harness import PageTest
from model import TEXT, Model
from proxy import Proxy

MARKUP = "<img src=x onerror=\"document.title = 'run'\">"
PROMPTS = ["why", "resume", "retry"]
# The text of a reader, without what the page itself has to say about it.
SHOWN = """
return [...document.querySelectorAll(".reader")].map((reader) =>
  [...reader.querySelectorAll(".line")].map((line) => line.textContent).join(""))
"""
PROGRESS = """
const [count, done] = arguments;
const [reader] = readers;
let target = 0;

function look() {
  if (!target && reader.tokens) target = reader.tokens + count;
  if ((target && reader.tokens >= target) || reader.state === "finished")
    done(reader.state);
  else
    setTimeout(look, 5);
}
look();
"""
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets


def events(stream):
    """The events of a stream's text, as (name, data)."""
    for block in stream.split("\n\n"):
        fields = [line.partition(": ")[::2] for line in block.splitlines()]
        data = [value for name, value in fields if name == "data"]
        if data:
            yield dict(fields).get("event", "message"), "\n".join(data)


class Scissors(Proxy):
    """Resets a connection after so many more bytes of what it carries:
    "stream", "request" (a POST on its way) or "answer" (to a POST)."""

    def __init__(self, port):
        self.armed = {}
        self.lock = threading.Lock()
        super().__init__(port)

    def cut_after(self, carried, count):
        with self.lock:
            self.armed = {carried: count}

    def cut_short(self, carried, data):
        """What may pass of it, and whether that was the last."""
        with self.lock:
            left = self.armed.pop(carried, None)
            if left is None or left > len(data):
                if left:
                    self.armed[carried] = left - len(data)
                return data, False
        return data[:left], True

    def pump(self, source, sink):
        carried = ""
        try:
            while data := source.recv(65536):
                head = data.partition(b"\r\n\r\n")[0]
                if data.startswith(b"HTTP/1.1 200 "):
                    carried = "stream" if b"text/event-stream" in head else ""
                elif data.startswith(b"HTTP/1.1 201 "):
                    carried = "answer"
                elif re.match(rb"[A-Z]+ /\S* HTTP/1.1\r\n", data):
                    carried = "request" if data.startswith(b"POST ") else ""
                data, over = self.cut_short(carried, data)
                sink.sendall(data)
                if over:
                    self.reset(source)
                    self.reset(sink)
                    return
        except OSError:
            pass
        self.end(source)
        self.end(sink)

    def reset(self, connection):
        self.sockets.discard(connection)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            # wakes the thread that reads it
            connection.shutdown(socket.SHUT_RD)
        except OSError:
            pass
        connection.close()


class Chat(PageTest):
    seconds = 240

    def begin(self, page="chat.html", *options, **view):
        self.start("--interval", "0", "--retry", "100", "--drain-spread", "100",
                   *options)
        self.open(page, **view)
        self.wait_for_reader("waiting")

    # --------------------------------------------------- what is on the page

    def state(self, n=0):
        return self.find_all(".reader .state")[n].get_attribute("data-state")

    def wait_for_reader(self, state, n=0, seconds=20):
        self.wait(lambda: self.state(n) == state, f"reader {n} is {state}",
                  seconds)

    def wait_for_model(self, state):
        self.wait(lambda: self.find("#model-state").get_attribute("data-state")
                  == state, f"the model is {state}")

    def shown(self, n=0):
        return self.script(SHOWN)[n]

    def wait_for_text(self, text, n=0):
        self.wait(lambda: self.shown(n) == text, f"“{text[-50:]}” is shown")

    def tokens(self):
        return int(self.text(".reader .tokens"))

    def wait_for_tokens(self, count):
        self.wait(lambda: self.tokens() >= count, f"{count} tokens")

    def topic(self):
        return self.script("return topic")

    def address(self, **query):
        return "chat.html?" + "&".join(f"{k}={v}" for k, v in query.items())

    def ask(self, prompt):
        before = self.topic()
        used = self.script("return Boolean(readers[0].answer)")
        button = f"[data-prompt={prompt}]"
        # a reader may have the end before the model knows it
        self.wait(lambda: self.find(button).get_attribute("aria-disabled")
                  == "false", "the model can be asked")
        self.click(button)
        if used:
            self.wait(lambda: self.topic() != before, "a topic of its own")
        # what was there has gone from the page
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def answer_of(self, prompt):
        return self.script(
            f"return document.getElementById('{prompt}').textContent.trim()")

    def kinds(self, n=0):
        return self.script(f"""
            return [...document.querySelectorAll(".reader")[{n}]
              .querySelectorAll(".note, .outcome")].map((node) =>
              node.dataset.outcome ?? node.dataset.say)""")

    # ------------------------------------------------------ what is published

    def stream(self, topic):
        """A finished topic, from its beginning to its end."""
        status, text = self.server.request(
            "GET", f"/events/{topic}?lastEventId=earliest")
        self.assertEqual(status, 200)
        return list(events(text))

    def check_published(self, prompt, topic, doubled=False):
        """The topic has all of an answer, once and in order, and its end. Only
        where the answer to a POST was cut off may the same come twice, the end
        as well: then the browser itself sends it again."""
        stream = self.stream(topic)
        self.assertEqual(stream[-1][0], "ssed.end")
        pieces = [json.loads(data) for name, data in stream[:-1]
                  if not (doubled and name == "ssed.end")]
        numbers = [piece["i"] for piece in pieces]
        if doubled:
            self.assertEqual(numbers, sorted(numbers))
            pieces = list({piece["i"]: piece for piece in pieces}.values())
        self.assertEqual([piece["i"] for piece in pieces],
                         list(range(len(pieces))))
        self.assertEqual("".join(piece["t"] for piece in pieces[1:]),
                         self.answer_of(prompt))

    def check_finished(self, prompt, doubled=False):
        self.wait_for_reader("finished")
        self.assertEqual(self.shown(), self.answer_of(prompt))
        self.check_published(prompt, self.topic(), doubled)

    def numbered(self, topic, i, text, query="?event=token", **more):
        self.publish(topic, json.dumps({"i": i, "t": text, **more}), query)

    # -------------------------------------------------------------- an answer

    def test_each_answer_is_written_and_stays_finished(self):
        self.begin(self.address(speed=10))
        for prompt in PROMPTS:
            with self.subTest(prompt=prompt):
                self.ask(prompt)
                self.check_finished(prompt)
                self.wait_for_model("done")
                # the browser comes back once, gets 204, and stops
                self.wait(lambda: self.script(
                    "return readers[0].source.readyState") == 2, "it stops")
                self.assertEqual(self.state(), "finished")
        self.assertGreater(len(self.find_all(".reader .keyword")), 20)
        self.reload()
        self.check_finished(prompt)

    def test_code_is_coloured_while_it_is_typed(self):
        self.begin(self.address(topic="chat/1"))
        for text in ["So:\n``", "`js\nfunc", "tion f() { // o", "ne\n",
                     "  return `a\nfor ${", "7}` + 12 /* in\nif */;\n```\nfor"]:
            self.publish("chat/1", json.dumps(
                {"choices": [{"delta": {"content": text}}]}))
        self.wait(lambda: self.shown().endswith("for"), "all of it")
        parts = self.script("""
            return [...document.querySelectorAll(".line span")].map((part) =>
              [part.className, part.textContent])""")
        self.assertEqual(parts, [
            ["keyword", "function"], ["comment", "// one"],
            ["keyword", "return"], ["string", "`"], ["string", "a\n"],
            ["string", "for ${7}`"], ["number", "12"], ["comment", "/*"],
            ["comment", " in\n"], ["comment", "if */"]])
        self.assertEqual(len(self.find_all(".reader pre")), 1)
        self.assertEqual(len(self.find_all(".reader .prose")), 2)

    def test_what_anybody_publishes_is_text(self):
        self.begin(self.address(topic="chat/1"))
        self.publish("chat/1", MARKUP, "?event=prompt")
        self.publish("chat/1", MARKUP + "\n", "?event=token")
        self.publish("chat/1", f"```{MARKUP}\n'{MARKUP}'\n# {MARKUP}\n\n")
        self.numbered("chat/1", 7, MARKUP)
        self.wait(lambda: self.shown().count(MARKUP) == 5, "all of it")
        self.assertEqual(self.text(".question"), MARKUP)
        self.assertEqual(self.find_all(".reader img"), [])
        self.assertNotEqual(self.script("return document.title"), "run")

    def test_plain_text_of_others_is_readable(self):
        self.begin(self.address(topic="chat/1"))
        self.server.request(
            "POST", "/events/chat/1?end=1",
            "data: Hel\n\nevent: token\ndata: lo\n\ndata: 1\n\ndata: null\n\n"
            "data:\n\ndata: {\"a\":1}\n\ndata: a\ndata: b\n\n",
            {"Content-Type": "text/event-stream"})
        self.wait_for_reader("finished")
        self.assertEqual(self.shown(), 'Hello1null{"a":1}a\nb')
        # a second answer in the same topic, for one who comes later
        self.publish("chat/1", "again", "?end=1")
        self.reload()
        self.wait_for_text('Hello1null{"a":1}a\nbagain')
        self.assertEqual(self.kinds(), ["finished", "finished"])

    def test_a_number_that_is_missing_or_comes_twice(self):
        self.begin(self.address(topic="chat/1"))
        self.numbered("chat/1", 0, "Why?", "?event=prompt")
        for i in [1, 2, 2, 0, 5, 3, 6]:
            self.numbered("chat/1", i, f"<{i}>")
        self.numbered("chat/1", 0, "Why?", "?event=prompt")
        self.numbered("chat/1", 7, ".", "?event=token&end=1", last=True)
        self.wait_for_reader("finished")
        self.assertEqual(self.shown(), "<1><2><5><6>.")
        self.assertEqual(self.kinds(), ["hole", "finished"])
        self.assertIn("2 tokens are missing", self.text(".note"))
        self.assertEqual(len(self.find_all(".question")), 1)

    def test_a_gap_is_told(self):
        self.begin(self.address(topic="chat/1"), "--history", "20")
        self.publish("chat/1", "first ")
        self.wait_for_text("first ")
        self.click(".cut")
        self.wait_for_reader("cut")
        for n in range(40):
            self.publish("chat/1", f"{n} ")
        self.wait_for_text("first " + "".join(f"{n} " for n in range(20, 40)))
        self.assertEqual(self.kinds(), ["gap"])
        self.assertIn(re.search(r"from (\d+) on", self.text(".note"))[1],
                      self.stream_ids("chat/1"))
        # earliest promises nothing, but the numbers tell
        self.numbered("chat/2", 30, "late")
        self.open(self.address(topic="chat/2"))
        self.wait_for_text("late")
        self.assertEqual(self.kinds(), ["hole"])

    def stream_ids(self, topic):
        self.delete(topic)
        status, text = self.server.request(
            "GET", f"/events/{topic}?lastEventId=earliest")
        return re.findall(r"id: (\d+)", text)

    def test_an_answer_without_end_is_bounded(self):
        self.begin(self.address(topic="chat/1"))
        line = "const answer = 42; // as always\n"
        body = "data: ```js\ndata:\n\n" + (
            "".join(f"data: {part}\n\n" for part in line[:-1].split(" "))
            + "data:\ndata:\n\n") * 8000
        self.server.request("POST", "/events/chat/1", body,
                            {"Content-Type": "text/event-stream"})
        self.wait(lambda: self.script("return readers[0].shown.length") == 5000,
                  "the page is full")
        self.assertIn("trimmed", self.kinds())

    # ---------------------------------------------------------------- buttons

    def test_cut_second_reader_and_reload(self):
        self.begin()
        self.ask("why")
        self.wait_for_tokens(20)
        self.click(".cut")
        self.wait_for_reader("cut")
        held = self.tokens()
        self.click("#second-btn")
        self.wait_for_reader("writing", 1)
        self.wait(lambda: len(self.shown(1)) > len(self.shown()) + 20,
                  "the second reads on while the first is cut")
        self.assertEqual(self.tokens(), held)
        self.shot("chat-cut")
        self.wait(lambda: self.state() == "writing"
                  and self.shown(0) == self.shown(1), "the first is back")
        self.assertEqual(len(self.find_all(".seam")), 1)
        self.shot("chat-resumed")
        self.script("window.old = true")
        self.click("#reload-btn")
        self.wait(lambda: self.script("return !window.old") and
                  len(self.script(SHOWN)) == 2, "the page again, two readers")
        self.wait_for_tokens(held + 40)
        self.assertTrue(self.answer_of("why").startswith(self.shown()))
        self.click("#stop-btn")
        self.wait_for_reader("stopped", 1)
        self.click("#second-btn")
        self.assertEqual(len(self.script(SHOWN)), 1)

    def test_stop(self):
        self.begin()
        self.ask("resume")
        self.wait_for_tokens(20)
        self.click("#stop-btn")
        self.wait_for_reader("stopped")
        self.wait_for_model("stopped")
        self.check_stopped("resume", self.topic())
        self.shot("chat-stopped")
        self.reload()
        self.wait_for_reader("stopped")
        # another question has a topic of its own, the first stays as it is
        stopped = self.topic()
        self.ask("why")
        self.wait_for_tokens(5)
        self.assertNotEqual(self.topic(), stopped)
        self.driver.back()
        self.wait(lambda: self.topic() == stopped, "the topic from before")
        self.wait_for_reader("stopped")

    def check_stopped(self, prompt, topic):
        """What is shown is all that was published, and no more comes."""
        pieces = [json.loads(data) for name, data in self.stream(topic)
                  if name == "token"]
        published = "".join(piece["t"] for piece in pieces)
        self.wait(lambda: self.shown() == published, "all that was published")
        self.assertTrue(self.answer_of(prompt).startswith(published))
        self.assertLess(len(published), len(self.answer_of(prompt)))

    def test_stop_from_outside_at_full_speed(self):
        self.begin(self.address(speed=20))
        for start in [3, 30, 60]:
            self.ask("why")
            self.wait_for_tokens(start)
            self.delete(self.topic())
            self.wait_for_model("stopped")
            self.wait_for_reader("stopped")
            # a token that the end has overtaken opens the topic, for a moment
            self.wait(lambda: self.server.request(
                "GET", f"/events/{self.topic()}")[0] == 204, "it is finished")
            self.check_stopped("why", self.topic())

    def test_stop_from_another_tab(self):
        self.begin()
        self.ask("why")
        self.wait_for_tokens(10)
        topic = self.topic()
        self.tab()
        self.open(self.address(topic=topic))
        self.wait_for_tokens(10)
        # whoever only reads is shown no model
        self.assertFalse(self.script("return model || element('model').open"))
        self.click("#stop-btn")
        self.wait_for_reader("stopped")
        self.switch(0)
        self.wait_for_model("stopped")
        self.wait_for_reader("stopped")
        self.check_stopped("why", topic)

    def test_kill_the_model(self):
        self.begin()
        self.ask("retry")
        self.wait_for_tokens(30)
        self.click("#kill-btn")
        self.wait_for_model("killed")
        self.wait_for_reader("silent")
        self.assertEqual(self.kinds(), ["silent"])
        self.assertEqual(self.find_all(".caret"), [])
        self.shot("chat-killed")
        # nobody revives it, and who comes now sees a fragment too
        held = self.shown()
        self.reload()
        self.wait_for_reader("silent")
        self.assertEqual(self.shown(), held)
        self.click("#stop-btn")
        self.wait_for_reader("stopped")
        self.assertEqual(self.kinds(), ["stopped"])

    def test_a_publisher_that_breaks_off(self):
        self.begin(self.address(topic="chat/1"))
        with socket.create_connection(("127.0.0.1", self.server.port)) as sock:
            sock.sendall(b"POST /events/chat/1?end=1 HTTP/1.1\r\nHost: a:1\r\n"
                         b"Content-Type: text/event-stream\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n"
                         b"10\r\ndata: and so\n\nda\r\n".replace(
                             b"a:1", b"localhost"))
            self.wait_for_text("and so")
        self.wait_for_reader("fragment")
        self.assertEqual(self.kinds(), ["fragment"])
        self.shot("chat-fragment")
        self.reload()
        self.wait_for_reader("fragment")
        self.assertEqual(self.shown(), "and so")

    def test_buttons_in_any_order(self):
        self.begin(self.address(speed=10))
        chance = random.Random()
        for prompt in PROMPTS[:2]:
            whole = self.answer_of(prompt)
            self.ask(prompt)
            while self.wait_for_progress(chance.randrange(60)):
                # by the script: at this speed a reload may come in between
                for _ in range(chance.randrange(1, 4)):
                    self.script(
                        "document.querySelector(arguments[0])?.click()",
                        chance.choice([".cut", ".reader + .reader .cut",
                                       "#second-btn", "#reload-btn"]))
                self.wait(lambda: whole.startswith(self.shown()),
                          "a part of the answer")
            self.check_finished(prompt)

    def wait_for_progress(self, count):
        """So many tokens more, or False at the end; waited for in the page,
        which is quicker than to ask it again and again."""
        return self.driver.execute_async_script(PROGRESS, count) != "finished"

    def test_keyboard_alone(self):
        self.begin()
        self.focus("[data-prompt=why]")
        self.press("Enter")
        self.wait_for_tokens(5)
        self.focus(".cut")
        self.press("Space")
        self.wait_for_reader("cut")
        self.wait_for_reader("writing")
        self.focus("#second-btn", back=True)
        self.press("Enter")
        self.wait_for_reader("writing", 1)
        self.focus("#kill-btn")
        self.press("Enter")
        self.wait_for_model("killed")
        # the focus stays where it was, on what does nothing now
        self.press("Enter")
        self.focus("#stop-btn")
        self.press("Enter")
        self.wait_for_reader("stopped")

    def focus(self, css, back=False):
        for _ in range(40):
            self.press("Shift+Tab" if back else "Tab")
            if self.script("return document.activeElement.matches(arguments[0])",
                           css):
                shown = self.script("return getComputedStyle(document"
                                    ".activeElement).outlineStyle")
                self.assertNotEqual(shown, "none")
                return
        self.fail(f"no way to {css} by Tab")

    # ------------------------------------------------------------- more models

    def test_two_tabs_one_model(self):
        self.begin(self.address(speed=2))
        self.ask("resume")
        self.wait_for_tokens(10)
        topic = self.topic()
        # as a tab that was duplicated: it knows what the first one knows
        self.tab()
        self.open(self.address(topic=topic, speed=2))
        self.script("remember({ prompt: 'resume' })")
        self.reload()
        self.wait_for_model("elsewhere")
        self.wait_for_tokens(30)
        self.switch(0)
        self.driver.close()
        self.switch(0)
        self.wait_for_model("writing")
        self.check_finished("resume")

    def test_refused(self):
        self.begin("chat.html", "--publish", "none")
        self.allow_console("403")
        self.ask("why")
        self.wait_for_model("refused")
        self.assertIn("403", self.text("#model-state"))

    def test_a_topic_that_cannot_be(self):
        self.start("--interval", "0")
        for name in ["chat/../x", "a//b", "%3Cimg%20src=x%3E", "a%20b", "."]:
            self.open(self.address(topic=name))
            self.wait_for_reader("badTopic")

    def pipe(self, model, topic, upload):
        """curl MODEL | curl -T … TOPIC; the second one."""
        url = f"{self.server.url}events/{topic}?end=1"
        source = subprocess.Popen(
            ["curl", "-sN", "-d", "{}", model.url], stdout=subprocess.PIPE)
        sink = subprocess.Popen(
            ["curl", "-s", "-w", "%{http_code}", "-T", upload, "-X", "POST",
             "-H", "Content-Type: text/event-stream", url],
            stdin=source.stdout, stdout=subprocess.PIPE,
            # with "-T ." curl shows its progress in spite of -s
            stderr=subprocess.DEVNULL, text=True)
        source.stdout.close()
        for process in (source, sink):
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
        self.addCleanup(sink.stdout.close)
        return sink

    def model(self, text, pause=0):
        model = Model(text, pause)
        self.addCleanup(model.close)
        return model

    def test_a_model_behind_an_api(self):
        self.begin(self.address(topic="chat/1"))
        text = TEXT * 100
        self.pipe(self.model(text), "chat/1", "-")
        self.wait_for_reader("finished")
        self.assertEqual(self.shown(), text)
        self.assertEqual(self.find(".outcome").get_attribute("data-outcome"),
                         "finished")

    def test_a_model_behind_an_api_that_breaks_off(self):
        """The pipe ends well all the same: what is missing is [DONE]."""
        self.begin(self.address(topic="chat/1"))
        model = self.model(TEXT)
        model.most = 7
        self.pipe(model, "chat/1", "-")
        self.wait_for_reader("stopped")
        self.assertTrue(self.shown() and TEXT.startswith(self.shown()))

    def test_stop_a_slow_model_behind_an_api(self):
        for upload in ["-", "."]:
            with self.subTest(upload=upload):
                self.stop_slow_model(upload)

    def stop_slow_model(self, upload):
        topic = f"chat/{'1' if upload == '-' else '2'}"
        self.begin(self.address(topic=topic))
        model = self.model(TEXT, 0.3)
        publisher = self.pipe(model, topic, upload)
        self.wait_for_tokens(4)
        self.assertEqual(self.state(), "writing")
        started = time.monotonic()
        self.assertEqual(self.delete(topic)[0], 200)
        self.assertTrue(model.gone.wait(5), "the model's client went away")
        self.assertLess(time.monotonic() - started, 1)
        answer = publisher.communicate(timeout=5)[0]
        self.assertTrue(answer.endswith("409"), answer)
        self.assertIn('"error":"the topic has been finished"', answer)
        name, end = self.stream(topic)[-1]
        self.assertEqual(name, "ssed.end")
        self.assertTrue(json.loads(end)["complete"])
        self.wait_for_reader("stopped")
        self.assertTrue(TEXT.startswith(self.shown()))

    # ------------------------------------------------------------ two hundred

    def test_200_rounds(self):
        """A reload or a cut at a random token, of the stream in the middle of
        a frame, of a POST in the middle of it or of its answer."""
        self.allow_outage()
        # the answer to a POST that was cut off
        self.allow_console("net::ERR_(CONTENT_LENGTH_MIS|INVALID_HTTP_RES)")
        self.start("--interval", "0", "--retry", "50")
        proxy = Scissors(self.server.port)
        self.addCleanup(proxy.close)
        self.open(proxy.url + self.address(speed=20))
        chance = random.Random()
        seed = chance.randrange(1 << 32)
        chance.seed(seed)
        rounds = 0
        while rounds < 200:
            prompt = chance.choice(PROMPTS)
            self.ask(prompt)
            with self.subTest(seed=seed, rounds=rounds, prompt=prompt):
                rounds += self.disturb(proxy, prompt, chance)
                self.check_finished(prompt, doubled=True)

    def disturb(self, proxy, prompt, chance):
        whole = self.answer_of(prompt)
        done = 0
        while self.wait_for_progress(chance.randrange(30)):
            kind = chance.choice(["reload", "button", "stream", "stream",
                                  "request", "answer"])
            if kind == "reload":
                self.reload()
            elif kind == "button":
                self.script("document.querySelector('.cut').click()")
            else:
                proxy.cut_after(kind, chance.randrange(200))
                self.wait(lambda: kind not in proxy.armed
                          or self.state() == "finished", f"a cut {kind}")
            shown = self.shown()
            self.assertTrue(whole.startswith(shown), f"{kind}: {shown[-80:]}")
            done += 1
        return done

    def test_the_server_is_killed_and_started_again(self):
        """20 times, with a history file."""
        self.allow_outage()
        self.begin(self.address(speed=10), "--history-file",
                   f"{self.folder}/history", "--history-bytes", "1M")
        chance = random.Random()
        rounds = 0
        while rounds < 20:
            prompt = chance.choice(PROMPTS)
            self.ask(prompt)
            while self.wait_for_progress(chance.randrange(20, 80)):
                self.server.kill()
                self.server.run()
                rounds += 1
            self.check_finished(prompt, doubled=True)

    def test_the_server_comes_back_without_its_history(self):
        self.allow_outage()
        self.begin(self.address(speed=4))
        self.ask("why")
        self.wait_for_tokens(30)
        self.server.kill()
        self.wait_for_model("away")
        self.wait_for_reader("reconnecting")
        self.server.run()
        self.wait_for_reader("finished")
        # the server does not know whether anything is missing; nothing is,
        # unless a token had gone to the history and to no reader
        self.assertEqual(self.kinds()[0][:3], "gap")
        if "hole" not in self.kinds():
            self.assertEqual(self.shown(), self.answer_of("why"))

    # ------------------------------------------------------------------ looks

    def test_looks(self):
        self.begin()
        self.ask("retry")
        self.wait_for_tokens(150)
        self.click(".cut")
        self.click("#second-btn")
        self.wait_for_tokens(300)
        self.click("#kill-btn")
        self.wait_for_reader("silent", 1)
        self.matrix("chat")
