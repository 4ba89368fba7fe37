"""What Redis can do to a log, and what everybody is told of it, under a light
load. Half of the subscribers hop, and half stay and must keep their streams."""

import os
import time

from harness import PASSWORD, Node, NodesTest

TOPICS = 6


class Failures(NodesTest):
    def begin(self, nodes=2, **options):
        self.start(nodes, **options)
        self.load = self.crowd(10, 3, topics=TOPICS)
        self.load.wait_acknowledged(100)

    def check_away(self, reason=""):
        """Streams are open and have heartbeats, publishing is refused, and the
        balancer leaves the nodes alone."""
        self.wait_away(reason)
        ended = self.load.open_streams()
        self.load.wait_told("refused", 10)
        self.load.wait_beats(2)
        self.assertEqual(self.load.open_streams(), ended)

    def end(self, gaps):
        """All goes on as if nothing had been."""
        self.wait_well()
        self.load.wait_acknowledged(100)
        self.load.settle(gaps)
        self.check_held(self.load.published_topics[:-1])

    def test_killed_and_restarted(self):
        """The file has what was acknowledged, but nobody can prove that."""
        self.begin()
        told = self.load.wait_gaps()
        for _ in range(2):
            self.redis.kill()
            self.check_away()
            self.redis.start()
            self.wait_well()
            self.load.wait_acknowledged(50)
        told()
        self.end("all")
        self.count_lost()

    def count_lost(self):
        """A figure, no assertion: what its file is short of is up to Redis;
        and who was told of a gap may have missed what Redis has kept."""
        acknowledged = self.load.books.acknowledged
        kept = {int(name.split("-")[1]) for name, _ in self.redis.dump()}
        missed = 0
        for subscriber in self.load.staying:
            missed += sum(id_ in kept and id_ > subscriber.first and
                          topic in subscriber.topics
                          for id_, (topic, _) in acknowledged.items()
                          if id_ not in set(subscriber.seen))
        print(f"    Redis has lost {len(acknowledged.keys() - kept)}; it has "
              f"kept {missed} that subscribers with a gap did not get")

    def test_stopped_for_ten_seconds(self):
        self.begin()
        ended = self.load.open_streams()
        self.redis.pause()
        self.wait_away()
        self.load.wait_told("refused", 10)
        beats = [(subscriber, subscriber.beats)
                 for subscriber in self.load.staying if subscriber.connected]
        self.holds(10, lambda: all(node.is_log_away() for node in self.nodes),
                   "the nodes are healthy, and say that the log is away")
        for subscriber, before in beats:
            self.assertGreaterEqual(subscriber.beats, before + 8)
        self.redis.go_on()
        self.wait_well()
        self.load.wait_acknowledged(100)
        self.assertEqual(self.load.open_streams(), ended)
        self.end("none")

    def test_restarted_empty(self):
        self.begin()
        told = self.load.wait_gaps()
        self.redis.kill()
        self.check_away()
        self.redis.start_empty()
        told()
        self.end("all")

    def test_key_deleted(self):
        self.begin()
        told = self.load.wait_gaps()
        self.redis.do("DEL", "ssed")
        told()
        self.end("all")

    def test_key_deleted_while_nobody_publishes(self):
        """A DEL wakes no reader."""
        self.begin()
        self.load.stop_publishing()
        told = self.load.wait_gaps()
        self.redis.do("DEL", "ssed")
        told()
        self.load.settle("all")
        self.check_held(self.load.published_topics[:-1])

    def test_flushall(self):
        self.begin()
        told = self.load.wait_gaps()
        self.redis.do("FLUSHALL")
        told()
        self.end("all")

    def test_trimmed_past_a_stopped_node(self):
        self.start(2, options=("--redis-length", "200"))
        here, there = self.nodes
        load = self.load = self.crowd(10, 3, hops="none", pause=0,
                                      publish_ports=[here.port])
        load.wait_acknowledged(100)
        behind = [subscriber for subscriber in load.subscribers
                  if subscriber.home == there.port]
        told = load.wait_gaps(behind)
        there.pause()
        position = load.books.newest
        load.wait_acknowledged(300)
        self.wait(lambda: self.first_entry() > position,
                  "the log is trimmed past the node", 60)
        there.go_on()
        told()
        self.wait_well()
        load.settle("any")
        for subscriber in load.subscribers:
            self.assertEqual(bool(subscriber.gaps), subscriber in behind)

    def first_entry(self):
        (name, _), *_ = self.redis.do("XRANGE", "ssed", "-", "+", "COUNT", "1")
        return int(name.split("-")[1])

    def test_type_of_the_key_changed(self):
        self.begin()
        told = self.load.wait_gaps()
        # at once, or a node would begin the log again in between
        self.redis.do("EVAL", "redis.call('DEL', KEYS[1]) "
                      "redis.call('SET', KEYS[1], 'text')", "1", "ssed")
        self.check_away("the key is no stream")
        self.redis.do("DEL", "ssed")
        told()
        self.end("all")

    def check_refused(self, reason):
        """Redis takes nothing; what can be read goes on."""
        ended = self.load.open_streams()
        self.load.wait_told("refused", 10)
        self.load.wait_beats(2)
        for node in self.nodes:
            status, text = node.request("POST", "/events/topic", b"x")
            self.assertEqual(status, 503)
            self.assertIn(reason, text)
            self.assertEqual(node.health()[0], 200)
        self.assertEqual(self.load.open_streams(), ended)

    def test_out_of_memory(self):
        self.begin()
        self.redis.do("CONFIG", "SET", "maxmemory", "1")
        self.check_refused("Redis has no memory left")
        self.redis.do("CONFIG", "SET", "maxmemory", "0")
        self.end("none")

    def test_too_few_replicas(self):
        self.begin()
        self.redis.do("CONFIG", "SET", "min-replicas-to-write", "1")
        self.check_refused("replicas")
        self.redis.do("CONFIG", "SET", "min-replicas-to-write", "0")
        self.end("none")

    def test_disk_full(self):
        """As Redis sees it: its file cannot be written."""
        self.begin()
        in_the_way = os.path.join(self.redis.folder, "dump.rdb")
        os.mkdir(in_the_way)
        self.save("err")
        self.check_refused("Redis cannot write its file")
        os.rmdir(in_the_way)
        self.save("ok")
        self.end("none")

    def save(self, status):
        self.redis.do("CONFIG", "SET", "save", "3600 1000000")
        self.redis.do("BGSAVE")
        self.wait(lambda: f"rdb_last_bgsave_status:{status}" in
                  self.redis.do("INFO", "persistence"), "it has tried to save")

    def test_password_changed(self):
        path = os.path.join(self.folder, "password")
        self.write(path, PASSWORD)
        self.begin(password=PASSWORD, options=("--redis-auth-file", path))
        ended = self.load.open_streams()
        self.redis.do("CONFIG", "SET", "requirepass", "second")
        self.redis.password = "second"
        self.redis.do("CLIENT", "KILL", "TYPE", "normal")
        self.check_away("--redis-auth-file")
        self.write(path, "default second\n")
        self.wait_well()
        self.load.wait_acknowledged(100)
        self.assertEqual(self.load.open_streams(), ended)
        self.end("none")

    def write(self, path, text):
        """In one step: a file that changes while it is read is refused."""
        with open(f"{path}.new", "w") as file:
            file.write(text)
        os.rename(f"{path}.new", path)

    def test_script_flushed(self):
        self.begin()
        for _ in range(20):
            self.redis.do("SCRIPT", "FLUSH")
            self.load.wait_acknowledged(10)
        self.assertEqual(self.load.told, {})
        self.end("none")

    def test_connections_killed(self):
        """Whose outcome nobody knows is not published twice."""
        self.begin()
        for _ in range(5):
            self.redis.do("CLIENT", "KILL", "TYPE", "normal")
            self.load.wait_acknowledged(20)
        self.end("none")

    def test_one_after_the_other(self):
        """In any order, some before all is well again after the last."""
        self.start(3)
        self.load = self.crowd(40, 6, topics=12, hops="all")
        failures = [self.fail_redis, self.fail_redis_for_long,
                    self.fail_connections, self.fail_script, self.fail_key,
                    self.fail_node, self.fail_node_for_long, self.fail_memory]
        for _ in range(20):
            self.random.choice(failures)()
            if self.random.random() < 0.5:
                self.wait_well()
                self.load.wait_acknowledged(self.random.randint(1, 200))
        self.wait_well()
        self.load.wait_acknowledged(100)
        self.load.settle("any")

    def fail_redis(self):
        self.redis.kill()
        if self.random.random() < 0.5:
            self.load.wait_told("refused", 10)
        self.random.choice([self.redis.start, self.redis.start_empty])()

    def fail_redis_for_long(self):
        self.redis.pause()
        self.load.wait_told("refused", 10)
        self.redis.go_on()

    def fail_connections(self):
        self.redis.do("CLIENT", "KILL", "TYPE", "normal")

    def fail_script(self):
        self.redis.do("SCRIPT", "FLUSH")

    def fail_key(self):
        self.redis.do(*self.random.choice([
            ["DEL", "ssed"], ["FLUSHALL"], ["DEL", "ssed:run"],
            ["XTRIM", "ssed", "MAXLEN", "10"]]))

    def fail_node(self):
        node = self.random.choice(self.nodes)
        self.random.choice([node.kill, node.stop])()
        if self.random.random() < 0.5:
            self.load.wait_acknowledged(50)
        node.run()

    def fail_node_for_long(self):
        node = self.random.choice(self.nodes)
        node.pause()
        self.redis.do("XTRIM", "ssed", "MAXLEN", "1")
        end = time.monotonic() + self.random.uniform(0.1, 2)
        self.wait(lambda: time.monotonic() > end, "some time is over")
        node.go_on()

    def fail_memory(self):
        self.redis.do("CONFIG", "SET", "maxmemory", "1")
        self.load.wait_told("refused", 3)
        self.redis.do("CONFIG", "SET", "maxmemory", "0")

    def append(self, *fields):
        """As any client of Redis may. Returns the id."""
        name = self.redis.do("EVAL", self.script(), "1", "ssed", "100000",
                             str(self.load.books.newest), *fields)
        return int(name.split("-")[1])

    def test_entries_of_others(self):
        """What the script appended is an event, if it has what events have."""
        self.begin()
        bad = [("t", "topic/0"), ("d", "no topic"), ("t", "", "k", "end"),
               ("t", "a b", "d", "x"), ("t", "topic/1", "d", "x", "k", "what"),
               ("t", "topic/1", "d", "x", "e", "ssed.end"),
               ("t", "topic/1", "d", "x", "e", "a\nid: 7"),
               ("t", "topic/1", "d", "x", "r", "1 s"),
               ("t", "topic/1", "d", "x" * 65537)]
        for n, fields in enumerate(bad):
            id_ = self.append(*fields)
            floor = self.load.books.newest
            data = f"script.{n}"
            good = self.append("t", "topic/2", "e", "topic/2", "d", data)
            self.load.books.acknowledge(good, "topic/2", data, floor)
            self.assertGreater(good, id_)
        for node in self.nodes:
            self.wait(lambda: node.has_logged("event=log_skipped"),
                      "a node has logged what it skips")
        self.end("none")

    def test_entry_that_makes_ids_impossible(self):
        """XADD key *, and the way out that the log tells."""
        self.begin()
        foreign = self.redis.do("XADD", "ssed", "*", "field", "value")
        self.load.wait_told("refused", 10)
        self.load.wait_beats(2)
        for node in self.nodes:
            status, text = node.request("POST", "/events/topic", b"x")
            self.assertEqual(status, 503)
            self.assertIn("XDEL", text)
            self.wait(lambda: node.has_logged("XDEL"), "the log says it, too")
            self.assertEqual(node.health()[0], 200)
        self.redis.do("XDEL", "ssed", foreign)
        (newest, _), = self.redis.do("XREVRANGE", "ssed", "+", "-", "COUNT",
                                     "1")
        self.redis.do("XSETID", "ssed", newest)
        self.end("any")

    def test_start_before_redis(self):
        """A node that has never had the log is not ready."""
        self.start(1)
        self.redis.kill()
        self.start_away()
        self.redis.start()
        self.wait_well()
        for node in self.nodes:
            self.wait(lambda: node.has_logged("event=ready"), "it says so")
        self.load = self.crowd(10, 3)
        self.end("none")

    def start_away(self):
        node = Node(self.redis.address)
        self.nodes = [node]
        self.wait(lambda: node.has_logged("state=away"), "it says why")
        self.assertEqual(node.health()[0], 503)
        self.assertFalse(node.has_logged("event=ready"))
        status, text = node.request("POST", "/events/topic", b"x")
        self.assertEqual(status, 503)
        # there is no room: it is to come later
        answer = node.read("topic")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.complete)
        self.assertIn("retry", answer.blocks[0])
        self.assertNotIn("id", answer.blocks[0])
