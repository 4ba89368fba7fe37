"""Signed tokens at nodes that share a log."""

import json
import os

from harness import NodesTest
from shared import LEEWAY, sign

SECRET = "a secret that the nodes share as well"


class Rights(NodesTest):
    def setUp(self):
        super().setUp()
        self.file = os.path.join(self.folder, "secret")
        with open(self.file, "w", opener=lambda path, flags:
                  os.open(path, flags, 0o600)) as file:
            file.write(SECRET)
        self.start(nodes=2, options=("--secret-file", self.file))

    def token(self, exp, **claims):
        return "?token=" + sign(SECRET, {**claims, "exp": exp})

    def test_a_stream_goes_on_at_another_node(self):
        """It ends at one when its token expires, and goes on at the other, with
        a fresh one, from the position that it was told."""
        write = self.token(60, write=["x"])
        sent, got, position = 0, [], ""

        def goes_on(block):
            nonlocal sent, position
            position = block.get("id", position)
            if block.get("event") == "ssed.expired":
                self.assertIn("exp", json.loads(block["data"]))
                return True
            if "data" in block:
                self.assertNotIn("event", block)
                got.append(int(block["data"]))
            # one before each block of the stream, at any node
            self.random.choice(self.nodes).publish("x" + write, str(sent))
            sent += 1
            return False

        position = str(self.nodes[0].publish("x" + write, "-1"))
        for n in range(4):
            answer = self.nodes[n % 2].read(
                "x" + self.token(2 - LEEWAY, read=["x"]), position,
                self.once(goes_on))
            self.assertEqual(answer.status, 200)
        self.assertEqual(got, list(range(len(got))))
        self.assertGreater(len(got), 20)

    def once(self, act):
        """For read(), which asks again about blocks that it has asked about."""
        seen = []

        def until(block):
            if not any(block is old for old in seen):
                seen.append(block)
                return act(block)
            return False

        return until

    def test_a_node_without_its_log_tells_nobody_anything(self):
        self.redis.kill()
        self.wait_away()
        for node in self.nodes:
            self.assertEqual(node.read("x").status, 401)
            answer = node.read("x" + self.token(60, read=["y"]))
            self.assertEqual(answer.status, 403)
            answer = node.read("x" + self.token(60, read=["x"]), "",
                               lambda block: True)
            self.assertEqual(answer.status, 200)
