"use strict";

const TEXTS = {
  en: {
    title: "Every block as it came",
    lead: "The network tab that event streams never had: ids, data, comments, pauses, gaps and reconnects, of any stream.",
    address: "Address of the stream",
    topics: "Topics",
    mainStream: "main stream",
    start: "Begin with",
    startNow: "what is new",
    startEarliest: "everything that is held",
    startLast: "the newest N events",
    startId: "after an ID",
    startValue: "Number or id",
    connect: "Connect",
    disconnect: "Disconnect",
    copy: "Copy",
    copied: "Copied.",
    notCopied: "The browser does not let this page copy: select it and copy it by key.",
    badAddress: "This is no http: or https: address.",
    cards: "State",
    connection: "Connection",
    idle: "Not connected",
    connecting: "Connecting…",
    connected: "Connected",
    reconnecting: "Reconnecting…",
    closed: "Disconnected",
    finished: "Finished",
    error: "Given up",
    blocks: "Blocks",
    bytes: "Bytes",
    position: "Last event ID",
    none: "none",
    list: "Blocks and what happened to the connection",
    filter: "Filter: text in a line",
    kind: "Kind of line",
    kindAll: "All lines",
    kindEvents: "Events only",
    kindOther: "All but events",
    pause: "Pause, from s",
    freeze: "Freeze",
    clear: "Clear",
    exportJson: "Export JSON",
    exportRaw: "Export text",
    exportHint: "What the list shows, as a file",
    shown: "{shown} of {kept} lines",
    shownDropped: "{shown} of {kept} lines; the oldest {dropped} are dropped",
    shownFrozen: "frozen, {waiting} more have come",
    newest: "↓ Newest",
    nothing: "Nothing has come yet.",
    details: "The selected line",
    detailsEmpty: "Select a line, by pointer or with the arrow keys, to see all of it.",
    line: "Line",
    time: "Time",
    since: "After",
    event: "Event",
    data: "Data",
    retry: "Retry",
    comment: "Comment",
    raw: "As it came",
    cutText: "… and {count} more characters (the export has them)",
    cutItems: "… and {count} more",
    sincePause: "pause {time}",
    noteConnect: "GET {url}",
    noteHeader: "GET {url}, with the header Last-Event-ID: {id}",
    noteQuery: "GET {url}, with the position in the query",
    noteOpen: "{status}, the stream is open",
    noteOpenAt: "{status}, the stream starts at {position}",
    noteEnded: "The server has ended the stream.",
    noteCut: "The connection has broken off: {reason}",
    noteFailed: "There is no connection: {reason}",
    noteUnfinished: "An unfinished block of {count} characters is dropped.",
    noteAgain: "Reconnecting in {seconds} s (retry:)",
    noteFinished: "204: finished. An EventSource does not come back.",
    noteRefused: "{status} {reason} An EventSource gives up here.",
    noteNoStream: "{type} is no text/event-stream. An EventSource gives up here.",
    noteClosed: "You have disconnected.",
    gap: "Gap: asked to go on from {requested}; from {oldest} on nothing is missing",
    gapEmpty: "Gap: asked to go on from {requested}; nothing is held of what followed",
    end: "End: the topic {topic} is finished, its last event is {last}",
    endBroken: "End: the topic {topic} has broken off, its last event is {last}",
    expired: "Expired: the token was valid until {time}",
    positionOnly: "position",
    publishTitle: "Publish",
    topic: "Topic",
    publish: "Publish",
    published: "Published with id {id}, sent to {subscribers} connected.",
    publishFailed: "The server cannot be reached, or does not let this page publish.",
    publishStatus: "The server answered {status}.",
  },
  zh: {
    title: "原样查看每个数据块",
    lead: "事件流一直缺少的“网络”面板：ID、数据、注释、停顿、缺口与重连，任何事件流都能看。",
    address: "事件流地址",
    topics: "主题",
    mainStream: "主数据流",
    start: "起始位置",
    startNow: "只看新的",
    startEarliest: "现存的全部",
    startLast: "最新的 N 条",
    startId: "某个 ID 之后",
    startValue: "条数或 ID",
    connect: "连接",
    disconnect: "断开",
    copy: "复制",
    copied: "已复制。",
    notCopied: "浏览器不允许本页复制，请选中后按键复制。",
    badAddress: "这不是 http: 或 https: 地址。",
    cards: "状态",
    connection: "连接状态",
    idle: "未连接",
    connecting: "连接中…",
    connected: "已连接",
    reconnecting: "重连中…",
    closed: "已断开",
    finished: "已结束",
    error: "已放弃",
    blocks: "数据块",
    bytes: "字节",
    position: "最后事件 ID",
    none: "无",
    list: "数据块与连接经过",
    filter: "筛选：行内文字",
    kind: "行的种类",
    kindAll: "所有行",
    kindEvents: "只看事件",
    kindOther: "事件以外",
    pause: "停顿下限（秒）",
    freeze: "冻结",
    clear: "清空",
    exportJson: "导出 JSON",
    exportRaw: "导出原文",
    exportHint: "把列表中的内容存为文件",
    shown: "显示 {shown} / {kept} 行",
    shownDropped: "显示 {shown} / {kept} 行，最早的 {dropped} 行已丢弃",
    shownFrozen: "已冻结，又来了 {waiting} 行",
    newest: "↓ 最新",
    nothing: "还没有收到任何内容。",
    details: "选中的行",
    detailsEmpty: "点击一行，或用方向键选择，即可查看全部内容。",
    line: "行号",
    time: "时间",
    since: "间隔",
    event: "事件",
    data: "数据",
    retry: "重连间隔",
    comment: "注释",
    raw: "原文",
    cutText: "…… 还有 {count} 个字符（导出文件中有全文）",
    cutItems: "…… 还有 {count} 项",
    sincePause: "停顿 {time}",
    noteConnect: "GET {url}",
    noteHeader: "GET {url}，请求头 Last-Event-ID: {id}",
    noteQuery: "GET {url}，位置写在查询参数中",
    noteOpen: "{status}，数据流已打开",
    noteOpenAt: "{status}，数据流从 {position} 开始",
    noteEnded: "服务器结束了数据流。",
    noteCut: "连接中断：{reason}",
    noteFailed: "无法连接：{reason}",
    noteUnfinished: "有一个未完成的数据块（{count} 个字符）被丢弃。",
    noteAgain: "{seconds} 秒后重连（retry:）",
    noteFinished: "204：已结束，EventSource 不再重连。",
    noteRefused: "{status} {reason} EventSource 到此放弃。",
    noteNoStream: "{type} 不是 text/event-stream，EventSource 到此放弃。",
    noteClosed: "您已断开连接。",
    gap: "缺口：请求从 {requested} 继续，从 {oldest} 起没有缺失",
    gapEmpty: "缺口：请求从 {requested} 继续，此后的内容都已不在",
    end: "结束：主题 {topic} 已完成，最后的事件是 {last}",
    endBroken: "结束：主题 {topic} 中途断掉，最后的事件是 {last}",
    expired: "已过期：令牌有效期至 {time}",
    positionOnly: "位置",
    publishTitle: "发布",
    topic: "主题",
    publish: "发布",
    published: "已发布，事件 ID {id}，在线 {subscribers} 个连接。",
    publishFailed: "无法连接服务器，或服务器不允许本页发布。",
    publishStatus: "服务器返回 {status}。",
  },
};

