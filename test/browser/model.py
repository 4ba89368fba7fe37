#!/usr/bin/python3
"""A stand-in for an OpenAI-compatible API, as slow as one likes.

    model = Model(text, pause)     # any request to model.url streams the text,
                                   # with `pause` seconds between its tokens
    model.most = 7                 # after so many chunks it breaks off
    model.gone                     # an Event: a client went away before the end
    model.close()

    test/browser/model.py [PAUSE]  # the same by hand; says who went away
"""

import http.server
import json
import re
import select
import sys
import threading

TEXT = """An answer of a model that there is none of: each word is sent as a
chunk of its own, and after the last comes [DONE].

```python
def answer(question):
    return 42  # as always
```
"""


def tokens(text):
    return re.findall(r"\s*\S{1,4}|\s+$", text)


def chunk(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk",
                       "model": "stand-in", "choices": [choice]})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.close_connection = True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for data in self.server.chunks[:self.server.model.most]:
                self.send(f"data: {data}\n\n")
                self.rest()
            if self.server.model.most is None:
                self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.server.model.gone.set()

    def send(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def rest(self):
        """Until the next token is due, or the client has gone."""
        readable, _, _ = select.select([self.connection], [], [],
                                       self.server.model.pause)
        if readable and not self.connection.recv(1):
            raise ConnectionError

    def log_message(self, *_):
        pass


class Model:
    def __init__(self, text=TEXT, pause=0):
        self.pause = pause
        self.most = None
        self.gone = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.model = self
        # as they are from the real ones: a role, the content, how it ended
        self.server.chunks = [
            chunk({"role": "assistant", "content": ""}),
            *[chunk({"content": token}) for token in tokens(text)],
            chunk({}, "stop"),
            "[DONE]",
        ]
        port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        threading.Thread(target=self.server.serve_forever, args=[0.05],
                         daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    model = Model(pause=float(sys.argv[1]) if sys.argv[1:] else 0.1)
    print(f"curl -N -d '{{}}' {model.url}", flush=True)
    while model.gone.wait():
        print("a client has gone", flush=True)
        model.gone.clear()
