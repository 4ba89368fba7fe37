"use strict";

// Every text of the page, in both languages.
const TEXTS = {
  en: {
    title: "Nothing lost: reconnect and catch up",
    lead: "Disconnect, wait, connect again: what you missed is sent first, then it is live. Kill the server and start it again: the page comes back by itself.",
    cards: "State",
    connection: "Connection",
    messages: "Messages",
    caughtUp: "Caught up",
    connectedFor: "Connected for",
    connect: "Connect",
    disconnect: "Disconnect",
    reconnect: "Reconnect",
    clearHistory: "Clear local history",
    clearLog: "Clear log",
    clearHistoryAsk: "Forget the last event id and clear the log? The next connection then begins with what is new.",
    historyCleared: "local history cleared",
    log: "Messages",
    lastId: "Last event id:",
    publishLabel: "Publish a message to everybody who is connected",
    publish: "Publish",
    published: "published with id {id}, sent to {subscribers} connected",
    publishFailed: "the server cannot be reached",
    publishStatus: "the server answered {status}",
    newest: "↓ Newest",
    noId: "none",
    idle: "Not connected",
    connected: "Connected",
    error: "Error",
    closed: "Disconnected",
    reconnecting: "Reconnecting…",
    catchingUp: "Catching up…",
    caughtUpMark: "[caught up]",
    systemMark: "[system]",
    welcome: "connected",
    gap: "Some messages are gone: asked to go on from {requested}, none is missing from {oldest} on",
    gapEmpty: "Some messages are gone: asked to go on from {requested}, nothing is held that came after them",
    catchUpStart: "catching up on {count} missed messages",
    catchUpEnd: "caught up on {count} messages",
    lost: "connection lost, reconnecting",
    unreachable: "the server cannot be reached, trying again",
    left: "disconnected",
    unreadable: "the server sent something that is not JSON",
  },
  zh: {
    title: "一条不丢：断线重连与数据续传",
    lead: "断开连接，等一会儿再连接：错过的消息先补发，然后继续实时接收。重启服务器，页面会自动恢复。",
    cards: "状态",
    connection: "连接状态",
    messages: "消息数",
    caughtUp: "续传消息",
    connectedFor: "连接时长",
    connect: "连接",
    disconnect: "断开",
    reconnect: "重连",
    clearHistory: "清除本地记录",
    clearLog: "清空日志",
    clearHistoryAsk: "要忘记最后的事件 ID 并清空日志吗？下次连接只会收到新的消息。",
    historyCleared: "本地记录已清除",
    log: "消息日志",
    lastId: "最后事件 ID：",
    publishLabel: "向所有在线的人发布一条消息",
    publish: "发布",
    published: "已发布，事件 ID {id}，在线 {subscribers} 个连接",
    publishFailed: "无法连接服务器",
    publishStatus: "服务器返回 {status}",
    newest: "↓ 最新消息",
    noId: "无",
    idle: "未连接",
    connected: "已连接",
    error: "连接错误",
    closed: "已断开",
    reconnecting: "重连中...",
    catchingUp: "数据续传中...",
    caughtUpMark: "[续传]",
    systemMark: "[系统]",
    welcome: "连接建立成功",
    gap: "部分历史消息已无法补发：请求从 {requested} 继续，从 {oldest} 起没有缺失",
    gapEmpty: "部分历史消息已无法补发：请求从 {requested} 继续，此后的历史消息也没有",
    catchUpStart: "开始同步 {count} 条错过的消息",
    catchUpEnd: "消息同步完成，共 {count} 条",
    lost: "连接断开，正在重连",
    unreachable: "无法连接服务器，正在重试",
    left: "已断开连接",
    unreadable: "服务器发来的内容不是 JSON",
  },
};

const LOG_LIMIT = 300;
const RETRY_MIN = 1000;
const RETRY_MAX = 10000;
const LAST_ID = "sse_last_event_id";

const element = (id) => document.getElementById(id);

const page = ssedPage(TEXTS, renderTexts);
let source = null;
let state = "idle";
let lastId = stored(LAST_ID);
let savedId = lastId;
let messageCount = 0;
let caughtUpCount = 0;
let connectedSince = 0;
let retryTimer = 0;
let retryDelay = RETRY_MIN;
let outageTold = false;
let publishing = false;

// The newest entries of the log, of which the last `unshown` are not on the
// page yet: at a thousand messages a second it is laid out once a frame, and a
// hidden page, which gets no frames, must not pile them up. Entries are kept
// without words so that a change of language reaches the old ones too.
let entries = [];
let unshown = 0;
let following = true;
let logWidth = 0;
let frame = 0;

