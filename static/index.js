"use strict";

// Every text of the page, in both languages.
const TEXTS = {
  en: {
    title: "Nothing lost: reconnect and catch up",
    lead: "Disconnect, wait, connect again: what you missed is sent first, then it is live. Kill the server and start it again: the page comes back by itself.",
    clockLink: "Smallest example",
    language: "中文",
    state: "State",
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
    publishFailed: "The server cannot be reached.",
    idle: "Not connected",
    connected: "Connected",
    error: "Connection error",
    closed: "Disconnected",
    reconnecting: "Reconnecting…",
    catchingUp: "Catching up…",
    caughtUpMark: "[caught up]",
    systemMark: "[system]",
    welcome: "connected",
    gap: "Some messages are gone: asked to go on from {requested}, the oldest still held is {oldest}",
    gapEmpty: "Some messages are gone: asked to go on from {requested}, nothing is held any more",
    catchUpStart: "catching up on {count} missed messages",
    catchUpEnd: "caught up on {count} messages",
    lost: "connection lost, reconnecting",
    left: "disconnected",
    unreadable: "the server sent something that is not JSON",
  },
  zh: {
    title: "一条不丢：断线重连与数据续传",
    lead: "断开连接，等一会儿再连接：错过的消息先补发，然后继续实时接收。重启服务器，页面会自动恢复。",
    clockLink: "最小示例",
    language: "English",
    state: "状态",
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
    publishFailed: "无法连接服务器。",
    idle: "未连接",
    connected: "已连接",
    error: "连接错误",
    closed: "已断开",
    reconnecting: "重连中...",
    catchingUp: "数据续传中...",
    caughtUpMark: "[续传]",
    systemMark: "[系统]",
    welcome: "连接建立成功",
    gap: "部分历史消息已无法补发：请求从 {requested} 继续，现存最早的是 {oldest}",
    gapEmpty: "部分历史消息已无法补发：请求从 {requested} 继续，现在没有任何历史消息",
    catchUpStart: "开始同步 {count} 条错过的消息",
    catchUpEnd: "消息同步完成，共 {count} 条",
    lost: "连接断开，正在重连",
    left: "已断开连接",
    unreadable: "服务器发来的内容不是 JSON",
  },
};

const LOG_LIMIT = 300;
const RETRY_MIN = 1000;
const RETRY_MAX = 10000;
const LAST_ID = "sse_last_event_id";
const LANGUAGE = "ssed_language";

const element = (id) => document.getElementById(id);

// A page from a file or with storage turned off works too, without memory.
function stored(key) {
  try {
    return localStorage.getItem(key) || "";
  } catch {
    return "";
  }
}

function store(key, value) {
  try {
    if (value) localStorage.setItem(key, value);
    else localStorage.removeItem(key);
  } catch {
    // nothing is kept then
  }
}

let language =
  stored(LANGUAGE) || (/^zh/i.test(navigator.language) ? "zh" : "en");
let texts = TEXTS[language] || TEXTS.en;
let source = null;
let state = "idle";
let lastId = stored(LAST_ID);
let messageCount = 0;
let caughtUpCount = 0;
let connectedSince = 0;
let retryTimer = 0;
let retryDelay = RETRY_MIN;

// What is to be shown at the next frame: at a thousand messages a second the
// page is laid out once a frame, and a hidden page keeps the newest only.
let pending = [];
let frame = 0;

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function changed() {
  if (!frame) frame = requestAnimationFrame(render);
}

function show(look, text, details = {}) {
  pending.push({ look, text, id: details.id || "", time: details.time });
  if (pending.length > LOG_LIMIT) pending.shift();
  changed();
}

function showSystem(text, warning) {
  const look = warning ? "system warning" : "system";
  show(look, `${texts.systemMark} ${text}`);
}

function clockTime(date) {
  return date.toTimeString().slice(0, 8);
}

function entry({ look, text, id, time }) {
  const item = document.createElement("li");
  const when = document.createElement("time");
  const body = document.createElement("span");
  const number = document.createElement("span");
  const date = time ? new Date(time) : new Date();

  item.className = look;
  if (id) item.dataset.id = id;
  when.textContent = clockTime(date);
  when.dateTime = date.toISOString();
  body.className = "text";
  body.textContent = text;
  number.className = "id";
  number.textContent = id;
  item.append(when, body, number);
  return item;
}