const KEPT_LINES = 200000;
const KEPT_TEXT = 64e6; // characters
const SLICE = 6; // ms of work before the browser may paint
const RETRY = 3000;
const TEXT_SHOWN = 20000; // characters of a text in the details
const ITEMS_SHOWN = 500; // members of one object or array there
const LINE_END = /\r\n|\n|\r/g;
const POSITION_QUERY = ["lastEventId", "last_event_id", "last"];

const element = (id) => document.getElementById(id);

const page = ssedPage(TEXTS, renderTexts);

// ------------------------------------------------------------ what has come

// The lines of the list, oldest first: blocks as they came, and notes on the
// connection, which have a key into the words. `n` numbers them, so lines[0].n
// says how many have been dropped; `shown` are those that the filter lets
// through, up to the line number `next`. Per line that comes nothing is done
// but to append it; what is shown follows once a frame, a slice at a time.
let lines = [];
let keptText = 0; // characters in them
let count = 0;
let dropped = 0;
let shown = [];
let next = 0;
let lastTime = 0;
let lastId = "";
let blockCount = 0;
let byteCount = 0;
let state = "idle";
let frozen = false;
let following = true;
let selected = null;
let frame = 0;

function changed() {
  if (!frame) frame = requestAnimationFrame(render);
}

function textOf(line) {
  return line.raw?.length ?? 0;
}