// Only what this page itself has moved is written: a tab that was left
// disconnected must not put its old position over that of a newer tab.
function savePosition() {
  if (lastId === savedId) return;
  savedId = lastId;
  store(LAST_ID, lastId);
}

function changed() {
  if (!frame) frame = requestAnimationFrame(render);
}

function show(record) {
  entries.push({ time: Date.now(), ...record });
  if (entries.length > LOG_LIMIT) entries.shift();
  unshown = Math.min(unshown + 1, LOG_LIMIT);
  changed();
}

function showSystem(key, values, warning) {
  show({ look: warning ? "system warning" : "system", key, values });
}

function showMessage(look, data, id) {
  const time = Date.parse(data.timestamp) || Date.now();

  show({ look, text: data.message ?? "", id, time });
}

function wording({ look, key, values, text }) {
  if (key) return `${page.words.systemMark} ${page.fill(key, values)}`;
  return look === "caught-up" ? `${page.words.caughtUpMark} ${text}` : text;
}

function item(record) {
  const row = document.createElement("div");
  const when = document.createElement("time");
  const body = document.createElement("span");
  const number = document.createElement("span");
  const date = new Date(record.time);

  row.className = record.look;
  when.textContent = date.toTimeString().slice(0, 8);
  when.dateTime = date.toISOString();
  body.className = "text";
  body.textContent = wording(record);
  number.className = "id";
  number.textContent = record.id ?? "";
  row.append(when, body, number);
  return row;
}

function toNewest() {
  const log = element("messages");

  following = true;
  element("newest-btn").hidden = true;
  log.scrollTop = log.scrollHeight;
}

function renderLog() {
  const log = element("messages");

  if (!unshown) return;
  log.append(...entries.slice(-unshown).map(item));
  unshown = 0;
  while (log.childElementCount > LOG_LIMIT) log.firstElementChild.remove();
  // someone who has scrolled back to read is left there
  if (following) toNewest();
}

function scrolled() {
  const log = element("messages");

  // by other line breaks, of which resized() is told next
  if (log.clientWidth !== logWidth) return;
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  element("newest-btn").hidden = following;
}

// A phone is turned, or a result below takes some of the room.
function resized() {
  logWidth = element("messages").clientWidth;
  if (following) toNewest();
}

function renderTime() {
  const seconds = connectedSince
    ? Math.floor((Date.now() - connectedSince) / 1000)
    : 0;
  const parts = [seconds / 3600, (seconds / 60) % 60, seconds % 60];

  element("connection-time").textContent = parts
    .map((part) => String(Math.floor(part)).padStart(2, "0"))
    .join(":");
}

// A button that does nothing now is not `disabled`: that would take the focus
// away from someone who has just pressed it by key.
function enable(id, enabled) {
  element(id).setAttribute("aria-disabled", String(!enabled));
}

function render() {
  frame = 0;
  element("message-count").textContent = messageCount;
  element("catchup-count").textContent = caughtUpCount;
  element("last-event-id").textContent = lastId || page.words.noId;
  enable("connect-btn", !trying());
  enable("disconnect-btn", trying());
  renderTime();
  renderLog();
  savePosition();
}

// Not left to the next frame: a short catch-up begins and ends within one.
function renderState() {
  const status = element("connection-status");

  const word = page.words[state];

  if (status.textContent !== word) status.textContent = word;
  status.dataset.state = state;
}

function renderTexts() {
  element("publish-result").textContent = "";
  element("messages").replaceChildren();
  unshown = entries.length;
  renderState();
  changed();
}

function setState(next) {
  state = next;
  if (next === "connected" && !connectedSince) connectedSince = Date.now();
  if (next !== "connected" && next !== "catchingUp") connectedSince = 0;
  renderState();
  changed();
}

// Connected, or on the way there.
function trying() {
  return Boolean(source || retryTimer);
}

// What each type of event does. A type that is not here is passed over.
const HANDLERS = {
  connected() {
    retryDelay = RETRY_MIN;
    outageTold = false;
    setState("connected");
    showSystem("welcome");
  },
  gap({ requested, oldest }) {
    showSystem(oldest ? "gap" : "gapEmpty", { requested, oldest }, true);
  },
  catch_up_start({ count }) {
    setState("catchingUp");
    showSystem("catchUpStart", { count });
  },
  catch_up_message(data, id) {
    messageCount++;
    caughtUpCount++;
    showMessage("caught-up", data, id);
  },
  catch_up_end({ syncCount }) {
    setState("connected");
    showSystem("catchUpEnd", { count: syncCount });
  },
  message(data, id) {
    messageCount++;
    showMessage("live", data, id);
  },
};