function renderLog() {
  const log = element("messages");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const items = pending.map(entry);

  pending = [];
  if (!items.length) return;
  log.append(...items);
  while (log.childElementCount > LOG_LIMIT) log.firstElementChild.remove();
  // whoever has scrolled back to read is left where he is
  if (atEnd) log.scrollTop = log.scrollHeight;
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

function render() {
  const status = element("connection-status");

  frame = 0;
  if (status.textContent !== texts[state]) status.textContent = texts[state];
  status.dataset.state = state;
  element("message-count").textContent = messageCount;
  element("catchup-count").textContent = caughtUpCount;
  element("last-event-id").textContent = lastId || "–";
  element("connect-btn").disabled = Boolean(source || retryTimer);
  element("disconnect-btn").disabled = !source && !retryTimer;
  renderTime();
  renderLog();
  store(LAST_ID, lastId);
}

function renderTexts() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]"))
    node.textContent = texts[node.dataset.text];
  for (const node of document.querySelectorAll("[data-label]"))
    node.setAttribute("aria-label", texts[node.dataset.label]);
  element("language-btn").textContent = texts.language;
  element("language-btn").lang = language === "zh" ? "en" : "zh-CN";
  changed();
}

function setState(next) {
  state = next;
  if (next === "connected" && !connectedSince) connectedSince = Date.now();
  if (next !== "connected" && next !== "catchingUp") connectedSince = 0;
  changed();
}

// What each type of event does. A type that is not here is passed over.
const HANDLERS = {
  connected() {
    retryDelay = RETRY_MIN;
    setState("connected");
    showSystem(texts.welcome);
  },
  gap(data) {
    showSystem(fill(data.oldest ? texts.gap : texts.gapEmpty, data), true);
  },
  catch_up_start(data) {
    setState("catchingUp");
    showSystem(fill(texts.catchUpStart, data));
  },
  catch_up_message(data, id) {
    messageCount++;
    caughtUpCount++;
    show("caught-up", `${texts.caughtUpMark} ${data.message}`, {
      id,
      time: data.timestamp,
    });
  },
  catch_up_end(data) {
    setState("connected");
    showSystem(fill(texts.catchUpEnd, { count: data.syncCount }));
  },
  message(data, id) {
    messageCount++;
    show("live", data.message, { id, time: data.timestamp });
  },
};

function receive(event) {
  let data;

  if (event.lastEventId) lastId = event.lastEventId;
  changed();
  try {
    data = JSON.parse(event.data);
  } catch {
    showSystem(texts.unreadable, true);
    return;
  }
  if (Object.hasOwn(HANDLERS, data.type))
    HANDLERS[data.type](data, event.lastEventId);
}

// The browser reconnects by itself, except where it got an answer that is no
// stream, from a proxy say: then it gives up, and the page goes on trying.
function failed() {
  const gaveUp = source.readyState === EventSource.CLOSED;

  if (state === "connected" || state === "catchingUp") showSystem(texts.lost);
  setState(gaveUp ? "error" : "reconnecting");
  if (!gaveUp) return;
  source = null;
  retryTimer = setTimeout(connect, retryDelay * (0.5 + Math.random()));
  retryDelay = Math.min(retryDelay * 2, RETRY_MAX);
}

function stop() {
  if (source) source.close();
  source = null;
  clearTimeout(retryTimer);
  retryTimer = 0;
}

function connect() {
  const query = lastId ? `?lastEventId=${encodeURIComponent(lastId)}` : "";
  const first = state === "idle" || state === "closed";

  stop();
  if (!first) setState("reconnecting");
  source = new EventSource(`/events${query}`);
  source.onmessage = receive;
  source.onerror = failed;
  changed();
}

function disconnect() {
  stop();
  setState("closed");
  showSystem(texts.left);
}

function reconnect() {
  stop();
  setState("reconnecting");
  connect();
}

function clearLog() {
  pending = [];
  messageCount = 0;
  caughtUpCount = 0;
  element("messages").replaceChildren();
  changed();
}

function clearHistory() {
  if (!confirm(texts.clearHistoryAsk)) return;
  lastId = "";
  clearLog();
  showSystem(texts.historyCleared);
}

async function publish(event) {
  const text = element("publish-text");
  const result = element("publish-result");

  event.preventDefault();
  result.textContent = "";
  try {
    const response = await fetch("/events", {
      method: "POST",
      headers: { "Content-Type": "text/plain; charset=utf-8" },
      body: text.value,
    });

    if (response.ok) text.value = "";
    else result.textContent = (await response.text()).trim();
  } catch {
    result.textContent = texts.publishFailed;
  }
}

function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  texts = TEXTS[language];
  store(LANGUAGE, language);
  renderTexts();
}

element("connect-btn").onclick = connect;
element("disconnect-btn").onclick = disconnect;
element("reconnect-btn").onclick = reconnect;
element("clear-messages-btn").onclick = clearLog;
element("clear-history-btn").onclick = clearHistory;
element("language-btn").onclick = switchLanguage;
element("publish-form").onsubmit = publish;
// no frame is drawn while a page is hidden or goes: keep the position
addEventListener("pagehide", () => store(LAST_ID, lastId));
addEventListener("visibilitychange", () => store(LAST_ID, lastId));
setInterval(renderTime, 500);

renderTexts();
connect();
