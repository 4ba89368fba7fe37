"use strict";

// Every text of the page, in both languages.
const TEXTS = {
  en: {
    title: "Live analysis",
    lead: "Three series, twenty events a second each, and what an analysis finds in them: four topics on one connection. Pause and go on: what was missed is drawn in.",
    cards: "State",
    buttons: "Source and connection",
    connection: "Connection",
    rate: "Events a second",
    age: "Age, p50 / p99",
    ageHint: "How long ago a live event was published when a frame painted it",
    missing: "Missing",
    missingHint: "Figures that never came, by the source's own numbers",
    ages: "{p50} / {p99} ms",
    unknown: "–",
    startSource: "Start the source",
    stopSource: "Stop the source",
    pause: "Pause",
    goOn: "Go on",
    tab: "Watch in another tab",
    findings: "Findings",
    off: "This tab can play the source, too: it measures a service that it simulates.",
    on: "The source runs in this tab, and publishes each figure as an event.",
    away: "The server cannot be reached: what is measured waits to be published.",
    refused: "The server refuses an event: {reason}",
    taken: "The source has been started in another tab.",
    status: "status {status}",
    connecting: "Connecting…",
    live: "Connected",
    paused: "Paused",
    reconnecting: "Reconnecting…",
    error: "Trying again",
    done: "Finished",
    chart: "The last 60 seconds. {load}; {latency}; {queue}.",
    nothing: "Nothing yet: start the source",
    now: "now",
    ago: "{seconds} s ago",
    caughtUp: "caught up",
    gone: "gap",
    bound: "bound",
    load: "Load",
    latency: "Latency",
    queue: "Queue",
    loadUnit: "req/s",
    latencyUnit: "ms",
    queueUnit: "jobs",
    spike: "{name} jumps to {value} {unit}; the 2 seconds before it averaged {mean}",
    rise: "{name} has risen from {from} to {value} {unit} in 10 seconds",
    fall: "{name} has fallen from {from} to {value} {unit} in 10 seconds",
    over: "{name} is over its bound of {bound} {unit}: {value}",
    under: "{name} is well under its bound of {bound} {unit} again: {value}",
    pausedNow: "Paused: the connection is closed, the position kept",
    caughtUpOn: "Caught up on {count} events, the oldest {seconds} s old",
    cutOff: "The connection is lost",
    gap: "The server told of a gap: not all that came after id {requested} is held",
    ended: "Finished: {topic}",
    text: "Not a figure of {name}: {text}",
  },
  zh: {
    title: "实时分析",
    lead: "三组数据，每组每秒二十个事件，再加上分析得出的结论：四个主题共用一个连接。暂停后继续，错过的部分会补画出来。",
    cards: "状态",
    buttons: "数据源与连接",
    connection: "连接状态",
    rate: "每秒事件数",
    age: "上屏用时 p50 / p99",
    ageHint: "实时事件从发布到绘制所用的时间",
    missing: "缺失",
    missingHint: "按数据源自己的编号，始终没有收到的数据",
    ages: "{p50} / {p99} 毫秒",
    unknown: "–",
    startSource: "启动数据源",
    stopSource: "停止数据源",
    pause: "暂停",
    goOn: "继续",
    tab: "在新标签页中观看",
    findings: "分析结论",
    off: "本标签页也可充当数据源：测量一个模拟的服务。",
    on: "数据源在本标签页中运行，每个数值作为一个事件发布。",
    away: "无法连接服务器：测得的数据等待发布。",
    refused: "服务器拒绝了事件：{reason}",
    taken: "数据源已在另一个标签页中启动。",
    status: "状态码 {status}",
    connecting: "连接中…",
    live: "已连接",
    paused: "已暂停",
    reconnecting: "重连中…",
    error: "正在重试",
    done: "已结束",
    chart: "最近 60 秒。{load}；{latency}；{queue}。",
    nothing: "还没有数据：请启动数据源",
    now: "现在",
    ago: "{seconds} 秒前",
    caughtUp: "续传",
    gone: "缺口",
    bound: "上限",
    load: "负载",
    latency: "延迟",
    queue: "队列",
    loadUnit: "次/秒",
    latencyUnit: "毫秒",
    queueUnit: "个",
    spike: "{name}突增至 {value} {unit}，此前 2 秒平均为 {mean}",
    rise: "{name}在 10 秒内从 {from} 升至 {value} {unit}",
    fall: "{name}在 10 秒内从 {from} 降至 {value} {unit}",
    over: "{name}超过上限 {bound} {unit}：{value}",
    under: "{name}已明显回落到上限 {bound} {unit} 以下：{value}",
    pausedNow: "已暂停：连接已关闭，位置已保留",
    caughtUpOn: "已补收 {count} 个事件，最早的一个在 {seconds} 秒前",
    cutOff: "连接中断",
    gap: "服务器告知有缺口：ID {requested} 之后的事件已不完整",
    ended: "已结束：{topic}",
    text: "不是{name}的数据：{text}",
  },
};