function receive(event) {
  let data, type;

  if (event.lastEventId) lastId = event.lastEventId;
  changed();
  try {
    data = JSON.parse(event.data);
    ({ type } = data);
  } catch {
    showSystem("unreadable", {}, true);
    return;
  }
  if (Object.hasOwn(HANDLERS, type)) HANDLERS[type](data, event.lastEventId);
}

// The browser reconnects by itself, except where it got an answer that is no
// stream, from a proxy say: then it gives up, and the page goes on trying.
function failed() {
  const gaveUp = source.readyState === EventSource.CLOSED;

  if (!outageTold) showSystem(connectedSince ? "lost" : "unreachable");
  outageTold = true;
  setState(gaveUp ? "error" : "reconnecting");
  if (!gaveUp) return;
  source = null;
  // at random, so that the readers of a server that was away come back spread
  retryTimer = setTimeout(openStream, retryDelay * (0.5 + Math.random() / 2));
  retryDelay = Math.min(retryDelay * 2, RETRY_MAX);
}

function closeStream() {
  if (source) source.close();
  source = null;
  clearTimeout(retryTimer);
  retryTimer = 0;
}

function openStream() {
  const query = lastId ? `?lastEventId=${encodeURIComponent(lastId)}` : "";

  closeStream();
  if (state !== "idle") setState("reconnecting");
  source = new EventSource(`/events${query}`);
  source.onmessage = receive;
  source.onerror = failed;
  ssedWatch(source);
  changed();
}

function reconnect() {
  retryDelay = RETRY_MIN;
  outageTold = false;
  openStream();
}

function connect() {
  if (!trying()) reconnect();
}

function disconnect() {
  if (!trying()) return;
  closeStream();
  setState("closed");
  showSystem("left");
}

function clearLog() {
  entries = [];
  unshown = 0;
  messageCount = 0;
  caughtUpCount = 0;
  element("messages").replaceChildren();
  toNewest();
  changed();
}

function clearHistory() {
  if (!confirm(page.words.clearHistoryAsk)) return;
  lastId = savedId = "";
  // at once, and also what another tab has kept meanwhile
  store(LAST_ID, "");
  clearLog();
  showSystem("historyCleared");
}

function showResult(text, bad) {
  const result = element("publish-result");

  result.className = bad ? "bad" : "";
  result.textContent = `${page.words.systemMark} ${text}`;
}

// ssed says in one line of plain text what is wrong; a proxy sends a page.
async function refusal(response) {
  const plain = /^text\/plain/.test(response.headers.get("Content-Type"));
  const reason = plain ? (await response.text()).trim() : "";

  return reason || page.fill("publishStatus", { status: response.status });
}

async function post(text) {
  const response = await fetch("/events", {
    method: "POST",
    headers: { "Content-Type": "text/plain; charset=utf-8" },
    body: text,
  });

  if (!response.ok) {
    showResult(await refusal(response), true);
    return;
  }
  showResult(page.fill("published", await response.json()));
  // what was typed while it was on its way stays
  const field = element("publish-text");
  if (field.value === text) field.value = "";
}

async function publish(event) {
  event.preventDefault();
  if (publishing) return;
  publishing = true;
  try {
    await post(element("publish-text").value);
  } catch {
    showResult(page.words.publishFailed, true);
  }
  publishing = false;
}

element("connect-btn").onclick = connect;
element("disconnect-btn").onclick = disconnect;
element("reconnect-btn").onclick = reconnect;
element("clear-messages-btn").onclick = clearLog;
element("clear-history-btn").onclick = clearHistory;
element("publish-form").onsubmit = publish;
element("newest-btn").onclick = () => {
  // the button goes, and the focus with it otherwise
  element("messages").focus({ preventScroll: true });
  toNewest();
};
element("messages").onscroll = scrolled;
new ResizeObserver(resized).observe(element("messages"));
// A page that is hidden or goes gets no frames: its position is kept without.
addEventListener("visibilitychange", savePosition);
addEventListener("pagehide", () => {
  savePosition();
  // The browser keeps a page for the way back, and its streams with it: after
  // six of them it would not get another page from this server.
  source?.close();
});
// A page that comes back from there has a dead connection.
addEventListener("pageshow", (event) => {
  if (event.persisted && trying()) reconnect();
});
setInterval(() => {
  renderTime();
  savePosition();
}, 500);
addEventListener("online", () => {
  if (retryTimer) reconnect();
});

openStream();
