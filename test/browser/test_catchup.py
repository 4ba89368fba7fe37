from harness import PageTest


class CatchUp(PageTest):
    def test_matrix(self):
        self.start("--interval", "0")
        self.open("index.html")
        self.wait(lambda: self.text("#connection-status") == "Connected", "connected")
        self.publish("", "hello <b>")
        self.wait(lambda: "hello <b>" in self.text("#messages"), "the message")
        self.matrix("catchup")