const WINDOW = 60000;
const TICK = 50;
const MAX_POINTS = (1.5 * WINDOW) / TICK;
const MAX_FINDINGS = 100;
const MAX_WAITING = 1000;
const MAX_AGES = 1200;
const MAX_TEXT = 400;
const RETRY_MIN = 1000;
const RETRY_MAX = 10000;
// as many events as the window holds
const REPLAY = (62 * WINDOW) / 1000;
const LATENCY_BOUND = 150;
const TOPIC = /^(?!.*(^|\/)\.{1,2}(\/|$))[\w.~:@-]+(\/[\w.~:@-]+)*$/;

// A series differs from the others by its lane, its label and its mark, too.
const SERIES = [
  { name: "load", mark: circle },
  { name: "latency", mark: square, bound: LATENCY_BOUND },
  { name: "queue", mark: triangle },
].map((series) => ({ ...series, points: [], last: null }));

const element = (id) => document.getElementById(id);
const sleep = (time) => new Promise((done) => setTimeout(done, time));

const page = ssedPage(TEXTS, renderTexts);
const prefix = prefixOfUrl();

// ------------------------------------------------- the source and analysis

// Its timers go on where those of a hidden tab are slowed down.
const TICKER = `setInterval(() => postMessage(Date.now()), ${TICK})`;

let source = null;
let sourceSays = { key: "off" };

function prefixOfUrl() {
  const named = new URLSearchParams(location.search).get("topics") ?? "";

  if (TOPIC.test(named) && named.length < 200) return named;
  return `demo/monitor-${Math.random().toString(36).slice(2, 7)}`;
}

function say(key, values, bad = false) {
  if (key === sourceSays.key) return;
  sourceSays = { key, bad, ...values };
  renderSource();
}

// A service with room for 420 requests a second: what is more has to wait.
class Service {
  constructor() {
    this.began = Date.now();
    this.burst = 0;
    this.queue = 0;
  }

  step(at) {
    const noise = Math.random() + Math.random() + Math.random() - 1.5;
    const wave = Math.sin((at - this.began) / 7000);

    if (Math.random() < 0.004) this.burst = 120 + 80 * Math.random();
    this.burst *= 0.975;
    const load = Math.max(0, 330 + 80 * wave + this.burst + 18 * noise);
    this.queue = Math.max(0, this.queue + ((load - 420) * TICK) / 1000);
    const wait = (this.queue / 420) * 1000;
    const latency = 40 + load / 20 + wait + 6 * Math.random();
    return { load, latency, queue: this.queue };
  }
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Looks at one series. That it crosses its bound is always told, what else it
// does only after ten seconds in which there was nothing to tell.
class Analysis {
  constructor(bound = Infinity) {
    this.values = [];
    this.bound = bound;
    this.isOver = false;
    this.quietUntil = 0;
  }

  // The key of a finding and its values, or nothing.
  look(at, value) {
    const before = this.values.slice(-40);
    const found =
      this.crossing(value) ??
      (at < this.quietUntil ? null : this.change(value, before));

    this.values.push(value);
    if (this.values.length > 200) this.values.shift();
    if (found) this.quietUntil = at + 10000;
    return found;
  }

  crossing(value) {
    const { isOver, bound } = this;

    // not at once under it again, or noise would cross it over and over
    this.isOver = value > (isOver ? 0.8 * bound : bound);
    if (this.isOver === isOver) return null;
    return { key: isOver ? "under" : "over", value, bound };
  }

