"use strict";

// Every text of the page, in both languages.
const TEXTS = {
  en: {
    title: "A picture in the making",
    lead: "This page computes a picture, coarse at first, and publishes every step. Readers watch it sharpen: one that comes late gets the newest step at once, one that was cut goes on where it was.",
    publisher: "The publisher",
    start: "Start",
    startAnew: "Start anew",
    stop: "Stop",
    tab: "Watch in another tab",
    reader: "A reader",
    late: "A late reader",
    cut: "Cut the connection",
    join: "Join now",
    progress: "Progress of the picture",
    begun: "Computing…",
    ready: "Nothing is being computed. The picture comes in {total} steps, each of them one event of a topic.",
    joined: "This tab reads what another one publishes. Start computes a picture of its own.",
    computing: "Step {step} of {total}: {size} × {size} points, samples of each: {samples}. Computed in {ms} ms, {bytes} bytes published with id {id}.",
    finished: "Finished. The last step, id {id}, has ended the topic: readers stop by themselves, and whoever comes from now on gets the finished picture.",
    halted: "Stopped after step {step} of {total}. A DELETE finishes the topic, so that no reader waits for the rest.",
    away: "The server cannot be reached: step {step} is tried again.",
    refused: "The server refuses step {step}: {reason}",
    status: "status {status}",
    idle: "Not connected",
    connecting: "Connecting…",
    live: "Connected",
    cutOff: "Cut: coming back in a moment",
    reconnecting: "Reconnecting…",
    error: "No stream there: trying again",
    done: "Done",
    stopped: "Ended before it was finished",
    nothing: "No picture yet",
    pressStart: "Press Start: the picture appears here",
    pressJoin: "Join while the picture is in the making: the newest step comes at once",
    step: "Step {step} of {total}",
    noStep: "No step yet",
    id: "id {position}",
    alt: "The picture at step {step} of {total}",
    received: "Steps received: {received} of {total}.",
    caught: "Caught up after a cut: {caught}.",
    skipped: "Made before it joined: {skipped}.",
    delay: "First picture after {delay} ms.",
    gap: "Some steps are gone: the server no longer has all that came after id {requested}.",
    text: "Not a picture: {text}",
  },
  zh: {
    title: "逐步成形的图像",
    lead: "本页由粗到细地计算一幅图像，每完成一步就发布一次。读者看着它逐渐清晰：晚到的读者立刻拿到最新一步，断开的读者从断点继续。",
    publisher: "发布端",
    start: "开始",
    startAnew: "重新开始",
    stop: "停止",
    tab: "在新标签页中观看",
    reader: "读者",
    late: "晚到的读者",
    cut: "切断连接",
    join: "现在加入",
    progress: "图像进度",
    begun: "正在计算…",
    ready: "尚未开始计算。图像分 {total} 步完成，每一步是主题中的一个事件。",
    joined: "本标签页正在读取另一个标签页发布的图像。点击“开始”会另外计算一幅。",
    computing: "第 {step} 步，共 {total} 步：{size} × {size} 个点，每点采样 {samples} 次。计算用时 {ms} 毫秒，已发布 {bytes} 字节，事件 ID {id}。",
    finished: "计算完成。最后一步（事件 ID {id}）同时结束了主题：读者自动停止，之后来的人直接看到成品。",
    halted: "已停在第 {step} 步，共 {total} 步。用 DELETE 结束主题，读者不会空等。",
    away: "无法连接服务器，正在重试第 {step} 步。",
    refused: "服务器拒绝了第 {step} 步：{reason}",
    status: "状态码 {status}",
    idle: "未连接",
    connecting: "连接中…",
    live: "已连接",
    cutOff: "连接已切断，马上恢复",
    reconnecting: "重连中…",
    error: "没有收到事件流，正在重试",
    done: "已完成",
    stopped: "未完成就已结束",
    nothing: "还没有图像",
    pressStart: "点击“开始”，图像会出现在这里",
    pressJoin: "在图像生成过程中加入，会立刻收到最新一步",
    step: "第 {step} 步，共 {total} 步",
    noStep: "还没有收到任何一步",
    id: "ID {position}",
    alt: "第 {step} 步的图像，共 {total} 步",
    received: "已收到 {received} 步，共 {total} 步。",
    caught: "断开后补收 {caught} 步。",
    skipped: "加入前已有 {skipped} 步。",
    delay: "{delay} 毫秒后收到第一幅图像。",
    gap: "部分步骤已无法补发：服务器上 ID {requested} 之后的事件不再完整。",
    text: "这不是图像：{text}",
  },
};

