"use strict";

// The state of the server, from the stream /status: an event a second with all
// figures of /metrics, under the names that they have there, and the topics
// that are first in something.

// Every text of the page, in both languages.
const TEXTS = {
  en: {
    title: "Status",
    about: "ssed {version}, up for {up}",
    unknown: "–",
    isWell: "Is all well?",
    well: "All is well",
    look: "Look at this",
    bad: "Not well",
    connecting: "Connecting…",
    lost: "No contact since {time}: trying again",
    full: "The server has too many status pages open: trying again",
    announce: "The server is about to drain: /healthz tells balancers",
    drain: "The server drains: subscribers are sent off",
    restarted: "The server was started anew at {time}",
    foundOverrun: "Subscribers cut for lag in the last minute: {count}",
    foundGap: "Gaps told in the last minute: {count}",
    foundLimit: "Limits hit in the last minute: {count} ({names})",
    foundFailed: "Publishes that failed in the last minute: {count} ({names})",
    foundTurn: "A turn takes {time} (p99): new events wait as long",
    foundShort: "The history is full, and holds {time} only",
    foundConnections: "{share} % of --max-connections are there",
    foundRequests: "{share} % of --request-memory is in use",
    foundRedis: "The shared log cannot be reached",
    foundDisk: "The history file cannot be written",
    now: "Figures of now",
    subscribers: "Subscribers",
    subscribersMore: "connections: {connections}, topics: {topics}",
    eventsIn: "Events in",
    eventsInMore: "{total} since the start",
    eventsOut: "Events out",
    eventsOutMore: "{bytes}/s",
    overrun: "Cut for lag",
    overrunMore: "{recent} in the last minute",
    gaps: "Gaps told",
    gapsMore: "{recent} in the last minute",
    refused: "Publishes refused",
    refusedMore: "{recent} in the last minute",
    turn: "Turn, p99",
    turnMore: "p50 {p50}; of the last 10 seconds",
    lag: "Most lag",
    lagMore: "events behind: {events}",
    ring: "History",
    ringMore: "events: {events}, {share} % of its room",
    memory: "Memory",
    memoryMore: "{requests} held by requests",
    perSecond: "{count}/s",
    charts: "The last five minutes",
    chartsHint: "Left and right arrow keys, or the pointer, show an earlier moment. A red line: a subscriber was cut for lag.",
    chartsAt: "At {time}, {ago} seconds ago. Escape leads back to now.",
    bytesOut: "Bytes out",
    chart: "{name}: {value} now, {most} at most",
    most: "most {most}",
    topics: "Topics",
    topic: "Topic",
    mainStream: "main stream",
    mostSubscribers: "Most subscribers",
    mostLag: "Most lag",
    behind: "Behind",
    counts: "Since the start",
    cause: "Cause",
    total: "Total",
    lastMinute: "Last minute",
    limits: "Limits hit",
    gapCauses: "Gaps told",
    ended: "Subscribers gone",
    budgets: "Budgets of a turn used up",
    none: "none",
  },
  zh: {
    title: "状态",
    about: "ssed {version}，已运行 {up}",
    unknown: "–",
    isWell: "是否一切正常",
    well: "一切正常",
    look: "请留意",
    bad: "不正常",
    connecting: "连接中…",
    lost: "自 {time} 起失去联系，正在重试",
    full: "打开的状态页过多，正在重试",
    announce: "服务器即将排空：/healthz 已告知负载均衡",
    drain: "服务器正在排空：正在送走订阅者",
    restarted: "服务器于 {time} 重新启动",
    foundOverrun: "最近一分钟有 {count} 个订阅者因落后被断开",
    foundGap: "最近一分钟告知了 {count} 次缺口",
    foundLimit: "最近一分钟触及限制 {count} 次（{names}）",
    foundFailed: "最近一分钟有 {count} 次发布失败（{names}）",
    foundTurn: "每轮循环耗时 {time}（p99）：新事件要等这么久",
    foundShort: "历史已满，且只够保存 {time}",
    foundConnections: "连接数已达 --max-connections 的 {share} %",
    foundRequests: "--request-memory 已用 {share} %",
    foundRedis: "无法连接共享日志",
    foundDisk: "无法写入历史文件",
    now: "当前数据",
    subscribers: "订阅者",
    subscribersMore: "{connections} 个连接，{topics} 个主题",
    eventsIn: "发布事件",
    eventsInMore: "启动以来 {total}",
    eventsOut: "送达事件",
    eventsOutMore: "{bytes}/秒",
    overrun: "因落后断开",
    overrunMore: "最近一分钟 {recent}",
    gaps: "告知缺口",
    gapsMore: "最近一分钟 {recent}",
    refused: "被拒绝的发布",
    refusedMore: "最近一分钟 {recent}",
    turn: "每轮耗时 p99",
    turnMore: "p50 {p50}，最近 10 秒",
    lag: "最大落后",
    lagMore: "落后 {events} 个事件",
    ring: "历史",
    ringMore: "{events} 个事件，占 {share} %",
    memory: "内存",
    memoryMore: "请求占用 {requests}",
    perSecond: "{count}/秒",
    charts: "最近五分钟",
    chartsHint: "用左右方向键或指针查看较早的时刻。红线：有订阅者因落后被断开。",
    chartsAt: "{time}，{ago} 秒前。按 Esc 回到现在。",
    bytesOut: "送达字节",
    chart: "{name}：现在 {value}，最高 {most}",
    most: "最高 {most}",
    topics: "主题",
    topic: "主题",
    mainStream: "主事件流",
    mostSubscribers: "订阅者最多",
    mostLag: "落后最多",
    behind: "落后",
    counts: "启动以来",
    cause: "原因",
    total: "总数",
    lastMinute: "最近一分钟",
    limits: "触及的限制",
    gapCauses: "告知的缺口",
    ended: "离开的订阅者",
    budgets: "用尽的每轮预算",
    none: "无",
  },
};

