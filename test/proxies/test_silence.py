"""A minute in which nobody publishes, with all time-outs as they stand in
README.md."""

import time

import harness
from harness import ProxyTest
from shared import SECONDS, wait

MINUTE = 62  # seconds: over what many a proxy waits


class Silence(ProxyTest):
    seconds = 120

    def test_a_minute_of_silence(self):
        """Streams are kept by heartbeats, and streamed publishes that pause by
        time-outs that are longer."""
        self.start_server()
        readers, publishers = [], []
        for kind in (harness.Nginx, harness.HAProxy, harness.Caddy):
            self.start_proxy(kind)
            readers += self.open_readers(2)
            for version in ("--http1.1", "--http2"):
                publishers.append(self.stream(version))
                self.send(publishers[-1], readers[-1])
        before = self.published
        end = time.monotonic() + MINUTE
        wait(lambda: time.monotonic() > end, "a minute", 2 * MINUTE)
        for publisher in publishers:
            self.send(publisher, readers[-1])
            answer, _ = publisher.communicate(timeout=SECONDS)
            self.assertTrue(answer.endswith(b" 201"), answer)
        self.assertEqual(self.published, before + len(publishers))
        for n, reader in enumerate(readers):
            expected = self.numbers(n // 2 * 2)  # two came before each proxy
            wait(lambda: reader.data == expected, "all has come")
            self.assertEqual(reader.ends, 0)
            heartbeats = [block for block in reader.blocks if "retry" not in
                          block and "data" not in block]
            self.assertGreaterEqual(len(heartbeats), 4)
