"""A proxy before a server, as bad as the networks that pages live behind.

    proxy = Proxy(server.port)     # in a test: self.proxy()
    proxy.url                      # what the page is opened at
    proxy.cut()                    # ends all connections in mid-stream
    proxy.status = 502             # what new ones are answered; None: nothing
    proxy.hold(), proxy.let_go()   # nothing gets through, and nobody is told
"""

import contextlib
import socket
import threading


class Proxy:
    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.status = None
        self.sockets = set()
        self.flowing = threading.Event()
        self.flowing.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.run(self.accept)

    def run(self, *call):
        thread = threading.Thread(target=call[0], args=call[1:], daemon=True)
        thread.start()
        return thread

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            self.run(self.serve, client)

    def serve(self, client):
        with client, contextlib.suppress(OSError):
            if self.status:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n"
                               b"Connection: close\r\n\r\n" % self.status)
                return
            with socket.create_connection(self.target) as server:
                self.sockets |= {client, server}
                back = self.run(self.pump, server, client)
                self.pump(client, server)
                back.join()

    def pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flowing.wait()
                sink.sendall(data)
        self.end(source)
        self.end(sink)

    def end(self, connection):
        """Not closed here: its number could be another connection's while the
        other thread still uses it. A shutdown wakes that thread."""
        self.sockets.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def cut(self):
        for connection in list(self.sockets):
            self.end(connection)

    def hold(self):
        self.flowing.clear()

    def let_go(self):
        self.flowing.set()

    def close(self):
        # wakes accept(), as above
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.let_go()
        self.cut()