// Many at once: to move all that stays for each would take long.
function dropOldest() {
  const gone = lines.splice(0, Math.ceil(lines.length / 10));

  for (const line of gone) keptText -= textOf(line);
  dropped += gone.length;
}

function add(line, time = performance.now()) {
  line.n = count++;
  line.time = performance.timeOrigin + time;
  line.since = lastTime ? time - lastTime : 0;
  lastTime = time;
  lines.push(line);
  keptText += textOf(line);
  if (lines.length > KEPT_LINES || keptText > KEPT_TEXT) dropOldest();
  changed();
}

function note(key, values = {}, look = "remark") {
  add({ key, values, look });
}

// ------------------------------------------------------------------ blocks

// Cuts a stream into blocks, by the rules of WHATWG HTML. `at` is where the
// line begins that is not complete yet, `cr` whether it may begin with the LF
// of a CR LF.
function newCutter() {
  return { text: "", at: 0, cr: false, lines: [] };
}

function* cut(cutter, piece) {
  let start = 0;

  if (!piece) return;
  if (cutter.cr && piece.startsWith("\n")) piece = piece.slice(1);
  cutter.cr = piece.endsWith("\r");
  cutter.text += piece;
  LINE_END.lastIndex = cutter.at;
  for (let end; (end = LINE_END.exec(cutter.text)); ) {
    const line = cutter.text.slice(cutter.at, end.index);

    cutter.at = end.index + end[0].length;
    if (line) {
      cutter.lines.push(line);
      continue;
    }
    if (cutter.lines.length)
      yield { raw: cutter.text.slice(start, cutter.at), fields: cutter.lines };
    cutter.lines = [];
    start = cutter.at;
    LINE_END.lastIndex = cutter.at;
  }
  cutter.text = cutter.text.slice(start);
  cutter.at -= start;
}

function parse(block, line) {
  for (const field of block.fields) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(field);

    if (name === "data") (line.data ??= []).push(value);
    else if (name === "") (line.comments ??= []).push(value);
    else if (name === "event") line.event = value;
    else if (name === "id" && !value.includes("\0")) line.id = value;
    else if (name === "retry" && /^\d+$/.test(value)) line.retry = value;
  }
  line.data = line.data?.join("\n");
}