const WINDOW = 300000;
const MINUTE = 60000;
// a line is not drawn over a pause that is longer
const PAUSE = 2500;
const SILENCE = 5000;
const RETRY = 3000;
// what is told of as not well: a turn in s, a history in s, a share
const TURN_LONG = 0.05;
const HISTORY_SHORT = 60;
const NEARLY_ALL = 0.9;

const element = (id) => document.getElementById(id);
const page = ssedPage(TEXTS, render);

// ---------------------------------------------------------------- figures

// One event of the stream. `figures` has a number for each series: a name
// without labels is looked for as it is, one with labels in parts().
class Sample {
  constructor(event) {
    Object.assign(this, event);
    this.labelled = new Map();
    for (const [series, value] of Object.entries(this.figures)) {
      const [, name, labels] = /^(\w+)\{(.*)\}$/.exec(series) ?? [];
      if (!name) continue;
      const key = [...labels.matchAll(/\w+="([^"]*)"/g)]
        .map(([, text]) => text).join(" ");
      if (!this.labelled.has(name)) this.labelled.set(name, new Map());
      this.labelled.get(name).set(key, value);
    }
  }

  // A figure, the sum of one with labels, or undefined.
  value(name) {
    if (name in this.figures) return this.figures[name];
    const parts = this.labelled.get(name);
    return parts && [...parts.values()].reduce((a, b) => a + b, 0);
  }

  parts(name) {
    return this.labelled.get(name) ?? new Map();
  }

  // How much a counter has risen since another sample of the same process.
  rise(name, before) {
    return Math.max(0, this.value(name) - (before?.value(name) ?? NaN));
  }

  rate(name, before) {
    const rise = this.rise(name, before);
    return (rise * 1000) / (this.time - before?.time);
  }

  // Of a histogram, or of what has come to it since another sample; as
  // Prometheus does it, evenly within a bucket.
  quantile(name, share, before) {
    const old = before?.parts(`${name}_bucket`) ?? new Map();
    const buckets = [...this.parts(`${name}_bucket`)]
      .map(([le, n]) =>
        [le === "+Inf" ? Infinity : Number(le), n - (old.get(le) ?? 0)])
      .sort(([a], [b]) => a - b);
    const total = buckets.at(-1)?.[1];
    if (!(total > 0)) return undefined;
    const at = buckets.findIndex(([, n]) => n >= share * total);
    const [from, below] = buckets[at - 1] ?? [0, 0];
    const [to, n] = buckets[at];
    if (to === Infinity) return from;
    return from + ((to - from) * (share * total - below)) / (n - below);
  }
}

// Those of the last five minutes and of this process, the newest last; the
// charts keep the points of an earlier process.
let samples = [];
let restartedAt = 0;

const newest = () => samples.at(-1);

// The newest sample that is as old as that, or the oldest one.
function sampleBefore(time) {
  const edge = newest().time - time;

  return samples.findLast(({ time }) => time <= edge) ?? samples[0];
}

