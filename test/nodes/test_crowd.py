"""Three nodes and a crowd, with nothing that fails."""

import json
import select
import socket

from harness import NodesTest
from shared import SECONDS


class Crowded(NodesTest):
    seconds = 200

    def test_the_books_balance(self):
        self.start(nodes=3)
        crowd = self.crowd(200, 20, topics=24, hops="all", streams=True,
                           pause=0.03)
        crowd.wait_acknowledged(20000, seconds=100)
        crowd.settle(gaps="none", dump=self.redis.dump)

    def test_publish_then_subscribe(self):
        """At the same node: it is there. At another, which may not have read
        as far: the position holds, it is no gap."""
        self.start(nodes=3, unix=True, options=("--redis-key", "a key"))
        crowd = self.crowd(10, 6)
        for n in range(300):
            here, there = self.random.sample(self.nodes, 2)
            topic = f"probe/{n % 7}"
            id_ = here.publish(topic, f"probe {n}")
            head = there.read(topic, id_, method="HEAD")
            self.assertEqual(head.headers["last-event-id"], str(id_))
            answer = there.read(topic, id_, lambda block: True)
            self.assertEqual(answer.blocks[0]["id"], str(id_))
            self.assertNotIn("event", answer.blocks[0])
            answer = here.read(topic, id_ - 1, lambda block: "data" in block)
            self.assertEqual(answer.blocks[0]["id"], str(id_ - 1))
            self.assertEqual(answer.blocks[1]["id"], str(id_))
            self.assertEqual(answer.blocks[1]["data"], f"probe {n}")
        crowd.settle(gaps="none", dump=lambda: self.redis.dump("a key"))

    def test_delete_elsewhere_stops_a_publish(self):
        self.start(nodes=3)
        for n in range(20):
            self.stop_a_publish(f"chat/{n}", *self.random.sample(self.nodes, 3))

    def stop_a_publish(self, topic, here, there, elsewhere):
        with socket.create_connection(("127.0.0.1", here.port), SECONDS) as \
                connection:
            connection.sendall(
                f"POST /events/{topic} HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: text/event-stream\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode())
            sent, deleted, before = 0, None, self.random.randint(1, 20)

            def goes_on():
                nonlocal sent, deleted
                block = f"data: {sent}\n\n".encode()
                connection.sendall(b"%x\r\n%s\r\n" % (len(block), block))
                sent += 1
                if sent >= before and not deleted:
                    status, text = there.request("DELETE", f"/events/{topic}")
                    deleted = status == 200 and json.loads(text)["id"]
                return select.select([connection], [], [], 0)[0]

            self.wait(goes_on, "the publisher is answered")
            answer = b""
            while data := connection.recv(65536):
                answer += data
        self.assertTrue(deleted)
        self.assertIn(b"HTTP/1.1 409 ", answer)
        told = json.loads(answer.partition(b"\r\n\r\n")[2])
        self.assertEqual(told["error"], "the topic has been finished")

        def entries():
            return [fields for _, fields in self.redis.dump()
                    if fields.get("t") == topic]

        # what was under way may have opened the topic again
        self.wait(lambda: "k" in entries()[-1], "the topic is finished")
        data = [fields["d"] for fields in entries() if "d" in fields]
        self.assertEqual(data, [str(number) for number in range(len(data))])
        self.assertIn(len(data) - told["count"], (0, 1))

        ends = []
        answer = elsewhere.read(topic, "earliest")
        for block in answer.blocks:
            if block.get("event") == "ssed.end":
                ends.append((block["id"], json.loads(block["data"])))
        self.assertTrue(answer.complete)
        self.assertEqual(ends[0][0], deleted)
        self.assertTrue(ends[0][1]["complete"])
        self.assertTrue(all(not end["complete"] for _, end in ends[1:]))
        last = answer.blocks[-1]["id"]
        self.assertEqual(elsewhere.read(topic, last).status, 204)
        # a new publish opens it again
        id_ = there.publish(topic, "more")
        answer = elsewhere.read(topic, last, lambda block: "data" in block)
        self.assertEqual(answer.blocks[-1]["id"], str(id_))