  change(value, before) {
    if (this.values.length < 200) return null;
    const usual = mean(before);
    const spread = Math.sqrt(mean(before.map((one) => (one - usual) ** 2)));
    const from = mean(this.values.slice(0, 40));

    if (value - usual > Math.max(5 * spread, 0.3 * usual, 8))
      return { key: "spike", value, mean: usual };
    if (Math.abs(usual - from) < Math.max(0.35 * from, 8)) return null;
    return { key: usual > from ? "rise" : "fall", from, value: usual };
  }
}

// A finding in words; the reader takes those of its own language.
function wording(language, name, found) {
  const words = TEXTS[language];
  const values = { name: words[name], unit: words[`${name}Unit`] };

  for (const [key, value] of Object.entries(found))
    if (key !== "key") values[key] = Math.round(value);
  return words[found.key].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

class Source {
  constructor() {
    // greater in a source that is started later, which takes over
    this.run = Date.now();
    this.number = 0;
    this.service = new Service();
    this.topics = [...SERIES.map(({ name }) => name), "finding"].map(
      (name) => ({ name, waiting: [], sending: false }),
    );
    this.analyses = SERIES.map(({ bound }) => new Analysis(bound));
    const address = URL.createObjectURL(new Blob([TICKER]));
    this.ticker = new Worker(address);
    this.ticker.onmessage = ({ data }) => this.tick(data);
    URL.revokeObjectURL(address);
  }

  stop() {
    this.ticker.terminate();
    for (const topic of this.topics) topic.waiting = [];
  }

  tick(at) {
    // the server has been away for long: the service is not measured then
    if (this.topics[0].waiting.length >= MAX_WAITING) return;
    const values = this.service.step(at);

    this.number++;
    SERIES.forEach(({ name }, i) => {
      const value = Number(values[name].toFixed(2));
      const found = this.analyses[i].look(at, value);

      this.send(i, { run: this.run, n: this.number, at, value });
      if (found) this.send(SERIES.length, this.finding(at, name, found));
    });
  }

  finding(at, series, found) {
    const [en, zh] = ["en", "zh"].map((one) => wording(one, series, found));

    return { at, series, en, zh };
  }

  send(i, data) {
    this.topics[i].waiting.push(data);
    this.pump(this.topics[i]);
  }

  // One request at a time for each topic, so that its events keep their order.
  // Mostly one event; all that wait where a request has taken longer.
  async pump(topic) {
    if (topic.sending) return;
    topic.sending = true;
    while (topic.waiting.length) {
      const count = topic.waiting.length;

      if (await this.post(topic)) topic.waiting.splice(0, count);
      else await sleep(RETRY_MIN);
    }
    topic.sending = false;
  }

  // False where the server is away and the same is to be tried again.
  async post({ name, waiting }) {
    const event = (data) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
    let response;

    try {
      response = await fetch(topicPath(name), {
        method: "POST",
        headers: { "Content-Type": "text/event-stream" },
        body: waiting.map(event).join(""),
      });
    } catch {
      response = { status: 503 };
    }
    if (source !== this) return true;
    if (response.status === 503) say("away", {}, true);
    else if (!response.ok) stopSource("refused", await refusal(response));
    else say("on");
    return response.status !== 503;
  }
}

function topicPath(name) {
  return `/events/${prefix}/${name}`;
}

// ssed says in one line of plain text what is wrong; a proxy sends a page.
async function refusal(response) {
  const plain = /^text\/plain/.test(response.headers.get("Content-Type"));
  const reason = plain ? (await response.text()).trim() : "";

  return reason || page.fill("status", { status: response.status });
}

function stopSource(key = "off", reason = "") {
  source?.stop();
  source = null;
  say(key, { reason }, Boolean(reason));
}

function toggleSource() {
  if (source) return stopSource();
  source = new Source();
  say("on");
  // where all topics were finished, this opens them again
  ended.clear();
  if (state === "done") openStream();
}

// -------------------------------------------------------------- the reader

let stream = null;
let state = "connecting";
let retryTimer = 0;
let retryDelay = RETRY_MIN;
let lastId = "";
// What was measured before this moment is caught up.
let returned = 0;
let caughtUp = null;
let caughtUps = [];
let pausedAt = 0;
let received = 0;
let missing = 0;
let findings = [];
// how many of them are not on the page yet
let unshown = 0;
let ended = new Set();
// Where the server told of a gap: from the last figure to the next.
let gaps = [];
// When the figures were published that no frame has shown yet, and how old
// the last of those were that one has.
let unpainted = [];
let ages = [];

function setState(next) {
  state = next;
  renderState();
  wake();
}

// A record has words, or a key that is worded in the page's language.
function note(record) {
  findings.unshift({ at: Date.now(), look: "page", ...record });
  findings.length = Math.min(findings.length, MAX_FINDINGS);
  unshown = Math.min(unshown + 1, MAX_FINDINGS);
  wake();
}

function brief(text) {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text;
}

// One that a Date can be made of.
function isTime(at) {
  return Number.isFinite(at) && Math.abs(at) <= 8.64e15;
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function count({ lastEventId }, at) {
  lastId = lastEventId;
  received++;
  if (at < returned) catchUp(at);
}

function catchUp(at) {
  if (!caughtUp || caughtUp.returned !== returned) {
    caughtUp = { returned, from: at, to: at, count: 0, counted: 0 };
    caughtUps.push(caughtUp);
  }
  caughtUp.count++;
  caughtUp.to = Math.max(caughtUp.to, at);
}

function receiveFigure(series, event) {
  const { run, n, at, value } = parsed(event.data);

  count(event, at);
  if (![run, n, at, value].every(Number.isFinite)) {
    note({ key: "text", name: series.name, text: brief(event.data) });
    return;
  }
  if (source && run > source.run) stopSource("taken");
  ended.delete(series.name);
  addFigure(series, { run, n, at, value, caught: at < returned });
}

function addFigure(series, figure) {
  const { last, points } = series;
  const same = last?.run === figure.run;

  // from a source that another has replaced, or sent again by one that was
  // not answered
  if (last && (figure.run < last.run || (same && figure.n <= last.n))) return;
  figure.joined = same && figure.n === last.n + 1;
  if (same) missing += figure.n - last.n - 1;
  series.last = figure;
  points.push(figure);
  if (points.length > MAX_POINTS) points.shift();
  for (const gap of gaps) gap.to ??= figure.at;
  if (!figure.caught && !document.hidden && unpainted.length < MAX_AGES)
    unpainted.push(figure.at);
  wake();
}

// In both languages from this page's own source, else as it came.
function receiveFinding(event) {
  const { at, series, en, zh } = parsed(event.data);
  const again = (one) => one.at === at && one.series === series;

  count(event, at);
  ended.delete("finding");
  if (![en, zh].every((text) => typeof text === "string") || !isTime(at)) {
    const text = brief(event.data);

    note({ words: { en: text, zh: text }, look: "finding" });
  } else if (!findings.some(again)) {
    const words = { en: brief(en), zh: brief(zh) };

    note({ at, series, words, look: "finding" });
  }
}

function receiveGap(event) {
  const { requested } = parsed(event.data);
  const known = SERIES.map(({ last }) => last?.at ?? 0);

  lastId = event.lastEventId;
  if (Math.max(...known)) gaps.push({ from: Math.max(...known), to: null });
  note({ key: "gap", requested, look: "warning" });
}

function receiveEnd(event) {
  const { topic } = parsed(event.data);

  lastId = event.lastEventId;
  ended.add(topic.split("/").pop());
  note({ key: "ended", topic });
}

function opened() {
  returned = Date.now();
  retryDelay = RETRY_MIN;
  setState("live");
}

// The browser reconnects by itself, except where it got an answer that is no
// stream: then it gives up, and the page goes on trying, unless it is that
// there is nothing more to come.
function failed() {
  const gaveUp = stream.readyState === EventSource.CLOSED;

  if (gaveUp && ended.size > SERIES.length) {
    closeStream();
    setState("done");
    return;
  }
  if (state === "live") note({ key: "cutOff" });
  setState(gaveUp ? "error" : "reconnecting");
  if (!gaveUp) return;
  stream = null;
  retryTimer = setTimeout(openStream, retryDelay * (0.5 + Math.random() / 2));
  retryDelay = Math.min(retryDelay * 2, RETRY_MAX);
}

function closeStream() {
  stream?.close();
  stream = null;
  clearTimeout(retryTimer);
  retryTimer = 0;
}

function openStream() {
  const query = new URLSearchParams();

  closeStream();
  for (const { name } of [...SERIES, { name: "finding" }])
    query.append("topic", `${prefix}/${name}`);
  if (lastId) query.append("lastEventId", lastId);
  else query.append("last", REPLAY);
  stream = new EventSource(`/events?${query}`);
  stream.onopen = opened;
  stream.onerror = failed;
  ssedWatch(stream);
  for (const series of SERIES)
    stream.addEventListener(series.name, (event) =>
      receiveFigure(series, event),
    );
  stream.addEventListener("finding", receiveFinding);
  stream.onmessage = receiveFinding;
  stream.addEventListener("ssed.gap", receiveGap);
  stream.addEventListener("ssed.end", receiveEnd);
  pausedAt = 0;
  setState(lastId ? "reconnecting" : "connecting");
}

// Connected, or on the way there.
function trying() {
  return Boolean(stream || retryTimer);
}

function pause() {
  closeStream();
  pausedAt = Date.now();
  unpainted = [];
  note({ key: "pausedNow" });
  setState("paused");
}

function togglePause() {
  if (trying()) pause();
  else openStream();
}

// --------------------------------------------------------------- the chart

const chart = element("chart");
const context = chart.getContext("2d");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const FONT = "13px system-ui, -apple-system, 'PingFang SC', sans-serif";
// above the lanes, and above what is drawn in each
const HEAD = 14;
const LANE_HEAD = 20;
const AXIS = 24;

let colours = {};
let shownValues = [];

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = `surface text faint line caught caught-surface warn
    warn-surface series-1 series-2 series-3`;

  for (const name of names.split(/\s+/))
    colours[name] = style.getPropertyValue(`--${name}`).trim();
}

function circle(x, y) {
  context.arc(x, y, 4, 0, 7);
}

function square(x, y) {
  context.rect(x - 3.5, y - 3.5, 7, 7);
}

function triangle(x, y) {
  context.moveTo(x, y - 5);
  context.lineTo(x + 5, y + 4);
  context.lineTo(x - 5, y + 4);
}

// The least round number that leaves some room above the value.
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value * 1.1));
  const steps = [1, 1.5, 2, 3, 4, 6, 8, 10];

  return unit * steps.find((step) => step * unit >= value * 1.1);
}