const SIZE = 256;
// Coarse to fine: more points first, then more samples of each point.
const STEPS = [
  ...[8, 16, 24, 32, 48, 64, 96, 128, 192, SIZE].map((size) => [size, 1]),
  ...[2, 3, 4, 6, 9, 12].map((samples) => [SIZE, samples]),
].map(([size, samples]) => ({ size, samples }));
// Where in the Mandelbrot set: the middle, half the width, after how many
// rounds a point counts as inside, and how many the fastest points take.
const VIEWS = [
  { x: -0.7475, y: 0.1, reach: 0.0012, limit: 1500, least: 50 },
  { x: -0.7445, y: 0.1345, reach: 0.005, limit: 900, least: 50 },
  { x: -0.235125, y: 0.827815, reach: 0.0011, limit: 600, least: 30 },
];
const STEP_TIME = 500;
const SLICE = 8;
const CUT_TIME = 2200;
const RETRY_MIN = 1000;
const RETRY_MAX = 10000;
const MAX_STEPS = 200;
const MAX_TEXT = 400;
const IMAGE = /^data:image\/png;base64,[A-Za-z0-9+/=]+$/;
const TOPIC = /^(?!.*(^|\/)\.{1,2}(\/|$))[\w.~:@-]+(\/[\w.~:@-]+)*$/;

const element = (id) => document.getElementById(id);
const sleep = (time) => new Promise((done) => setTimeout(done, time));

const page = ssedPage(TEXTS, changed);
let frame = 0;

// ------------------------------------------------------------ the picture

// From far outside the set to its edge, and the inside.
const COLOURS = [
  [0, 9, 14, 48],
  [0.25, 28, 70, 150],
  [0.45, 60, 160, 200],
  [0.6, 240, 236, 200],
  [0.78, 236, 160, 50],
  [0.92, 120, 40, 30],
  [1, 10, 8, 16],
];

function colour(value) {
  const above = Math.max(1, COLOURS.findIndex(([at]) => value <= at));
  const [from, to] = [COLOURS[above - 1], COLOURS[above]];
  const share = (value - from[0]) / (to[0] - from[0]);

  return [1, 2, 3].map((i) => Math.round(from[i] + share * (to[i] - from[i])));
}

// A picture has a number into this for each point, and so few colours that it
// fits into an event. A canvas would write three bytes a point.
const LAST = 127;
const PALETTE = new Uint8Array(
  Array.from({ length: LAST + 1 }, (_, i) => colour(i / LAST)).flat(),
);

// 0 to LAST: how near to the set the point lies.
function shade(view, x, y) {
  let re = 0;
  let im = 0;

  for (let n = 0; n < view.limit; n++) {
    const square = re * re + im * im;

    if (square > 256) {
      const rounds = n - Math.log2(Math.log2(square) / 8);
      const near = Math.log(Math.max(1, rounds / view.least));

      return (LAST * near) / Math.log(view.limit / view.least);
    }
    [re, im] = [re * re - im * im + x, 2 * re * im + y];
  }
  return LAST;
}

// Lets the page draw and answer; unlike timers not slowed down in a hidden tab.
function breathe() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();

    port1.onmessage = done;
    port2.postMessage(null);
  });
}

// Adds one sample of every point to the sums.
async function addSample(view, size, sums, number) {
  // places that fill a point evenly, however many there are of them
  const right = (0.5 + number * 0.7548776662) % 1;
  const down = (0.5 + number * 0.5698402910) % 1;
  let rest = performance.now() + SLICE;

  for (let row = 0; row < size; row++) {
    const y = view.y + view.reach * (1 - (2 * (row + down)) / size);

    for (let column = 0; column < size; column++) {
      const x = view.x + view.reach * ((2 * (column + right)) / size - 1);

      sums[row * size + column] += shade(view, x, y);
    }
    if (performance.now() < rest) continue;
    await breathe();
    rest = performance.now() + SLICE;
  }
}

