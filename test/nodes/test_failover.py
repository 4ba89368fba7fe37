"""Redis with a replica, behind a HAProxy that switches from the one to the
other. Replication does not wait: what the replica never got is lost, and told
as a gap."""

from harness import HAProxy, NodesTest, Redis


class Failover(NodesTest):
    def begin(self):
        self.old = Redis(self.folder)
        self.new = Redis(self.folder)
        self.new.do("REPLICAOF", "127.0.0.1", self.old.port)
        self.wait(lambda: "master_link_status:up" in
                  self.new.do("INFO", "replication"), "the replica follows")
        self.switch = HAProxy(self.folder, "tcp", {
            "old": (self.old.port, ""), "new": (self.new.port, "disabled")})
        self.start_nodes(2, f"127.0.0.1:{self.switch.port}")
        self.load = self.crowd(10, 3)
        self.load.wait_acknowledged(100)

    def move(self, old, new):
        """The nodes, from the one to the other."""
        self.switch.switch(old, new)
        self.redis = getattr(self, new)

    def end(self):
        self.wait_well()
        self.load.wait_acknowledged(100)
        self.load.settle("all")
        self.check_held(self.load.published_topics[:-1])

    def test_old_master_takes_writes(self):
        self.begin()
        told = self.load.wait_gaps()
        self.new.do("REPLICAOF", "NO", "ONE")
        self.load.wait_acknowledged(200)
        self.move("old", "new")
        told()
        self.wait_well()
        lost = self.load.books.lost(self.new.dump())
        print(f"    {lost} lost in Redis")
        self.assertGreater(lost, 100)
        self.end()

    def test_old_master_takes_writes_of_one_node(self):
        """Its connections outlive the other node's."""
        self.begin()
        here, there = self.nodes
        self.load.publish_ports = [here.port]
        told = self.load.wait_gaps()
        self.new.do("REPLICAOF", "NO", "ONE")
        there.pause()
        self.load.wait_acknowledged(100)
        self.move("old", "new")
        there.go_on()
        self.load.publish_ports = self.load.ports
        told()
        self.end()

    def test_nodes_come_before_the_promotion(self):
        self.begin()
        told = self.load.wait_gaps()
        self.move("old", "new")
        self.load.wait_told("refused", 10)
        self.load.wait_beats(2)
        for node in self.nodes:
            self.assertEqual(node.health()[0], 200)
        self.new.do("REPLICAOF", "NO", "ONE")
        told()
        self.end()

    def test_master_demoted(self):
        """The nodes stay with the old one, which has become a replica."""
        self.begin()
        told = self.load.wait_gaps()
        self.new.do("REPLICAOF", "NO", "ONE")
        self.load.wait_acknowledged(100)
        self.old.do("REPLICAOF", "127.0.0.1", self.new.port)
        self.load.wait_told("refused", 20)
        self.load.wait_beats(2)
        for node in self.nodes:
            self.assertEqual(node.health()[0], 200)
        self.move("old", "new")
        told()
        self.end()

    def test_there_and_back(self):
        """The old master comes back as a replica and is promoted again."""
        self.begin()
        for old, new in (("old", "new"), ("new", "old")):
            master, replica = getattr(self, old), getattr(self, new)
            told = self.load.wait_gaps()
            replica.do("REPLICAOF", "NO", "ONE")
            self.load.wait_acknowledged(50)
            self.move(old, new)
            told()
            self.wait_well()
            self.load.wait_acknowledged(50)
            master.do("REPLICAOF", "127.0.0.1", replica.port)
            self.wait(lambda: "master_link_status:up" in
                      master.do("INFO", "replication"), "the replica follows")
        self.end()