// As sharp as the screen is.
function resize() {
  const scale = devicePixelRatio;
  const [width, height] = [chart.clientWidth, chart.clientHeight];
  const [across, down] = [width * scale, height * scale].map(Math.round);

  if (chart.width !== across || chart.height !== down) {
    chart.width = across;
    chart.height = down;
  }
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return { width, height };
}

function write(text, x, y, colour, align = "left", weight = "") {
  context.font = `${weight} ${FONT}`;
  context.textAlign = align;
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

function rule(x1, y1, x2, y2, colour, dash = []) {
  context.beginPath();
  context.setLineDash(dash);
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
  context.setLineDash([]);
}

// A stretch of time that is told apart by its ground, its edges and a word.
function drawBand(plot, from, to, name, word) {
  const left = Math.max(plot.left, plot.x(from));
  const right = Math.min(plot.right, Math.max(plot.x(to), left + 2));

  if (plot.x(to) < plot.left) return;
  context.fillStyle = colours[`${name}-surface`];
  context.fillRect(left, 0, right - left, plot.bottom);
  rule(left, 0, left, plot.bottom, colours[name], [3, 3]);
  rule(right, 0, right, plot.bottom, colours[name], [3, 3]);
  write(word, left + 4, HEAD, colours[name]);
}

function laneOf(plot, i) {
  const { points } = SERIES[i];
  const most = points.reduce((most, { value }) => Math.max(most, value), 8);
  const top = plot.laneTop(i) + LANE_HEAD;
  const bottom = plot.laneTop(i + 1) - 6;
  const max = roundUp(Math.max(most, SERIES[i].bound ?? 0));

  return { top, bottom, max, y: (v) => bottom - (v / max) * (bottom - top) };
}

function drawGrid(plot, lane, { bound }) {
  for (const value of [0, lane.max / 2, lane.max]) {
    rule(plot.left, lane.y(value), plot.right, lane.y(value), colours.line);
    write(value, plot.left - 6, lane.y(value) + 4, colours.faint, "right");
  }
  if (!bound) return;
  const y = lane.y(bound);

  rule(plot.left, y, plot.right, y, colours.warn, [6, 4]);
  write(page.words.bound, plot.left + 4, y - 4, colours.warn);
}

function drawLine(plot, lane, points, colour) {
  context.save();
  context.beginPath();
  context.rect(plot.left, 0, plot.right - plot.left, plot.bottom);
  context.clip();
  context.beginPath();
  for (const { at, value, joined } of points) {
    if (joined) context.lineTo(plot.x(at), lane.y(value));
    else context.moveTo(plot.x(at), lane.y(value));
  }
  context.strokeStyle = colour;
  context.lineWidth = 1.75;
  context.lineJoin = "round";
  context.stroke();
  context.restore();
}

// Every two seconds, and at the end of the line: they stay with their figures.
function drawMarks(plot, lane, { mark, points, last }, colour) {
  context.fillStyle = colour;
  for (const point of points) {
    if (point !== last && point.n % 40) continue;
    if (plot.x(point.at) < plot.left) continue;
    context.beginPath();
    mark(plot.x(point.at), lane.y(point.value));
    context.fill();
  }
}

function drawLabel(plot, lane, i, colour) {
  const { name, last } = SERIES[i];
  const lowest = lane.bottom - 18;
  const y = last ? lane.y(last.value) : lowest;
  const at = Math.min(Math.max(y, lane.top + 8), lowest);
  write(page.words[name], plot.right + 10, at, colour, "left", 600);
  if (last) write(shownValues[i], plot.right + 10, at + 16, colours.text);
}

function drawFindings(plot) {
  for (const { at, series } of findings) {
    const i = SERIES.findIndex(({ name }) => name === series);

    if (i < 0 || plot.x(at) < plot.left || plot.x(at) > plot.right) continue;
    const top = plot.laneTop(i);
    context.beginPath();
    context.fillStyle = colours.text;
    context.moveTo(plot.x(at), top + LANE_HEAD);
    context.lineTo(plot.x(at) - 5, top + LANE_HEAD - 8);
    context.lineTo(plot.x(at) + 5, top + LANE_HEAD - 8);
    context.fill();
  }
}

function drawTime(plot) {
  const y = plot.bottom + 17;

  for (const seconds of [60, 30]) {
    const x = plot.right - ((plot.right - plot.left) * seconds * 1000) / WINDOW;
    const align = seconds === 60 ? "left" : "center";

    rule(x, 0, x, plot.bottom, colours.line);
    write(page.fill("ago", { seconds }), x, y, colours.faint, align);
  }
  const word = page.words[pausedAt ? "paused" : "now"];
  write(word, plot.right, y, colours.faint, "right");
}

function draw() {
  const { width, height } = resize();
  const edge = pausedAt || Date.now();
  const [left, right] = [40, width - (width < 500 ? 72 : 88)];
  const x = (at) => right - ((edge - at) * (right - left)) / WINDOW;
  const bottom = height - AXIS;
  const laneTop = (i) => HEAD + ((bottom - HEAD) * i) / SERIES.length;
  const plot = { left, right, bottom, x, laneTop };

  context.clearRect(0, 0, width, height);
  if (!SERIES.some(({ last }) => last)) {
    write(page.words.nothing, width / 2, height / 2, colours.faint, "center");
    return;
  }
  for (const { from, to } of caughtUps)
    drawBand(plot, from, to, "caught", page.words.caughtUp);
  for (const { from, to } of gaps)
    drawBand(plot, from, to ?? edge, "warn", page.words.gone);
  drawTime(plot);
  SERIES.forEach((series, i) => {
    const lane = laneOf(plot, i);
    const colour = colours[`series-${i + 1}`];

    drawGrid(plot, lane, series);
    drawLine(plot, lane, series.points, colour);
    drawMarks(plot, lane, series, colour);
    drawLabel(plot, lane, i, colour);
  });
  drawFindings(plot);
}

// --------------------------------------------------------------- the page

let frame = 0;
let pauseOfMotion = 0;
// how many events had been received, in the last half seconds
const counts = [];

// Something has to be painted: at the next frame, if none is asked for yet.
function wake() {
  if (!frame && !pauseOfMotion) frame = requestAnimationFrame(paint);
}

function noteAges() {
  const now = Date.now();

  for (const at of unpainted) ages.push(now - at);
  unpainted = [];
  if (ages.length > MAX_AGES) ages = ages.slice(-MAX_AGES);
}

function paint() {
  frame = 0;
  draw();
  renderFindings();
  noteAges();
  // the chart moves as long as there is something on it
  if (pausedAt || !SERIES.some(({ points }) => points.length)) return;
  if (!still.matches) wake();
  else pauseOfMotion = setTimeout(stepOn, 1000);
}

// Where less motion is asked for, the chart moves on once a second.
function stepOn() {
  pauseOfMotion = 0;
  wake();
}

function wordsOf({ key, words, name, ...values }) {
  if (!key) return words[page.language];
  return page.fill(key, { name: page.words[name], ...values });
}

function item(record) {
  const row = document.createElement("li");
  const when = document.createElement("time");
  const body = document.createElement("span");
  const date = new Date(record.at);

  row.className = record.look;
  when.textContent = date.toTimeString().slice(0, 8);
  when.dateTime = date.toISOString();
  body.textContent = wordsOf(record);
  row.append(when, body);
  return row;
}

function renderFindings() {
  const list = element("findings");

  list.prepend(...findings.slice(0, unshown).map(item));
  unshown = 0;
  while (list.childElementCount > MAX_FINDINGS) list.lastElementChild.remove();
}

function renderState() {
  const node = element("state");
  const word = page.words[state];

  // written only when it has changed: a screen reader says it again otherwise
  if (node.textContent !== word) node.textContent = word;
  node.dataset.state = state;
  element("pause-btn").textContent = page.words[trying() ? "pause" : "goOn"];
}

function renderSource() {
  const said = element("source-status");

  said.textContent = page.fill(sourceSays.key, sourceSays);
  said.className = sourceSays.bad ? "bad" : "";
  element("source-btn").textContent =
    page.words[source ? "stopSource" : "startSource"];
}

function percentile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

function renderAges() {
  const sorted = Float64Array.from(ages).sort();
  const [p50, p99] = [0.5, 0.99].map((share) => percentile(sorted, share));

  element("age").textContent = sorted.length
    ? page.fill("ages", { p50, p99 })
    : page.words.unknown;
}

// What is read, and not watched: twice a second.
function renderFigures() {
  shownValues = SERIES.map(({ name, last }) => {
    const value = last ? Math.round(last.value) : page.words.unknown;

    return `${value} ${page.words[`${name}Unit`]}`;
  });
  const said = {};

  SERIES.forEach(({ name }, i) => {
    said[name] = `${page.words[name]} ${shownValues[i]}`;
  });
  chart.setAttribute("aria-label", page.fill("chart", said));
  element("rate").textContent = rate();
  element("missing").textContent = missing;
  renderAges();
}

// Of the last two seconds.
function rate() {
  const [first] = counts;
  const last = counts.at(-1);

  if (!first || first === last) return 0;
  const seconds = (last.at - first.at) / 1000;
  return Math.round((last.received - first.received) / seconds);
}

function forgetOld(now) {
  const oldest = (pausedAt || now) - WINDOW;
  const isNew = ({ to }) => to === null || to > oldest;

  for (const { points } of SERIES) {
    const fresh = points.findIndex(({ at }) => at > oldest);

    points.splice(0, fresh < 0 ? points.length : fresh);
  }
  gaps = gaps.filter(isNew);
  caughtUps = caughtUps.filter(isNew);
}

// The replay is over when nothing old has come since the last time.
function tellCaughtUp() {
  if (!caughtUp || caughtUp.told) return;
  const { count, counted, from } = caughtUp;

  caughtUp.counted = count;
  if (count !== counted) return;
  caughtUp.told = true;
  const seconds = Math.round((returned - from) / 1000);
  note({ key: "caughtUpOn", count, seconds, look: "caught" });
}

function everyHalfSecond() {
  const now = Date.now();

  counts.push({ at: now, received });
  if (counts.length > 5) counts.shift();
  forgetOld(now);
  tellCaughtUp();
  renderFigures();
}

function renderTexts() {
  element("findings").replaceChildren();
  unshown = findings.length;
  renderState();
  renderSource();
  renderFigures();
  wake();
}

function repaint() {
  readColours();
  wake();
}

element("source-btn").onclick = toggleSource;
element("pause-btn").onclick = togglePause;
element("tab-link").href = `?topics=${prefix}`;
dark.onchange = repaint;
new ResizeObserver(wake).observe(chart);
// what was waiting for a frame while there were none is not late
addEventListener("visibilitychange", () => (unpainted = []));
addEventListener("pagehide", () => {
  if (source) stopSource();
  // the browser keeps a page for the way back, and its stream with it
  stream?.close();
});
// A page that comes back from there has a dead connection.
addEventListener("pageshow", (event) => {
  if (event.persisted && trying()) openStream();
});
setInterval(everyHalfSecond, 500);

history.replaceState(null, "", `?topics=${prefix}`);
openStream();
repaint();