function crc(bytes) {
  let value = -1;

  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++)
      value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return ~value;
}

function pngChunk(type, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);

  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  view.setInt32(bytes.length - 4, crc(bytes.subarray(4, -4)));
  return bytes;
}

async function deflate(bytes) {
  const stream = new Blob([bytes]).stream();
  const packed = stream.pipeThrough(new CompressionStream("deflate"));

  return new Uint8Array(await new Response(packed).arrayBuffer());
}

async function png(size, values) {
  const header = new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 8, 3, 0, 0, 0]);
  // each row begins with a zero: nothing is done to it
  const line = size + 1;
  const rows = new Uint8Array(size * line);

  new DataView(header.buffer).setUint32(0, size);
  new DataView(header.buffer).setUint32(4, size);
  for (let row = 0; row < size; row++)
    rows.set(values.subarray(row * size, (row + 1) * size), row * line + 1);
  return new Blob(
    [
      new Uint8Array([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10]),
      pngChunk("IHDR", header),
      pngChunk("PLTE", PALETTE),
      pngChunk("IDAT", await deflate(rows)),
      pngChunk("IEND", []),
    ],
    { type: "image/png" },
  );
}

function dataUrl(blob) {
  return new Promise((done) => {
    const reader = new FileReader();

    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
}

// Yields the picture of each step; samples that are there are not taken again.
async function* compute(view) {
  let sums = new Float32Array(0);
  let taken = 0;

  for (const { size, samples } of STEPS) {
    if (sums.length !== size * size) {
      sums = new Float32Array(size * size);
      taken = 0;
    }
    while (taken < samples) await addSample(view, size, sums, taken++);
    const values = Uint8Array.from(sums, (sum) => Math.round(sum / taken));
    yield await dataUrl(await png(size, values));
  }
}

// ---------------------------------------------------------- the publisher

// What is being computed: { step, halted }, the last step that is published.
let run = null;
let topic = topicOfUrl();
let status = { key: topic ? "joined" : "ready", total: STEPS.length };

function topicOfUrl() {
  const named = new URLSearchParams(location.search).get("topic") ?? "";

  return TOPIC.test(named) && named.length < 256 ? named : "";
}

function tell(key, values, bad = false) {
  status = { key, bad, total: STEPS.length, ...values };
  changed();
}

// ssed says in one line of plain text what is wrong; a proxy sends a page.
async function refusal(response) {
  const plain = /^text\/plain/.test(response.headers.get("Content-Type"));
  const reason = plain ? (await response.text()).trim() : "";

  return reason || page.fill("status", { status: response.status });
}

// The id; null where the server is away and the step is to be tried again.
async function post(step, body) {
  const end = step === STEPS.length ? "&end=1" : "";
  let response;

  try {
    response = await fetch(`/events/${topic}?event=progress${end}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body,
    });
    if (response.ok) return (await response.json()).id;
  } catch {
    return null;
  }
  if (response.status === 503) return null;
  throw new Error(await refusal(response));
}

async function publish(work, step, image) {
  const total = STEPS.length;

  while (!work.halted) {
    const body = JSON.stringify({ step, total, at: Date.now(), image });
    const id = await post(step, body);

    if (id) return { id, bytes: body.length };
    tell("away", { step }, true);
    await sleep(RETRY_MIN);
  }
  return null;
}

async function publishAll(work) {
  const view = VIEWS[Math.floor(Math.random() * VIEWS.length)];
  let began = performance.now();

  for await (const image of compute(view)) {
    const ms = Math.round(performance.now() - began);

    // slow enough to be watched
    await sleep(STEP_TIME - ms);
    const sent = await publish(work, work.step + 1, image);
    if (!sent) break;
    const step = STEPS[work.step++];
    tell("computing", { ...step, ...sent, step: work.step, ms });
    began = performance.now();
    if (work.step === STEPS.length) tell("finished", sent);
  }
}

// So that nobody waits for steps that will not come.
function finishTopic() {
  const request = { method: "DELETE", keepalive: true };

  fetch(`/events/${topic}`, request).catch(() => {});
}

async function start() {
  if (run) return;
  const work = (run = { step: 0, halted: false });

  topic = `demo/picture-${Math.random().toString(36).slice(2, 7)}`;
  history.replaceState(null, "", `?topic=${topic}`);
  late.leave();
  reader.join("lastEventId=earliest");
  tell("begun");
  try {
    await publishAll(work);
    if (work.step < STEPS.length) {
      tell("halted", { step: work.step });
      finishTopic();
    }
  } catch (error) {
    tell("refused", { step: work.step + 1, reason: error.message }, true);
  }
  run = null;
  changed();
}

function stop() {
  if (run) run.halted = true;
  changed();
}

// ------------------------------------------------------------ the readers

// What an event says, or null where it is no step of a picture.
function stepOf(text) {
  let data;

  try {
    data = JSON.parse(text);
  } catch {
    return null;
  }
  const { step, total, at, image } = data ?? {};
  const counted = Number.isInteger(step) && Number.isInteger(total);

  if (!counted || step < 1 || step > total || total > MAX_STEPS) return null;
  return IMAGE.test(image) ? { step, total, at, image } : null;
}

function brief(text) {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text;
}

class Reader {
  constructor(panel, invitation) {
    const parts = element("reader-parts").content.cloneNode(true);
    const find = (selector) => panel.querySelector(selector);

    panel.append(parts);
    this.invitation = invitation;
    this.parts = {
      state: find(".state"),
      empty: find(".picture p"),
      image: find("img"),
      step: find(".step span"),
      id: find(".step code"),
      progress: find("progress"),
      steps: find(".steps"),
      facts: find(".facts"),
      note: find(".note"),
    };
    // the points of a coarse step are to be seen, the last ones are smooth
    this.parts.image.onload = ({ target }) => {
      target.classList.toggle("coarse", target.naturalWidth < SIZE);
    };
    this.forget();
  }

  forget() {
    Object.assign(this, {
      source: null,
      timer: 0,
      state: "idle",
      retryDelay: RETRY_MIN,
      cut: false,
      // when it came back after a cut: what is older was missed
      returned: 0,
      position: "",
      step: 0,
      total: 0,
      image: "",
      // how each step has come: "live" or "caught"
      ways: [],
      delay: null,
      note: null,
    });
  }

  join(query) {
    this.leave();
    this.query = query;
    this.joined = performance.now();
    this.open();
  }

  leave() {
    this.close();
    this.forget();
    changed();
  }

  close() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
  }

  // Where it was, or where it began if nothing has come since.
  open() {
    const query = this.position ? `lastEventId=${this.position}` : this.query;

    this.close();
    this.state = this.cut ? "reconnecting" : "connecting";
    this.source = new EventSource(`/events/${topic}?${query}`);
    this.source.onopen = () => this.opened();
    this.source.onerror = () => this.failed();
    ssedWatch(this.source);
    this.source.onmessage = (event) => this.receive(event);
    this.source.addEventListener("progress", (event) => this.receive(event));
    this.source.addEventListener("ssed.gap", (event) => this.tellGap(event));
    this.source.addEventListener("ssed.end", (event) => this.end(event));
    changed();
  }

  opened() {
    if (this.cut) this.returned = Date.now();
    this.cut = false;
    this.retryDelay = RETRY_MIN;
    this.state = "live";
    changed();
  }

  // The browser reconnects by itself, except where it got an answer that is no
  // stream, from a proxy say: then it gives up, and the page goes on trying.
  failed() {
    const gaveUp = this.source.readyState === EventSource.CLOSED;

    this.cut = true;
    this.state = gaveUp ? "error" : "reconnecting";
    if (gaveUp) this.comeBack(this.retryDelay * (0.5 + Math.random() / 2));
    this.retryDelay = Math.min(this.retryDelay * 2, RETRY_MAX);
    changed();
  }

  comeBack(delay) {
    this.close();
    this.timer = setTimeout(() => this.open(), delay);
  }

  // What a network that breaks would do; EventSource returns in the same way.
  breakOff() {
    if (this.state !== "live") return;
    this.cut = true;
    this.state = "cutOff";
    this.comeBack(CUT_TIME);
    changed();
  }

  receive({ data, lastEventId }) {
    const news = stepOf(data);

    this.position = lastEventId;
    if (news) this.take(news);
    else this.note = { key: "text", text: brief(data) };
    changed();
  }

  // A publisher that was not answered sends a step again.
  take({ step, total, at, image }) {
    if (step < this.step) this.ways = [];
    Object.assign(this, { step, total, image });
    this.ways[step] ??= at < this.returned ? "caught" : "live";
    this.delay ??= Math.round(performance.now() - this.joined);
  }

  tellGap({ data, lastEventId }) {
    this.position = lastEventId;
    this.note = { key: "gap", requested: JSON.parse(data).requested };
    changed();
  }

  end({ data, lastEventId }) {
    const whole = this.step > 0 && JSON.parse(data).complete !== false;

    this.position = lastEventId;
    this.close();
    this.state = whole && this.step === this.total ? "done" : "stopped";
    changed();
  }

  render() {
    const { parts, step, total, note } = this;

    write(parts.state, page.words[this.state]);
    parts.state.dataset.state = this.state;
    parts.empty.textContent =
      page.words[this.state === "idle" ? this.invitation : "nothing"];
    parts.image.hidden = !this.image;
    if (this.image && parts.image.src !== this.image)
      parts.image.src = this.image;
    parts.image.alt = page.fill("alt", this);
    parts.step.textContent = page.fill(step ? "step" : "noStep", this);
    parts.id.textContent = this.position && page.fill("id", this);
    parts.progress.max = total || 1;
    parts.progress.value = step;
    this.renderSteps();
    parts.facts.textContent = step ? this.facts() : "";
    parts.note.hidden = !note;
    parts.note.textContent = note ? page.fill(note.key, note) : "";
  }

  // Steps from before the first that came were not asked for.
  wayOf(step, first) {
    if (this.ways[step] || step > this.step) return this.ways[step] ?? "";
    return step < first ? "before" : "gone";
  }

  renderSteps() {
    const first = this.ways.findIndex(Boolean);
    const marks = Array.from({ length: this.total }, (_, i) => {
      const mark = document.createElement("li");

      mark.className = this.wayOf(i + 1, first);
      return mark;
    });

    this.parts.steps.replaceChildren(...marks);
  }

  facts() {
    const { total, delay } = this;
    const received = this.ways.filter(Boolean).length;
    const caught = this.ways.filter((way) => way === "caught").length;
    const skipped = this.ways.findIndex(Boolean) - 1;
    const sentences = [page.fill("received", { received, total })];

    if (caught) sentences.push(page.fill("caught", { caught }));
    if (skipped) sentences.push(page.fill("skipped", { skipped }));
    if (this.invitation === "pressJoin")
      sentences.push(page.fill("delay", { delay }));
    return sentences.join(page.language === "zh" ? "" : " ");
  }
}

// --------------------------------------------------------------- the page

const reader = new Reader(element("reader"), "pressStart");
const late = new Reader(element("late"), "pressJoin");

function changed() {
  if (!frame) frame = requestAnimationFrame(render);
}

// A button that does nothing now is not `disabled`: that would take the focus
// away from someone who has just pressed it by key.
function enable(id, enabled) {
  element(id).setAttribute("aria-disabled", String(!enabled));
}

// Written only when it has changed: a screen reader says it again otherwise.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function render() {
  const said = element("publisher-status");

  frame = 0;
  reader.render();
  late.render();
  write(said, page.fill(status.key, status));
  said.className = status.bad ? "bad" : "";
  write(element("start-btn"), page.words[topic ? "startAnew" : "start"]);
  enable("start-btn", !run);
  enable("stop-btn", run && !run.halted);
  enable("cut-btn", reader.state === "live");
  enable("join-btn", Boolean(topic));
  element("tab-link").hidden = !topic;
  element("tab-link").href = `?topic=${topic}`;
}

element("start-btn").onclick = start;
element("stop-btn").onclick = stop;
element("cut-btn").onclick = () => reader.breakOff();
// the end of a finished topic counts as one: two are an end and a picture
element("join-btn").onclick = () => {
  if (topic) late.join("last=2");
};
addEventListener("pagehide", () => {
  // the browser keeps a page for the way back, and its streams with it
  for (const { source } of [reader, late]) source?.close();
  if (!run) return;
  stop();
  finishTopic();
});
// A page that comes back from there has dead connections.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const one of [reader, late]) if (one.source) one.open();
});

if (topic) reader.join("last=2");
