"""Nodes behind a HAProxy, as in README.md, that are killed or stopped, and
started again, one by one."""

from harness import HAProxy, NodesTest

# at a 503, where there is no node, an EventSource would give up
FRONT = r"""option http-no-delay
option abortonclose
http-error status 503 content-type text/event-stream hdr retry-after 2 \
lf-string "retry: 2000\n\n"
http-request set-var(txn.reads) bool(true) if METH_GET { path_beg /events }
http-after-response set-status 200 if { status 503 } \
{ var(txn.reads) -m bool }
default_backend nodes
""".replace("\\\n", "").splitlines()

# an answer that broke off before its first byte is asked for again only where
# that does no harm
BACK = """option httpchk GET /healthz
balance leastconn
option redispatch 1
retries 3
retry-on conn-failure empty-response response-timeout
http-request disable-l7-retry unless METH_GET
default-server check inter 200ms fastinter 100ms fall 2 rise 1
""".splitlines()


class Balancer(NodesTest):
    def begin(self, *options):
        self.start(3, options)
        self.balancer = HAProxy(self.folder, "http", {
            f"node{n}": (node.port, "") for n, node in enumerate(self.nodes)},
            FRONT, BACK)
        for n in range(3):
            self.wait_state(n, "UP")
        self.load = self.crowd(60, 10, ports=[self.balancer.port], topics=12,
                               streams=True, balanced=True, pause=0.02)
        self.load.wait_acknowledged(500)

    def wait_state(self, n, state):
        self.wait(lambda: self.balancer.state(f"node{n}") == state,
                  f"to the balancer the node is {state}")

    def end(self):
        self.load.wait_acknowledged(500)
        # a browser does not come back after any other
        statuses = {status for subscriber in self.load.subscribers
                    for status in subscriber.statuses} - {0}
        self.load.settle(gaps="none", dump=self.redis.dump)
        self.assertLessEqual(statuses, {200, 204})

    def test_nodes_killed_under_load(self):
        self.begin()
        for n, node in enumerate(self.nodes):
            node.kill()
            self.wait_state(n, "DOWN")
            self.load.wait_acknowledged(500)
            node.run()
            self.wait_state(n, "UP")
        self.end()

    def test_nodes_replaced_under_load(self):
        """With a delay in which the balancer notices, nothing is refused that
        was not under way."""
        self.begin("--drain-delay", "1")
        for n, node in enumerate(self.nodes):
            node.restart()
            self.wait_state(n, "UP")
            self.load.wait_acknowledged(500)
        self.end()

    def test_no_node_is_left(self):
        self.begin()
        for node in self.nodes:
            node.kill()
        for n in range(3):
            self.wait_state(n, "DOWN")
        self.load.wait_told("refused", 10)
        for node in self.nodes:
            node.run()
        self.end()