function lookOf(line, main) {
  if (line.data === undefined) return "position";
  if (line.event === "ssed.end") return "end";
  if (line.event === "ssed.gap") return "warning";
  if (line.event === "ssed.expired") return "warning";
  if (main && /^\{"type":"(gap|expired)"/.test(line.data)) return "warning";
  return "event-row";
}

function addBlock(run, block, time) {
  const line = { raw: block.raw };

  parse(block, line);
  // only the main stream begins with a block that has data and no name
  run.main ??= line.data !== undefined && !line.event;
  line.look = lookOf(line, run.main);
  if (line.id !== undefined) lastId = run.lastId = line.id;
  if (line.retry) run.retry = Number(line.retry);
  blockCount++;
  add(line, time);
}

// -------------------------------------------------------------- connection

let current = null; // the run from Connect to Disconnect, over all reconnects

function setState(next) {
  const status = element("connection-status");

  state = next;
  status.textContent = page.words[state];
  status.dataset.state = state;
  enable("disconnect-btn", Boolean(current));
}

// A link may bring any address: only these two are fetched, and nothing else
// is ever done with it. With a name and password fetch() would refuse it.
function toUrl(address) {
  if (!URL.canParse(address, document.baseURI)) return null;
  const url = new URL(address, document.baseURI);
  const good = /^https?:$/.test(url.protocol) && !url.username && !url.password;

  url.hash = "";
  return good ? url : null;
}

// As a header, as an EventSource does; to another server in the query, since a
// header would have to be allowed there first.
function request(run) {
  const url = new URL(run.url);
  const headers = { Accept: "text/event-stream" };
  const id = run.lastId;
  const own = url.origin === location.origin;

  if (id && own) headers["Last-Event-ID"] = id;
  if (id && !own) url.searchParams.set("lastEventId", id);
  note(!id ? "noteConnect" : own ? "noteHeader" : "noteQuery", { url, id });
  return fetch(url, { headers, cache: "no-store", signal: run.over.signal });
}

// ssed says in one line of plain text what is wrong; a proxy sends a page.
async function reasonOf(response) {
  const plain = /^text\/plain/.test(response.headers.get("Content-Type"));

  return plain ? (await response.text()).trim().slice(0, 300) : "";
}

// Whether an EventSource would take the answer for a stream.
async function accepted(response) {
  const type = response.headers.get("Content-Type") ?? "";
  const position = response.headers.get("Last-Event-ID");
  const status = `${response.status} ${response.statusText}`.trim();

  if (response.status === 204) note("noteFinished", {}, "end");
  else if (response.status !== 200)
    note("noteRefused", { status, reason: await reasonOf(response) },
      "warning");
  else if (!/^text\/event-stream\s*(;|$)/i.test(type))
    note("noteNoStream", { type: type || "?" }, "warning");
  else {
    note(position ? "noteOpenAt" : "noteOpen", { status, position });
    return true;
  }
  return false;
}

// A fast stream must not keep the page from being painted; a hidden one is
// not, and its timers are slow.
async function breathe(since) {
  if (document.hidden || performance.now() - since < SLICE) return since;
  await new Promise((resolve) => setTimeout(resolve));
  return performance.now();
}

async function readBlocks(run, response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let since = performance.now();

  run.main = undefined;
  run.cutter = newCutter();
  for (;;) {
    const { value, done } = await reader.read();
    const time = performance.now();

    if (done) return;
    byteCount += value.byteLength;
    const piece = decoder.decode(value, { stream: true });
    for (const block of cut(run.cutter, piece)) {
      addBlock(run, block, time);
      if (blockCount % 64 === 0) since = await breathe(since);
      if (run !== current) return;
    }
    changed();
  }
}

// One connection: whether an EventSource would come back after it.
async function receive(run) {
  let response;

  try {
    response = await request(run);
    if (run !== current) return false;
    if (!(await accepted(response))) {
      end(run, response.status === 204 ? "finished" : "error");
      return false;
    }
    setState("connected");
    await readBlocks(run, response);
    note("noteEnded");
  } catch (error) {
    if (run !== current) return false;
    note(response ? "noteCut" : "noteFailed", { reason: error.message });
  }
  const rest = run.cutter?.text;
  if (rest) note("noteUnfinished", { count: rest.length });
  run.cutter = null;
  return run === current;
}

async function follow(run) {
  while (await receive(run)) {
    setState("reconnecting");
    note("noteAgain", { seconds: run.retry / 1000 });
    await new Promise((resolve) => setTimeout(resolve, run.retry));
    if (run !== current) return;
  }
}

function end(run, state) {
  run.over.abort();
  current = null;
  setState(state);
}

function connect() {
  const url = toUrl(element("address").value);

  showResult("connect-result", url ? "" : page.words.badAddress, true);
  if (!url) return;
  if (current) current.over.abort();
  current = { url, retry: RETRY, lastId: "", over: new AbortController() };
  setState("connecting");
  keepAddress(url);
  follow(current);
}

function disconnect() {
  if (!current) return;
  end(current, "closed");
  note("noteClosed");
}

// ----------------------------------------------------------------- address

// A reload, or who gets the link, sees the same stream.
function keepAddress(url) {
  const own = url.origin === location.origin;
  const here = new URL(location.pathname, location.href);

  here.searchParams.set("url", own ? url.pathname + url.search : url.href);
  history.replaceState(null, "", here);
}

// The server's part of an address of its streams.
function serverOf(url) {
  return url.origin + url.pathname.replace(/\/events(\/.*)?$|[^/]*$/, "");
}

function topicPath(topic) {
  const kept = { "%2F": "/", "%3A": ":", "%40": "@" };

  return encodeURIComponent(topic).replace(/%2F|%3A|%40/g, (at) => kept[at]);
}

function streamPath(topics) {
  if (!topics.length) return "/events";
  if (topics.length === 1) return `/events/${topicPath(topics[0])}`;
  const query = topics.map((topic) => `topic=${topicPath(topic)}`);
  return `/events?${query.join("&")}`;
}

function setPosition(query, start, value) {
  for (const name of POSITION_QUERY) query.delete(name);
  if (start === "earliest") query.set("lastEventId", "earliest");
  if (start === "last") query.set("last", value || "10");
  if (start === "id" && value) query.set("lastEventId", value);
}

// From the fields to the address.
function composeAddress() {
  const old = toUrl(element("address").value) ?? toUrl("/events");
  const topics = element("topics").value.split(/[\s,]+/).filter(Boolean);
  const url = new URL(serverOf(old) + streamPath(topics));
  const start = element("start").value;

  setPosition(url.searchParams, start, element("start-value").value.trim());
  element("address").value = url.href.replaceAll("%2F", "/");
  element("start-value").hidden = start !== "last" && start !== "id";
  showReadCommand();
}

// And back, as far as they can say it.
function readAddress() {
  const url = toUrl(element("address").value);

  showReadCommand();
  if (!url) return;
  const topic = /\/events\/(.+)$/.exec(url.pathname)?.[1];
  const query = url.searchParams;
  const id = query.get("lastEventId") || query.get("last_event_id") || "";
  const last = query.get("last") || "";
  const start = id === "earliest" ? id : id ? "id" : last ? "last" : "";

  element("topics").value = topic
    ? decode(topic)
    : query.getAll("topic").join(" ");
  element("start").value = start;
  element("start-value").value = start === "id" ? id : last;
  element("start-value").hidden = start !== "last" && start !== "id";
}

function decode(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

// ------------------------------------------------------- commands, publishing

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function showReadCommand() {
  const url = toUrl(element("address").value);

  element("read-curl").textContent = url ? `curl -N ${quoted(url.href)}` : "";
  showPublishCommand();
}

function publishUrl() {
  const stream = toUrl(element("address").value) ?? toUrl("/events");
  const topic = element("publish-topic").value.trim();
  const url = new URL(serverOf(stream) + streamPath(topic ? [topic] : []));
  const event = element("publish-event").value.trim();

  if (event) url.searchParams.set("event", event);
  return url.href;
}

function showPublishCommand() {
  const data = quoted(element("publish-data").value);

  element("publish-curl").textContent =
    `curl --data-raw ${data} ${quoted(publishUrl())}`;
}

function showResult(id, text, bad = false) {
  const result = element(id);

  result.classList.toggle("bad", bad);
  result.textContent = text;
}

async function copy(from, result) {
  const code = element(from);
  let good = true;

  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // also where there is none: over http: from another machine
    getSelection().selectAllChildren(code);
    good = document.execCommand("copy");
  }
  showResult(result, page.words[good ? "copied" : "notCopied"], !good);
}

let publishing = false;

async function post() {
  const response = await fetch(publishUrl(), {
    method: "POST",
    headers: { "Content-Type": "text/plain; charset=utf-8" },
    body: element("publish-data").value,
  });
  const { status } = response;

  if (response.ok)
    showResult("publish-result", page.fill("published", await response.json()));
  else
    showResult("publish-result", (await reasonOf(response)) ||
      page.fill("publishStatus", { status }), true);
}

async function publish(event) {
  event.preventDefault();
  if (publishing) return;
  publishing = true;
  try {
    await post();
  } catch {
    showResult("publish-result", page.words.publishFailed, true);
  }
  publishing = false;
}

// ---------------------------------------------------------------- the words

function number(value, digits = 0) {
  return value.toLocaleString(page.language, { maximumFractionDigits: digits });
}

function sinceText(line) {
  const { since } = line;
  const time = since < 999.5
    ? `${number(since)} ms`
    : `${number(since / 1000, since < 10000 ? 2 : 1)} s`;

  return isPause(line) ? page.fill("sincePause", { time }) : `+${time}`;
}

function isPause(line) {
  const least = Number(element("pause").value) * 1000;

  return least > 0 && line.since >= least;
}

function timeText(line) {
  const date = new Date(line.time);
  const ms = String(date.getMilliseconds()).padStart(3, "0");

  return `${date.toTimeString().slice(0, 8)}.${ms}`;
}

function parsed(data) {
  try {
    const value = JSON.parse(data, exactNumber);

    return typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

// What a number would lose on its way to a JavaScript number it keeps, where
// the browser tells how it was written.
class Literal {
  constructor(source) {
    this.source = source;
  }
}

function exactNumber(_, value, context) {
  const source = context?.source;
  const same = typeof value !== "number" || !source || String(value) === source;

  return same ? value : new Literal(source);
}

// What ssed itself has said, in words; null for everything else.
function spoken(line) {
  const data = line.look === "end" || line.look === "warning"
    ? parsed(line.data)
    : null;

  if (!data) return null;
  if (data.exp)
    return page.fill("expired",
      { time: new Date(data.exp * 1000).toLocaleString(page.language) });
  if (line.look === "warning")
    return page.fill(data.oldest ? "gap" : "gapEmpty", data);
  return page.fill(data.complete === false ? "endBroken" : "end",
    { topic: data.topic, last: data.last ?? page.words.none });
}

function withoutData(line) {
  const { words } = page;
  const parts = [];

  if (line.id !== undefined) parts.push(words.positionOnly);
  if (line.retry) parts.push(`${words.retry} ${line.retry} ms`);
  for (const comment of line.comments ?? [])
    parts.push(`${words.comment}: ${comment}`);
  return parts.join(" · ");
}

// As a row has room for it.
function summary(line) {
  if (line.key) return page.fill(line.key, line.values);
  if (line.data === undefined) return withoutData(line);
  return spoken(line) ?? line.data.slice(0, 400).replaceAll("\n", "⏎");
}

// ------------------------------------------------------------------ filter

function passes(line, needle, kind) {
  const isEvent = line.look === "event-row";

  if (kind === "events" && !isEvent) return false;
  if (kind === "other" && isEvent) return false;
  if (!needle) return true;
  return (line.raw ?? summary(line)).toLowerCase().includes(needle);
}

// Shows what has come since, as much as there is time for in this frame.
function filterMore() {
  const needle = element("filter").value.trim().toLowerCase();
  const kind = element("kind").value;
  const end = performance.now() + SLICE;

  next = Math.max(next, dropped);
  while (next < count) {
    const line = lines[next++ - dropped];

    if (passes(line, needle, kind)) shown.push(line);
    if (next % 256 === 0 && performance.now() > end) break;
  }
  return next === count;
}

function filterAgain() {
  shown = [];
  next = 0;
  changed();
}

// The place in `shown` of the first line whose number is not below n.
function placeOf(n) {
  let low = 0, high = shown.length;

  while (low < high) {
    const middle = (low + high) >> 1;

    if (shown[middle].n < n) low = middle + 1;
    else high = middle;
  }
  return low;
}

function hideDropped() {
  const gone = placeOf(dropped);

  if (!gone) return;
  shown.splice(0, gone);
  if (!following) element("rows").scrollTop -= gone * rowHeight;
}

// -------------------------------------------------------------------- list

// Only the rows in view are in the document; they are used again for others.
const pool = [];
let rowHeight = 0;

function newRow(slot) {
  const row = document.createElement("div");

  row.id = `row-${slot}`;
  row.setAttribute("role", "option");
  for (const name of ["when", "since", "id", "event", "data", "bytes"]) {
    const cell = document.createElement("span");

    cell.className = name;
    row.append(cell);
    row[`${name}Cell`] = cell;
  }
  element("space").append(row);
  return row;
}

function fillRow(row, line) {
  row.line = line;
  row.className = line.look;
  row.toggleAttribute("data-note", Boolean(line.key));
  row.whenCell.textContent = timeText(line);
  row.sinceCell.textContent = sinceText(line);
  row.sinceCell.classList.toggle("paused", isPause(line));
  row.idCell.textContent = line.id ?? "";
  row.eventCell.textContent = line.event ?? "";
  row.dataCell.textContent = summary(line);
  row.bytesCell.textContent = line.raw ? `${number(bytesOf(line))} B` : "";
}

function bytesOf(line) {
  return new TextEncoder().encode(line.raw).length;
}

function placeRow(row, index) {
  row.hidden = index >= shown.length;
  if (row.hidden) return;
  const line = shown[index];

  if (row.line !== line) fillRow(row, line);
  row.style.transform = `translateY(${index * rowHeight}px)`;
  row.setAttribute("aria-posinset", index + 1);
  row.setAttribute("aria-setsize", shown.length);
  row.setAttribute("aria-selected", line === selected);
}

function renderRows() {
  const list = element("rows");
  const first = Math.floor(list.scrollTop / rowHeight);
  const inView = Math.ceil(list.clientHeight / rowHeight) + 1;

  while (pool.length < inView) pool.push(newRow(pool.length));
  for (let i = 0; i < pool.length; i++) {
    const index = first + i;

    placeRow(pool[index % pool.length], index);
  }
  const row = pool.find((row) => !row.hidden && row.line === selected);
  if (row) list.setAttribute("aria-activedescendant", row.id);
  else list.removeAttribute("aria-activedescendant");
}

function toNewest() {
  const list = element("rows");

  following = true;
  list.scrollTop = list.scrollHeight;
  changed();
}

function scrolled() {
  const { scrollTop, scrollHeight, clientHeight } = element("rows");

  following = scrollHeight - scrollTop - clientHeight < 2 * rowHeight;
  changed();
}

function renderCounts() {
  const values = { shown: number(shown.length), kept: number(lines.length),
    dropped: number(dropped) };
  const parts = [page.fill(dropped ? "shownDropped" : "shown", values)];

  if (frozen)
    parts.push(page.fill("shownFrozen", { waiting: number(count - next) }));
  element("shown").textContent = parts.join(" · ");
  element("block-count").textContent = number(blockCount);
  element("byte-count").textContent = number(byteCount);
  element("position").textContent = lastId || page.words.none;
  element("nothing").hidden = shown.length > 0;
}

function render() {
  const list = element("rows");

  frame = 0;
  if (!frozen) {
    hideDropped();
    if (!filterMore()) changed();
  }
  element("space").style.height = `${shown.length * rowHeight}px`;
  if (following && !frozen) list.scrollTop = list.scrollHeight;
  element("newest-btn").hidden =
    following || list.scrollHeight <= list.clientHeight;
  renderRows();
  renderCounts();
}

// ----------------------------------------------------------------- details

function node(name, className, content) {
  const made = document.createElement(name);

  made.className = className;
  made.textContent = content;
  return made;
}

function leaf(value) {
  if (value instanceof Literal) return node("span", "value-text", value.source);
  const look = typeof value === "string" ? "text" : "";

  return node("span", look, JSON.stringify(value).slice(0, TEXT_SHOWN));
}

function keyNode(key) {
  return node("span", "key", typeof key === "number" ? `${key}: `
    : `${JSON.stringify(key)}: `);
}

// An object or array. Its members are made when it is opened.
function branch(key, value, open) {
  const made = document.createElement("details");
  const summary = document.createElement("summary");
  const isArray = Array.isArray(value);
  const keys = isArray ? [...value.keys()] : Object.keys(value);

  if (key !== null) summary.append(keyNode(key));
  summary.append(`${isArray ? "[…]" : "{…}"} ${number(keys.length)}`);
  made.append(summary);
  made.ontoggle = () => {
    if (!made.open || made.children.length > 1) return;
    made.append(...keys.slice(0, ITEMS_SHOWN).map((at) => tree(at, value[at])));
    if (keys.length > ITEMS_SHOWN)
      made.append(node("div", "more", page.fill("cutItems",
        { count: number(keys.length - ITEMS_SHOWN) })));
  };
  made.open = open;
  return made;
}

function tree(key, value) {
  if (value && typeof value === "object" && !(value instanceof Literal))
    return branch(key, value, false);
  const made = document.createElement("div");

  made.append(keyNode(key), leaf(value));
  return made;
}

function textNode(text) {
  const made = node("pre", "", text.slice(0, TEXT_SHOWN));

  if (text.length > TEXT_SHOWN)
    made.append("\n", node("span", "more", page.fill("cutText",
      { count: number(text.length - TEXT_SHOWN) })));
  return made;
}

function dataNode(data) {
  const value = parsed(data);

  if (!value) return textNode(data);
  const made = node("div", "tree", "");

  made.append(branch(null, value, true));
  return made;
}

function facts(line) {
  const { words } = page;

  return [
    [words.line, number(line.n + 1)],
    [words.time, new Date(line.time).toISOString()],
    [words.since, sinceText(line)],
    ["ID", line.id],
    [words.event, line.event],
    [words.retry, line.retry && `${line.retry} ms`],
    [words.bytes, line.raw && number(bytesOf(line))],
    ...(line.comments ?? []).map((comment) => [words.comment, comment]),
  ].filter(([, value]) => value !== undefined);
}

function renderDetails() {
  const details = element("details");
  const line = selected;

  details.replaceChildren();
  if (!line) {
    details.append(node("p", "name", page.words.detailsEmpty));
    return;
  }
  const list = document.createElement("dl");

  for (const [name, value] of facts(line))
    list.append(node("dt", "", name), node("dd", "", value));
  details.append(list);
  if (line.key || spoken(line)) details.append(node("p", "", summary(line)));
  if (line.data !== undefined)
    details.append(node("h3", "", page.words.data), dataNode(line.data));
  if (line.raw)
    details.append(node("h3", "", page.words.raw), textNode(line.raw));
}

function select(line) {
  selected = line;
  renderDetails();
  changed();
}

function selectAt(index) {
  const list = element("rows");
  const top = index * rowHeight;

  if (top < list.scrollTop) list.scrollTop = top;
  if (top + rowHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = top + rowHeight - list.clientHeight;
  following = index === shown.length - 1;
  select(shown[index]);
}

function pressed(event) {
  const last = shown.length - 1;
  const inView = Math.floor(element("rows").clientHeight / rowHeight);
  const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -inView, PageDown: inView,
    Home: -Infinity, End: Infinity };
  const move = moves[event.key];

  const held = event.ctrlKey || event.altKey || event.metaKey;

  if (!move || held || last < 0) return;
  event.preventDefault();
  const at = selected ? placeOf(selected.n) : last + 1;

  selectAt(Math.max(0, Math.min(last, at + move)));
}

// ------------------------------------------------------------------ export

function record(line) {
  const { n, time, since, id, event, data, retry, comments } = line;
  const said = line.key ? summary(line) : undefined;

  return {
    line: n + 1,
    time: new Date(time).toISOString(),
    since: Math.round(since),
    note: said,
    id,
    event,
    data,
    retry: retry && Number(retry),
    comments,
  };
}

function save(parts, ending, type) {
  const link = document.createElement("a");
  const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");

  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = `ssed-${time}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function exportJson() {
  const parts = shown.map((line) => `${JSON.stringify(record(line))}\n`);

  save(parts, "jsonl", "application/x-ndjson");
}

// The blocks without the notes: a stream that can be published again.
function exportRaw() {
  save(shown.map((line) => line.raw ?? ""), "txt", "text/plain;charset=utf-8");
}

// ------------------------------------------------------------- the controls

// A button that does nothing now is not `disabled`: that would take the focus
// away from someone who has just pressed it by key.
function enable(id, enabled) {
  element(id).setAttribute("aria-disabled", String(!enabled));
}

function clear() {
  lines = [];
  shown = [];
  keptText = blockCount = byteCount = 0;
  count = next = dropped = lastTime = 0;
  following = true;
  select(null);
}

function freeze() {
  frozen = !frozen;
  element("freeze-btn").setAttribute("aria-pressed", String(frozen));
  changed();
}

function refill() {
  for (const row of pool) row.line = null;
  changed();
}

function measure() {
  const style = getComputedStyle(element("rows"));
  const before = rowHeight;

  rowHeight = parseFloat(style.getPropertyValue("--row"));
  if (before) element("rows").scrollTop *= rowHeight / before;
  changed();
}

function renderTexts() {
  for (const id of ["connect-result", "publish-result"]) showResult(id, "");
  setState(state);
  refill();
  renderDetails();
}

function on(id, type, act) {
  element(id).addEventListener(type, act);
}

// From the page's own address: url=, or topic=, last=, lastEventId=.
function firstAddress() {
  const query = new URLSearchParams(location.search);
  const url = new URL(streamPath(query.getAll("topic")), location.origin);

  const given = query.get("url");

  if (given) return toUrl(given)?.href ?? given;
  for (const name of POSITION_QUERY)
    if (query.get(name)) url.searchParams.set(name, query.get(name));
  return url.href;
}

on("connect-form", "submit", (event) => {
  event.preventDefault();
  connect();
});
on("disconnect-btn", "click", disconnect);
on("address", "input", readAddress);
for (const id of ["topics", "start", "start-value"])
  on(id, "input", composeAddress);
for (const id of ["publish-topic", "publish-event", "publish-data"])
  on(id, "input", showPublishCommand);
on("copy-read-btn", "click", () => copy("read-curl", "connect-result"));
on("copy-publish-btn", "click", () => copy("publish-curl", "publish-result"));
on("publish-form", "submit", publish);
on("filter", "input", filterAgain);
on("kind", "input", filterAgain);
on("pause", "input", refill);
on("freeze-btn", "click", freeze);
on("clear-btn", "click", clear);
on("export-json-btn", "click", exportJson);
on("export-raw-btn", "click", exportRaw);
on("rows", "scroll", scrolled);
on("rows", "keydown", pressed);
on("rows", "click", ({ target }) => {
  const row = target.closest("[role=option]");

  if (row) select(row.line);
});
on("newest-btn", "click", () => {
  // the button goes, and the focus with it otherwise
  element("rows").focus({ preventScroll: true });
  toNewest();
});
addEventListener("resize", measure);
// The browser keeps a page for the way back, and its stream with it: this one
// goes on from its position then.
addEventListener("pagehide", () => {
  if (!current) return;
  current.over.abort();
  current = { ...current, over: new AbortController() };
});
addEventListener("pageshow", (event) => {
  if (event.persisted && current) follow(current);
});

element("address").value = firstAddress();
measure();
readAddress();
element("publish-topic").value = element("topics").value.split(" ")[0];
showPublishCommand();
connect();
