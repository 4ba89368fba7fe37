// A browser with one HTTP/2 connection to a proxy, for the tests. Each line of
// standard input says what it does:
//   {"name": "a", "path": "/events/x", "headers": {}}  opens an EventSource
//   {"name": "a", "act": "close"}
//   {"name": "a", "act": "pause"}, "resume"  it takes no more bytes, or does
// Each line of standard output says what came of it: a status, a block of the
// stream, the end of a response, or that it gave up, as an EventSource does at
// each status but 200. It waits for retry:, but for PATIENCE at the most, for
// the tests' sake.
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import { createInterface } from "node:readline";
import tls from "node:tls";

const PATIENCE = 300; // ms
const [port, certificate] = process.argv.slice(2);
const ca = readFileSync(certificate);
const sources = new Map();
let session;

function tell(name, news) {
  console.log(JSON.stringify({ name, ...news }));
}

// The one there is, or a new one when that takes no more requests.
function connection() {
  if (!session || session.closed || session.destroyed) {
    session = http2.connect(`https://localhost:${port}`, {
      createConnection: () => tls.connect({
        host: "127.0.0.1", port, servername: "localhost", ca,
        ALPNProtocols: ["h2"],
      }),
    });
    session.on("error", () => {}); // its streams have one each
    session.on("connect", () => tell("", { connected: true }));
  }
  return session;
}

class Source {
  retry = 3000;
  position = "";
  rest = "";

  constructor({ name, path, headers }) {
    Object.assign(this, { name, path, headers });
    this.open();
  }

  open() {
    const position = this.position && { "last-event-id": this.position };
    this.status = 0;
    this.rest = "";
    this.stream = connection().request(
      { ":path": this.path, ...this.headers, ...position });
    this.stream.setEncoding("utf8");
    this.stream.on("response", (headers) => {
      this.status = headers[":status"];
      this.type = headers["content-type"];
      tell(this.name, { status: this.status, headers: { ...headers } });
    });
    this.stream.on("data", (text) => this.take(text));
    this.stream.on("error", () => {}); // then it is closed
    this.stream.on("close", () => this.end());
  }

  take(text) {
    const blocks = (this.rest + text).split("\n\n");
    this.rest = blocks.pop();
    for (const block of blocks) {
      this.position = /^id: (.*)$/m.exec(block)?.[1] ?? this.position;
      this.retry = Number(/^retry: (\d+)$/m.exec(block)?.[1] ?? this.retry);
      tell(this.name, { block });
    }
  }

  end() {
    tell(this.name, { ended: true });
    const reads = this.status === 200 && this.type === "text/event-stream";
    if (this.status && !reads) tell(this.name, { gave_up: this.status });
    else if (!this.closed)
      setTimeout(() => this.open(), Math.min(this.retry, PATIENCE));
  }

  close() {
    this.closed = true;
    this.stream.close(http2.constants.NGHTTP2_CANCEL);
  }

  pause() {
    this.stream.pause();
  }

  resume() {
    this.stream.resume();
  }
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const { act, ...wanted } = JSON.parse(line);
  if (act) sources.get(wanted.name)[act]();
  else sources.set(wanted.name, new Source(wanted));
}).on("close", () => process.exit());
