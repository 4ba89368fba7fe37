// SsedSource: an EventSource for pages in many tabs, and for bad networks.
//   const source = new SsedSource("events/chat/42");
//   source.onmessage = (event) => show(event.data, event.lastEventId);
//   source.addEventListener("gap", …); // "end", "expired": what ssed itself says
// The tabs of a browser share one connection for each URL. The tab that has the
// Web Lock reads and tells the others by BroadcastChannel; when it is left or
// hangs, another reads on. For one that is behind it reads again from there.
// Without Web Locks (a file, http: to another machine) each has its own. A tab
// that is reloaded goes on where it was; a new one begins where the URL says.
// It also reconnects where an EventSource gives up, as at a proxy's 502, and
// when three heartbeats have not come: after retry:, later and later. It is
// CLOSED at 204 (all topics are finished), 400, 401 and 403. Options, a second
// argument: heartbeat: 15 (s), remember: true, and those of fetch(); and token:
// a function that is called and waited for before each connection. It gives the
// token for the query, or renews the cookie and gives nothing; so a stream goes
// on at once when its token has expired. Without it that takes retry:, and the
// cookie has to be renewed by then.
class SsedSource extends EventTarget {
  static CONNECTING = 0; static OPEN = 1; static CLOSED = 2;
  static #memory = (() => {
    try { return sessionStorage; } catch { return {}; } // it is turned off
  })();
  #options = { heartbeat: 15, remember: true, cache: "no-store" };
  #position; // the newest id here; -1: all that the URL asks for is to come
  #at; // the newest id that was read, in the tab that reads
  #retry = 3000; #failures = 0;
  #connection; #channel; #timer; #reading; #run;
  #renews; // the stream has ended for want of a fresh token, and there is one
  #read = () => (this.#reading ??= this.#connect());

  constructor(url, options) {
    super();
    this.url = new URL(url, document.baseURI).href;
    Object.assign(this.#options, options);
    const kept = (this.#options.remember && SsedSource.#memory[this.url]) || -1;
    if (kept >= 0 || /[?&]last/.test(this.url)) this.#position = Number(kept);
    for (const type of ["open", "message", "error"])
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    let left = SsedSource.CLOSED; // the browser keeps a page for the way back
    addEventListener("pagehide", () => this.close((left = this.readyState)));
    addEventListener("pageshow", () => this.readyState > left && this.#begin());
    this.#begin();
  }

  #begin() {
    const { signal } = (this.#run = new AbortController());
    this.readyState = SsedSource.CONNECTING;
    if (!navigator.locks || origin === "null") return void this.#read();
    this.#channel = new BroadcastChannel(this.url);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#channel.postMessage({ hello: true, wanted: this.#position });
    this.#expect();
    navigator.locks.request(this.url, { signal }, this.#read).catch(() => {});
  }

  close() {
    this.readyState = SsedSource.CLOSED;
    clearTimeout(this.#timer);
    this.#channel?.close();
    this.#run.abort();
    this.#connection?.abort();
    this.#reading = undefined;
  }

  // By then something has to come, from the server or from the tab that reads.
  #expect() {
    const beats = this.#reading ? 3 : 5 + Math.random();
    const act = () => this.#read(this.#connection?.abort("silent"));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(act, beats * this.#options.heartbeat * 1000);
  }

  #hear({ told, hello, wanted }) {
    if (!this.#reading) return told && this.#take(told);
    if (wanted < this.#at || (hello && wanted > this.#at)) {
      this.#at = wanted;
      this.#connection.abort();
    } else if (!told) this.#tell({ state: this.readyState });
  }

  #tell(news) {
    const told = { state: 1, after: this.#at, id: this.#at, ...news };
    this.#at = told.id;
    this.#channel?.postMessage({ told });
    this.#take(told);
  }

  // What is told leads from `after` (-1: where the URL begins) to `id`: a tab
  // that is not there yet has missed something, one that is beyond it has it.
  #take({ state, failed, after, id, type, data }) {
    const here = (this.#position ??= after);
    const skips = after > here || (after < 0 && here >= 0 && id > here);
    this.#expect();
    if (failed || state !== this.readyState) {
      this.readyState = state;
      this.dispatchEvent(new Event(state ? "open" : "error"));
    }
    if (skips && this.#reading) return this.#hear({ wanted: here });
    if (skips) return this.#channel.postMessage({ wanted: here });
    if (after < id ? id <= here : id === after && id < here) return;
    SsedSource.#memory[this.url] = this.#position = id;
    const init = { data, origin: new URL(this.url).origin, lastEventId: id };
    if (type) this.dispatchEvent(new MessageEvent(type, init));
  }

  async #connect() {
    const run = this.#run.signal;
    this.#at = this.#position ?? -1;
    while (!run.aborted) {
      const { signal } = (this.#connection = new AbortController());
      await this.#receive(signal).catch(() => {}); // refused, cut or silent
      if (signal.aborted && signal.reason !== "silent") continue;
      this.#tell({ state: SsedSource.CONNECTING, failed: true });
      const wait = this.#renews ? 0
        : this.#retry * 2 ** Math.min(this.#failures++, 2);
      this.#renews = false;
      await new Promise((resolve) => {
        this.#connection = { abort: (why) => why === "silent" || resolve() };
        setTimeout(resolve, wait * (1 + Math.random() / 2));
      });
    }
  }

  async #receive(signal) {
    const url = new URL(this.url);
    this.#expect();
    const token = await this.#options.token?.();
    if (typeof token === "string") url.searchParams.set("token", token);
    if (this.#at >= 0) url.searchParams.set("lastEventId", this.#at);
    const answer = await fetch(url, { ...this.#options, signal });
    if ([204, 400, 401, 403].includes(answer.status)) {
      this.close();
      this.dispatchEvent(new Event("error"));
    }
    if (!/^text\/event-stream/.test(answer.headers.get("Content-Type")))
      return answer.body?.cancel();
    this.#tell();
    const text = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part; !(part = await text.read()).done; ) {
      const blocks = (rest + part.value).split("\n\n");
      rest = blocks.pop();
      this.#expect();
      for (const block of blocks) if (!signal.aborted) this.#parse(block);
    }
  }

  #parse(block) {
    const all = (name) =>
      `\n${block}`.split(`\n${name}: `).slice(1).map((at) => at.split("\n")[0]);
    const [id = this.#at] = all("id").map(Number);
    const [event = "message"] = all("event");
    const data = all("data");
    const gap = /^\{"type":"gap","message":"部分历史消息/.test(data[0]);
    const expired = /^\{"type":"expired","exp":\d+\}$/.test(data[0]);
    const type = gap ? "gap" : expired ? "expired"
      : event.replace(/^ssed\.(gap|end|expired)$/, "$1");
    this.#failures = 0;
    this.#renews = type === "expired" && this.#options.token;
    this.#retry = Number(all("retry")[0] ?? this.#retry);
    this.#tell({ id, type: data.length && type, data: data.join("\n") });
  }
}
