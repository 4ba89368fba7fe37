"""A proxy before a server, as bad as the networks that pages live behind.

    proxy = Proxy(server.port)     # in a test: self.proxy()
    proxy.url                      # what the page is opened at
    proxy.cut()                    # ends all connections in mid-stream
    proxy.status = 502             # what new ones are answered; None: nothing
    proxy.hold(), proxy.let_go()   # nothing gets through, and nobody is told
"""

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
        threading.Thread(target=call[0], args=call[1:], daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            self.run(self.serve, client)

    def serve(self, client):
        try:
            if self.status:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n"
                               b"Connection: close\r\n\r\n" % self.status)
                client.close()
                return
            server = socket.create_connection(self.target)
        except OSError:
            client.close()
            return
        self.sockets |= {client, server}
        self.run(self.pump, client, server)
        self.run(self.pump, server, client)

    def pump(self, source, sink):
        try:
            while data := source.recv(65536):
                self.flowing.wait()
                sink.sendall(data)
        except OSError:
            pass
        self.end(source)
        self.end(sink)

    def end(self, connection):
        self.sockets.discard(connection)
        try:
            # wakes the thread that reads it, which a close does not
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()

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