const isOverrun = (reason) => reason === "overrun";
const isRefusal = (status) => status >= 400;
const isFailure = (status) => status >= 500;

// How many, and in the last minute.
function sums(list) {
  const sum = (i) => list.reduce((sum, one) => sum + one[i], 0);

  return { total: sum(1), recent: sum(2) };
}

function recent(name) {
  return newest().rise(name, sampleBefore(MINUTE));
}

// By cause, those that have happened: [cause, total, in the last minute].
function causes(name, counts = () => true) {
  const before = sampleBefore(MINUTE).parts(name);

  return [...newest().parts(name)]
    .filter(([cause, total]) => total > 0 && counts(cause))
    .map(([cause, total]) => [cause, total, total - (before.get(cause) ?? 0)])
    .sort(([, , a], [, , b]) => b - a);
}

// ------------------------------------------------------------------ words

function number(value, digits = 0) {
  if (!Number.isFinite(value)) return page.words.unknown;
  return value.toLocaleString(page.language, { maximumFractionDigits: digits });
}

// Three digits that count, and the unit.
function withUnit(value, units, base) {
  let i = 0;

  if (!Number.isFinite(value)) return page.words.unknown;
  while (value >= base && i < units.length - 1) {
    value /= base;
    i++;
  }
  const digits = i === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${number(value, digits)} ${units[i]}`;
}

function bytes(value) {
  return withUnit(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024);
}

function duration(seconds) {
  if (!(seconds >= 0.001)) return withUnit(seconds * 1e6, ["µs"], 1000);
  if (seconds < 1) return withUnit(seconds * 1e3, ["ms"], 1000);
  if (seconds < 100) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  if (seconds < 6000)
    return `${number(seconds / 60, seconds < 600 ? 1 : 0)} min`;
  if (seconds < 360000) return `${number(seconds / 3600, 1)} h`;
  return `${number(seconds / 86400)} d`;
}

function perSecond(value) {
  return page.fill("perSecond", { count: number(value, value < 10 ? 1 : 0) });
}

function clock(time) {
  return new Date(time).toTimeString().slice(0, 8);
}

function topicName(name) {
  return name || `(${page.words.mainStream})`;
}

function share(part, whole) {
  return number((100 * part) / whole);
}

// ----------------------------------------------------------------- charts

const SVG = "http://www.w3.org/2000/svg";

// Each point has a value for each of these.
const CHARTS = [
  { name: "subscribers", text: number },
  { name: "eventsIn", text: perSecond },
  { name: "eventsOut", text: perSecond },
  { name: "bytesOut", text: (value) => `${bytes(value)}/s` },
  { name: "lag", text: duration },
  { name: "turn", text: duration },
  { name: "ring", text: duration },
  { name: "memory", text: bytes },
];

let points = [];
// how many points before the newest one is looked at
let back = 0;

function pointOf(sample, before) {
  const seconds = sampleBefore(10000);

  return {
    at: sample.time,
    subscribers: sample.value("ssed_subscribers"),
    eventsIn: sample.rate("ssed_events_published_total", before),
    eventsOut: sample.rate("ssed_events_sent_total", before),
    bytesOut: sample.rate("ssed_sent_bytes_total", before),
    lag: sample.value("ssed_lag_seconds_max"),
    turn: sample.quantile("ssed_turn_seconds", 0.99, seconds),
    ring: sample.value("ssed_history_age_seconds"),
    memory: sample.value("ssed_resident_memory_bytes"),
    cut: sample.parts("ssed_unsubscribed_total").get("overrun") >
      before?.parts("ssed_unsubscribed_total").get("overrun"),
  };
}

const looked = () => points.at(-1 - back);

function svg(name, parent, attributes) {
  const node = document.createElementNS(SVG, name);

  for (const [key, value] of Object.entries(attributes))
    node.setAttribute(key, value);
  parent.append(node);
  return node;
}

function html(name, parent, className = "") {
  const node = document.createElement(name);

  if (className) node.className = className;
  parent.append(node);
  return node;
}

// Text is written only when it has changed: nothing is said again, or drawn.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function makeChart(chart) {
  const figure = html("figure", element("charts"));
  const caption = html("figcaption", figure);
  const name = html("span", caption, "name");
  const now = html("strong", caption);
  const most = html("span", caption, "faint");
  const image = svg("svg", figure, {
    viewBox: "0 0 300 60", preserveAspectRatio: "none", role: "img",
  });
  svg("path", image, { class: "base", d: "M0 59.5H300" });
  const area = svg("path", image, { class: "area" });
  const line = svg("path", image, { class: "line" });
  const cuts = svg("path", image, { class: "cuts" });
  const cursor = svg("path", image, { class: "cursor" });

  image.onpointermove = ({ offsetX }) => {
    const at = edge() - WINDOW * (1 - offsetX / image.clientWidth);
    const i = points.findLastIndex((point) => point.at <= at);
    lookBack(i < 0 ? points.length - 1 : points.length - 1 - i);
  };
  image.onpointerleave = () => lookBack(0);
  return { ...chart, name: chart.name, nodes:
    { name, now, most, image, area, line, cuts, cursor } };
}

const edge = () => points.at(-1)?.at ?? 0;
const across = (at) => (300 - ((edge() - at) * 300) / WINDOW).toFixed(1);

// The pieces of the line, as pairs of coordinates.
function pieces(name, most) {
  const found = [];
  let last = -Infinity;

  for (const point of points) {
    if (!Number.isFinite(point[name])) continue;
    if (point.at - last > PAUSE) found.push([]);
    const y = 59 - (56 * point[name]) / (most || 1);
    found.at(-1).push([across(point.at), y.toFixed(1)]);
    last = point.at;
  }
  return found;
}

function drawChart({ name, text, nodes }) {
  const values = points.map((point) => point[name]).filter(Number.isFinite);
  const most = Math.max(0, ...values);
  const lines = pieces(name, most);
  const path = (piece) => `M${piece.map((pair) => pair.join(" ")).join("L")}`;
  const at = looked();

  nodes.line.setAttribute("d", lines.map(path).join(""));
  nodes.area.setAttribute("d", lines.map((piece) =>
    `${path(piece)}V60H${piece[0][0]}Z`).join(""));
  nodes.cuts.setAttribute("d", name !== "lag" ? "" : points
    .filter(({ cut }) => cut).map(({ at }) => `M${across(at)} 0V60`).join(""));
  nodes.cursor.setAttribute("d", back ? `M${across(at.at)} 0V60` : "");
  say(nodes.name, page.words[name]);
  say(nodes.now, text(at?.[name]));
  say(nodes.most, page.fill("most", { most: text(most) }));
  nodes.image.setAttribute("aria-label", page.fill("chart", {
    name: page.words[name], value: text(points.at(-1)?.[name]),
    most: text(most),
  }));
}

function renderCharts() {
  const at = looked();
  const ago = at && Math.round((edge() - at.at) / 1000);

  charts.forEach(drawChart);
  say(element("charts-hint"), back
    ? page.fill("chartsAt", { time: clock(at.at), ago })
    : page.words.chartsHint);
}

function lookBack(count) {
  const most = Math.max(0, points.length - 1);

  back = Math.min(Math.max(0, count), most);
  renderCharts();
}

function chartKey(event) {
  const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];

  if (!step && event.key !== "Escape") return;
  event.preventDefault();
  lookBack(step ? back + step * (event.shiftKey ? 10 : 1) : 0);
}

// --------------------------------------------------------------- findings

// What is not well, the worst first: { key, level, values }.
function findings() {
  const sample = newest();
  const value = (name) => sample.value(`ssed_${name}`);
  const found = [];
  const tell = (holds, level, key, values = {}) =>
    holds && found.push({ level, key, values });
  const tellCauses = (level, key, list) => {
    const fresh = list.filter(([, , recent]) => recent > 0);
    tell(fresh.length, level, key, { count: number(sums(fresh).recent),
      names: fresh.map(([cause]) => cause).join(", ") });
  };
  const gaps = recent("ssed_gaps_total");
  const turn = sample.quantile("ssed_turn_seconds", 0.99, sampleBefore(10000));
  const held = value("history_age_seconds");
  const phase = [null, "announce", "drain"][value("phase")];
  const connections = publicConnections(sample) / value("connections_limit");
  const requests = value("request_memory_bytes") /
    value("request_memory_limit_bytes");

  tell(value("log_up") === 0, "bad", "foundRedis");
  tell(value("history_file_failed") === 1, "bad", "foundDisk");
  tell(phase, "warn", phase);
  tellCauses("bad", "foundFailed", causes("ssed_publishes_total", isFailure));
  tellCauses("warn", "foundOverrun",
    causes("ssed_unsubscribed_total", isOverrun));
  tell(gaps > 0, "warn", "foundGap", { count: number(gaps) });
  tellCauses("warn", "foundLimit", causes("ssed_limits_hit_total"));
  tell(turn > TURN_LONG, "warn", "foundTurn", { time: duration(turn) });
  tell(held < HISTORY_SHORT && ringUse(sample) > NEARLY_ALL, "warn",
    "foundShort", { time: duration(held) });
  tell(connections > NEARLY_ALL, "warn", "foundConnections",
    { share: share(connections, 1) });
  tell(requests > NEARLY_ALL, "warn", "foundRequests",
    { share: share(requests, 1) });
  tell(sample.time - restartedAt < MINUTE, "note", "restarted",
    { time: clock(restartedAt) });
  return found;
}

const publicConnections = (sample) =>
  sample.parts("ssed_connections").get("public");

// The share of the history's room that is in use, by events or by bytes.
function ringUse(sample) {
  const use = (what) => sample.value(`ssed_history_${what}`) /
    sample.value(`ssed_history_${what}_limit`);

  return Math.max(use("events"), use("bytes"));
}

// ------------------------------------------------------------------ cards

// What a card says in large and in small, of the newest point and sample.
const CARDS = {
  subscribers: (point, sample) => [number(point.subscribers), {
    connections: number(publicConnections(sample)),
    topics: number(sample.value("ssed_topics")) }],
  eventsIn: (point, sample) => [perSecond(point.eventsIn), {
    total: number(sample.value("ssed_events_published_total")) }],
  eventsOut: (point) => [perSecond(point.eventsOut), {
    bytes: bytes(point.bytesOut) }],
  overrun: () => counted(causes("ssed_unsubscribed_total", isOverrun)),
  gaps: () => counted(causes("ssed_gaps_total")),
  refused: () => counted(causes("ssed_publishes_total", isRefusal)),
  lag: (point, sample) => [duration(point.lag), {
    events: number(sample.value("ssed_lag_events_max")) }],
  turn: (point, sample) => [duration(point.turn), { p50: duration(
    sample.quantile("ssed_turn_seconds", 0.5, sampleBefore(10000))) }],
  ring: (point, sample) => [duration(point.ring), {
    events: number(sample.value("ssed_history_events")),
    share: share(ringUse(sample), 1) }],
  memory: (point, sample) => [bytes(point.memory), {
    requests: bytes(sample.value("ssed_request_memory_bytes")) }],
};

function counted(list) {
  const { total, recent } = sums(list);

  return [number(total), { recent: number(recent) }];
}

function makeCard(key) {
  const card = html("div", element("cards"), "card");

  return { key, card, name: html("span", card, "name"),
    value: html("span", card, "value"), more: html("span", card, "faint") };
}

function renderCards(found) {
  const point = points.at(-1);
  const loud = found.map(({ key }) => key);
  const warns = { overrun: "foundOverrun", gaps: "foundGap",
    refused: "foundFailed", turn: "foundTurn", ring: "foundShort",
    memory: "foundRequests" };

  for (const { key, card, name, value, more } of cards) {
    const [large, small] = point ? CARDS[key](point, newest())
      : [page.words.unknown, {}];
    card.id = `card-${key}`;
    card.classList.toggle("warned", loud.includes(warns[key]));
    say(name, page.words[key]);
    say(value, large);
    say(more, point ? page.fill(`${key}More`, small) : "");
  }
}

// ----------------------------------------------------------------- tables

// A table with `heads`, whose first column has what the others count.
function makeTable(parent, key, heads) {
  const table = html("table", element(parent));
  const caption = html("caption", table);
  const row = html("tr", html("thead", table));
  const cells = heads.map((head) => [head, html("th", row)]);

  for (const [, cell] of cells) cell.scope = "col";
  table.id = `table-${key}`;
  return { key, table, caption, cells, body: html("tbody", table) };
}

function fillTable({ key, caption, cells, body }, rows) {
  say(caption, page.words[key]);
  for (const [head, cell] of cells) say(cell, page.words[head]);
  while (body.rows.length > Math.max(1, rows.length)) body.deleteRow(-1);
  (rows.length ? rows : [[page.words.none]]).forEach((row, i) => {
    const line = body.rows[i] ?? body.insertRow();

    line.className = rows.length ? "" : "faint";
    while (line.cells.length > row.length) line.deleteCell(-1);
    row.forEach((text, j) => say(line.cells[j] ?? line.insertCell(), text));
    line.cells[0].colSpan = cells.length - row.length + 1;
  });
}

const RANKS = { mostSubscribers: "most_subscribers", mostLag: "most_lag" };
const COUNTS = {
  ended: ["ssed_unsubscribed_total"],
  gapCauses: ["ssed_gaps_total"],
  refused: ["ssed_publishes_total", isRefusal],
  limits: ["ssed_limits_hit_total"],
  budgets: ["ssed_used_up_total"],
};

function renderTables() {
  const sample = newest();

  for (const table of tables) {
    const ranks = RANKS[table.key];
    const rows = !sample ? [] : ranks
      ? sample[ranks].map(({ topic, subscribers, lag }) =>
        [topicName(topic), number(subscribers), number(lag)])
      : causes(...COUNTS[table.key]).map(([cause, total, recent]) =>
        [cause, number(total), number(recent)]);
    fillTable(table, rows);
  }
}

// --------------------------------------------------------------- the page

const charts = CHARTS.map(makeChart);
const cards = Object.keys(CARDS).map(makeCard);
const tables = [
  ...Object.keys(RANKS).map((key) =>
    makeTable("ranks", key, ["topic", "subscribers", "behind"])),
  ...Object.keys(COUNTS).map((key) =>
    makeTable("counts", key, ["cause", "total", "lastMinute"])),
];

let stream = null;
let retryTimer = 0;
let silenceTimer = 0;
// "connecting", "live", "lost" or "full"
let contact = "connecting";
let lastContact = 0;

// The stream's state outweighs what the last event said.
function renderState(found) {
  const levels = found.map(({ level }) => level);
  const worst = levels.includes("bad") ? "bad"
    : levels.includes("warn") ? "look" : "well";
  const word = contact === "live" ? page.words[worst]
    : page.fill(contact, { time: clock(lastContact) });
  const list = element("findings");

  say(element("state"), word);
  element("state").dataset.state = contact === "live" ? worst : contact;
  element("status").classList.toggle("stale", contact !== "live");
  while (list.children.length > found.length) list.lastChild.remove();
  found.forEach(({ key, level, values }, i) => {
    const item = list.children[i] ?? html("li", list);

    item.className = level;
    say(item, page.fill(key, values));
  });
}

function render() {
  const sample = newest();
  const found = sample ? findings() : [];
  const [version] = sample?.parts("ssed_build_info").keys() ?? [];
  const start = sample?.value("ssed_start_time_seconds");

  say(element("about"), sample ? page.fill("about", {
    version, up: duration(sample.time / 1000 - start) }) : "");
  renderState(found);
  renderCards(found);
  renderCharts();
  renderTables();
}

function receive({ data }) {
  const sample = new Sample(JSON.parse(data));
  const start = sample.value("ssed_start_time_seconds");
  const known = newest()?.value("ssed_start_time_seconds");

  // counters have begun again
  if (known !== undefined && known !== start) {
    samples = [];
    restartedAt = start * 1000;
  }
  const before = newest();
  samples.push(sample);
  points.push(pointOf(sample, before));
  points = points.filter(({ at }) => at > sample.time - WINDOW);
  samples = samples.filter(({ time }) => time > sample.time - MINUTE - PAUSE);
  if (back) back = Math.min(back + 1, points.length - 1);
  lastContact = Date.now();
  setContact("live");
}

function setContact(next) {
  contact = next;
  clearTimeout(silenceTimer);
  if (next === "live") silenceTimer = setTimeout(retry, SILENCE, "lost");
  render();
}

function retry(why) {
  stream?.close();
  stream = null;
  clearTimeout(retryTimer);
  retryTimer = setTimeout(openStream, RETRY);
  setContact(why);
}

// The browser reconnects by itself, except where it got an answer that is no
// stream: there are too many, or a proxy knows no server.
async function failed() {
  if (stream.readyState !== EventSource.CLOSED) return setContact("lost");
  stream = null;
  retry("lost");
  const answer = await fetch("status", { method: "HEAD" }).catch(() => 0);
  if (answer.status === 503) setContact("full");
}

function openStream() {
  stream = new EventSource("status");
  stream.onmessage = receive;
  stream.onerror = failed;
}

element("charts").onkeydown = chartKey;
// the browser keeps a page for the way back, and its stream with it
addEventListener("pagehide", () => {
  stream?.close();
  clearTimeout(retryTimer);
  clearTimeout(silenceTimer);
});
addEventListener("pageshow", (event) => {
  if (event.persisted) openStream();
});
lastContact = Date.now();
openStream();
