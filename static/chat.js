"use strict";

// An answer in a topic, one event for each token. One half of the page plays
// the model and publishes; the other half reads, and knows nothing of it.
//
//   event: prompt   data: {"i":0,"t":"Why …?"}
//   event: token    data: {"i":1,"t":"Bec"}
//   …
//   event: token    data: {"i":540,"t":".","last":true}    published with end=1
//
// When a POST breaks off, nobody knows whether it was published. So the model
// looks what the topic holds before it goes on. A token can come twice all the
// same, as a browser by itself sends a POST again whose connection broke before
// the answer. The numbers make that harmless: a reader passes over one that it
// has had, and tells of one that it has not. What others publish needs none:
// plain text, and the chunks of OpenAI-compatible APIs, are readable too.

const TEXTS = {
  en: {
    title: "An answer, word by word",
    lead: "The model publishes each token by a POST; readers get them from an EventSource. Cut the connection, reload, read along in another tab: no token is lost, and none comes twice.",
    model: "The model",
    ask: "Ask",
    actions: "Try it",
    idle: "Pick a question",
    elsewhere: "Somewhere else",
    writing: "Writing",
    modelElsewhere: "Another tab is writing this answer",
    modelStarting: "Starting",
    modelWriting: "Writing: token {next} of {count}",
    modelAway: "No answer from the server; goes on by itself at token {next} of {count}",
    modelDone: "Done: {count} tokens, each with a POST of its own",
    modelStopped: "Stopped at token {next} of {count}",
    modelKilled: "Killed at token {next} of {count}, and nobody was told",
    modelRefused: "Refused by the server: {reason}",
    reload: "Reload the page",
    second: "Second reader",
    closeSecond: "Close second reader",
    kill: "Kill the model",
    stop: "Stop",
    stopFailed: "The server cannot be reached: not stopped",
    stopRefused: "Not stopped, the server answered {status}",
    cut: "Cut the connection",
    reader: "A reader",
    answer: "Answer",
    tokens: "Tokens",
    rate: "Rate",
    perSecond: "{rate}/s",
    position: "Position",
    none: "none",
    connecting: "Connecting…",
    waiting: "Waiting for the first word",
    silent: "Not ended",
    silence: "A fragment so far: no end, and nothing for {seconds} s",
    cutOff: "Cut off, back in {seconds} s",
    reconnecting: "Connection lost, coming back…",
    finished: "Finished",
    stopped: "Stopped",
    fragment: "Fragment",
    badTopic: "No topic has such a name",
    finishedNote: "Finished: whoever comes back is told that nothing follows",
    stoppedNote: "Ended here, before the model was done",
    fragmentNote: "A fragment: the model broke off here",
    gap: "The server says that something may be gone here: asked to go on from {requested}, nothing is missing from {oldest} on",
    gapEmpty: "The server says that something may be gone here: asked to go on from {requested}, nothing is held that came after it",
    hole: "{count} tokens are missing here",
    trimmed: "The beginning is too long ago to be shown",
    topic: "Topic",
    anotherTab: "open it in another tab",
    readShell: "Read it in a terminal:",
    pipeShell: "Or let a real model write into it, through any OpenAI-compatible API:",
  },
  zh: {
    title: "逐字出现的回答",
    lead: "模型每写出一个词元就 POST 一次，读者用 EventSource 接收。断开连接、刷新页面、在另一个标签页里同时看：一个不丢，也不重复。",
    model: "模型",
    ask: "提问",
    actions: "试一试",
    idle: "选一个问题",
    elsewhere: "在别处",
    writing: "正在写",
    modelElsewhere: "另一个标签页正在写这个回答",
    modelStarting: "正在开始",
    modelWriting: "正在写：第 {next} 个词元，共 {count} 个",
    modelAway: "服务器没有应答，恢复后从第 {next} 个词元接着写（共 {count} 个）",
    modelDone: "写完了：{count} 个词元，每个一次 POST",
    modelStopped: "停在第 {next} 个词元，共 {count} 个",
    modelKilled: "在第 {next} 个词元（共 {count} 个）中途崩溃，没有通知任何人",
    modelRefused: "服务器拒绝了：{reason}",
    reload: "刷新页面",
    second: "第二个读者",
    closeSecond: "关闭第二个读者",
    kill: "让模型崩溃",
    stop: "停止",
    stopFailed: "无法连接服务器，没有停下来",
    stopRefused: "没有停下来，服务器返回 {status}",
    cut: "断开连接",
    reader: "读者",
    answer: "回答",
    tokens: "词元",
    rate: "速度",
    perSecond: "{rate} 个/秒",
    position: "位置",
    none: "无",
    connecting: "正在连接…",
    waiting: "等待第一个字",
    silent: "没有写完",
    silence: "目前只是片段：没有结尾，已有 {seconds} 秒没有新内容",
    cutOff: "已断开，{seconds} 秒后恢复",
    reconnecting: "连接中断，正在恢复…",
    finished: "已写完",
    stopped: "已停止",
    fragment: "片段",
    badTopic: "主题名称无效",
    finishedNote: "已写完：再来的读者会得知后面没有内容了",
    stoppedNote: "到此为止，模型还没有写完",
    fragmentNote: "这是片段：模型在这里中断了",
    gap: "服务器提示这里可能缺了内容：请求从 {requested} 继续，从 {oldest} 起没有缺失",
    gapEmpty: "服务器提示这里可能缺了内容：请求从 {requested} 继续，此后的内容也没有了",
    hole: "这里缺了 {count} 个词元",
    trimmed: "开头的内容太早，不再显示",
    topic: "主题",
    anotherTab: "在另一个标签页打开",
    readShell: "在终端里看：",
    pipeShell: "或者让真正的模型写进来，任何兼容 OpenAI 的 API 都行：",
  },
};

const TOPIC =
  /^(?=.{1,255}$)(?!(.*\/)?\.{1,2}(\/|$))[\w.~:@-]+(\/[\w.~:@-]+)*$/;
// As long as the server tells an EventSource to wait.
const CUT_MS = 3000;
const SILENT_MS = 5000;
// A replay follows its stream's head at once.
const REPLAY_MS = 250;
const RETRY_MIN = 1000;
const RETRY_MAX = 10000;
const PENDING_LIMIT = 1000;
const SHOWN_LIMIT = 5000;
const TICK = 500;

const element = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const query = new URLSearchParams(location.search);
// for tests: so many times as fast the model writes, and a cut is over
const speed = Number(query.get("speed")) || 1;

const page = ssedPage(TEXTS, renderTexts);
let topic = query.get("topic") || randomTopic();
let model = null;
let readers = [];
let frame = 0;

function randomTopic() {
  return `chat/${Math.random().toString(36).slice(2, 8)}`;
}

function streamOf(name) {
  return `/events/${name}`;
}

function changed() {
  if (!frame) frame = requestAnimationFrame(render);
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A text with values in it, which follows a change of language.
function say(node, key, values) {
  node.dataset.say = key;
  node.values = values;
  setText(node, page.fill(key, values));
}

function hush(node) {
  delete node.dataset.say;
  node.textContent = "";
}

// A button that does nothing now is not `disabled`: that would take the focus
// away from someone who has just pressed it by key.
function enable(button, enabled) {
  button.setAttribute("aria-disabled", String(!enabled));
}

function onPress(button, act) {
  button.onclick = () => {
    if (button.getAttribute("aria-disabled") !== "true") act();
  };
}

function make(tag, className) {
  const node = document.createElement(tag);

  node.className = className;
  return node;
}

// ------------------------------------------------------------------ the model

// Some letters or two characters, with the blanks before them.
function tokensOf(text) {
  return text.match(
    /\n+|\s*(?:\p{Script=Han}{1,2}|\p{L}{1,5}|\p{N}{1,3}|[^\s\p{L}\p{N}])|\s+/gu,
  );
}

// In bursts, with a breath here and there and after a sentence.
function pauseAfter(text) {
  if (/[.:?!。：？！\n]$/.test(text)) return 100 + Math.random() * 100;
  if (Math.random() < 0.1) return 120 + Math.random() * 180;
  return 8 + Math.random() * 14;
}

// One model for a topic, also where a tab has been duplicated: the other one
// waits, and goes on if this one goes. (A page that came over plain HTTP from
// another machine has no locks.)
function alone(name, work) {
  if (!navigator.locks) return work();
  return navigator.locks.request(`ssed-model ${name}`, work);
}

class Model {
  state = "elsewhere";
  next = 0;
  line = "";
  newestId = 0;
  openSince = 0;
  due = 0;
  inFlight = null;
  killed = new AbortController();

  constructor(name, script) {
    const tokens = tokensOf(script.textContent.trim());

    this.url = streamOf(name);
    this.items = [
      { event: "prompt", t: script.dataset.question },
      ...tokens.map((t) => ({ event: "token", t })),
    ];
  }

  get busy() {
    return ["elsewhere", "starting", "writing", "away"].includes(this.state);
  }

  get count() {
    return this.items.length - 1;
  }

  end(state) {
    if (!this.busy) return;
    this.state = state;
    remember({ prompt: undefined });
    changed();
  }

  become(state) {
    if (this.busy) this.state = state;
    changed();
  }

  async write() {
    this.become("starting");
    if (!this.busy) return;
    this.listen();
    await this.settle();
    while (this.busy && this.next < this.items.length) {
      this.inFlight = this.publish(this.next);
      await this.inFlight;
      await this.pace();
    }
    this.end("done");
    this.source.close();
  }

  // The model hears what it publishes, and when somebody finishes its topic.
  // Of what is there the newest two: the last token and the end.
  listen() {
    this.source = new EventSource(`${this.url}?last=2`);
    for (const name of ["prompt", "token"])
      this.source.addEventListener(name, (event) => {
        this.published(read(event.data).i, event.lastEventId);
      });
    this.source.addEventListener("ssed.end", (event) => {
      if (this.next < this.items.length) this.stopped(event.lastEventId);
    });
    this.source.onopen = () => (this.openSince = performance.now());
    this.source.onerror = () => {
      this.openSince = 0;
      if (this.source.readyState === EventSource.CLOSED && this.busy)
        setTimeout(() => this.busy && this.listen(), RETRY_MIN);
    };
  }

  // Waits until the stream is there and has told what the topic holds.
  async settle() {
    const since = performance.now();
    const told = () =>
      this.openSince &&
      performance.now() - Math.max(this.openSince, since) > REPLAY_MS;

    while (this.busy && !told()) await sleep(50);
    this.become("writing");
  }

  published(i, id) {
    if (!(i >= 0)) return;
    this.next = Math.max(this.next, i + 1);
    this.newestId = Math.max(this.newestId, Number(id));
    changed();
  }

  // A token that was on its way when somebody finished the topic has opened it
  // again.
  async stopped(endId) {
    if (!this.busy) return;
    this.end("stopped");
    await this.inFlight;
    if (this.newestId > Number(endId)) await finishTopic(this.url);
  }

  async publish(i) {
    const { event, t } = this.items[i];
    const last = i === this.count;
    const address = `${this.url}?event=${event}${last ? "&end=1" : ""}`;
    const body = JSON.stringify(last ? { i, t, last } : { i, t });

    this.line = `POST ${address}  ${body}`;
    try {
      const response = await fetch(address, {
        method: "POST",
        body,
        signal: this.killed.signal,
      });
      if (response.ok) this.published(i, (await response.json()).id);
      else await this.failed(response);
    } catch {
      this.become("away");
      await this.settle();
    }
  }

  async failed(response) {
    const { status } = response;

    this.reason = `${status} ${(await response.text()).trim()}`;
    if (status >= 400 && status < 500) {
      this.end("refused");
      return;
    }
    this.become("away");
    await sleep(RETRY_MIN);
    await this.settle();
  }

  // By a clock, so that the slow timers of a hidden page do not slow it down;
  // but what has been missed for long is not made good.
  async pace() {
    const now = performance.now();
    const pause = pauseAfter(this.items[this.next - 1]?.t ?? "") / speed;

    this.due = Math.max(this.due + pause, now - 2000);
    if (this.due > now + 4) await sleep(this.due - now);
  }

  async halt() {
    this.end("stopped");
    await this.inFlight;
  }

  kill() {
    this.end("killed");
    this.killed.abort();
  }
}

// ---------------------------------------------------------- what an event says

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return null;
  }
}

// {text}, and where the format has them {i}, a number, {marked}, that there
// will be a mark at the end of the answer, and {last}, that this is it.
function read(data) {
  const value = parse(data);

  if (data === "[DONE]") return { text: "", marked: true, last: true };
  if (Number.isSafeInteger(value?.i) && typeof value.t === "string")
    return { i: value.i, text: value.t, marked: true, last: value.last };
  if (!Array.isArray(value?.choices)) return { text: data };
  // of several answers at once the first
  const choice = value.choices.find((choice) => !choice?.index);
  const content = choice?.delta?.content;
  return { text: typeof content === "string" ? content : "", marked: true };
}

// -------------------------------------------------- typing, and code in colour

const KEYWORDS = new Set(
  `and as assert async await bool break case catch char class const continue def
  default defer del delete do double elif else enum except export extends false
  finally float fn for from func function global go goto if impl import in int
  interface is lambda let long loop match mod mut new nil none None not null or
  package pass private public pub raise range return select self Self short
  sizeof static struct super switch this throw true True False try type typedef
  typeof undefined union unsigned use var void volatile where while with yield`
    .split(/\s+/),
);
const HASH_COMMENTS = new Set(
  `bash conf console docker dockerfile elixir ini julia make makefile perl py
  python r rb ruby sh shell toml yaml yml zsh`.split(/\s+/),
);
const COMMON = [
  String.raw`(?<string>"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?)`,
  String.raw`(?<number>\d[\w.]*)`,
  String.raw`(?<word>[\p{L}_$][\p{L}\p{N}_$]*)`,
  "[^]",
].join("|");
const SLASH = RegExp(`(?<open>/\\*|\`)|(?<comment>//.*)|${COMMON}`, "yu");
const HASH = RegExp(`(?<open>"""|''')|(?<comment>#.*)|${COMMON}`, "yu");
const CLOSED_BY = { "/*": "*/", "`": "`", '"""': '"""', "'''": "'''" };

// What stands at `at`: [its kind, its end, what is still open behind it].
function lexeme(pattern, text, at, open) {
  if (open) {
    const end = text.indexOf(open, at);
    const kind = open === "*/" ? "comment" : "string";

    return end < 0
      ? [kind, text.length, open]
      : [kind, end + open.length, ""];
  }
  pattern.lastIndex = at;
  const { groups } = pattern.exec(text);
  const end = pattern.lastIndex;

  if (groups.open)
    return [groups.open === "/*" ? "comment" : "string", end,
      CLOSED_BY[groups.open]];
  if (groups.word)
    return [KEYWORDS.has(groups.word) ? "keyword" : "", end, ""];
  return [["comment", "string", "number"].find((kind) => groups[kind]) ?? "",
    end, ""];
}

// Fills a line of code with coloured parts; returns what is open at its end: a
// comment or string over several lines.
function colour(line, text, language, open) {
  const pattern = HASH_COMMENTS.has(language) ? HASH : SLASH;
  const parts = [];
  let plain = "";

  for (let at = 0, kind, end; at < text.length; at = end) {
    [kind, end, open] = lexeme(pattern, text, at, open);
    if (!kind) {
      plain += text.slice(at, end);
      continue;
    }
    const part = make("span", kind);
    part.textContent = text.slice(at, end);
    parts.push(plain, part);
    plain = "";
  }
  line.replaceChildren(...parts, plain);
  return open;
}

// Types text into a node: lines of prose, and of code between ``` fences. Only
// the last line is ever touched again, so a long answer costs no more than a
// short one.
class Typist {
  block = null;
  line = null;
  text = "";
  whole = true; // the line has its beginning
  language = null; // of the code that this is in
  open = "";

  // added(node): for whoever counts what is on the page
  constructor(node, added) {
    this.node = node;
    this.added = added;
  }

  write(text) {
    // a line that never ends is taken in parts
    for (const part of text.match(/[^\n]{0,2000}\n|[^\n]{1,2000}/gu) ?? []) {
      if (!this.line) this.begin();
      this.text += part;
      if (part.endsWith("\n")) this.finish(true);
      else if (this.text.length > 2000) this.finish(false);
    }
    if (this.line) this.paint();
  }

  begin() {
    this.line = make("span", "line");
    this.enter(this.language === null ? "div" : "pre");
    this.added(this.line);
  }

  // Puts the line into a block of prose or of code, a new one if need be.
  enter(tag) {
    const old = this.block;

    if (old?.localName !== tag) {
      this.block = make(tag, tag === "div" ? "prose" : "code");
      this.node.append(this.block);
    }
    this.block.append(this.line);
    if (old && !old.querySelector(".line")) old.remove();
  }

  get isFence() {
    return this.whole && /^ {0,3}```/.test(this.text);
  }

  paint() {
    if (this.isFence) {
      this.line.classList.add("fence");
      if (this.language === null) this.enter("pre");
    }
    if (this.isFence || this.language === null)
      this.line.textContent = this.text;
    else return colour(this.line, this.text, this.language, this.open);
    return this.open;
  }

  finish(whole) {
    this.open = this.paint();
    if (whole && this.isFence) {
      const [language] = this.text.replace(/[\s`]+/, "").split(/\s/);

      this.language = this.language === null ? language.toLowerCase() : null;
      this.open = "";
    }
    this.line = null;
    this.text = "";
    this.whole = whole;
  }

  // Puts something between what is there and what comes.
  interrupt(node) {
    if (this.line) this.finish(false);
    this.block = null;
    this.node.append(node);
  }

  // Marks where the text was cut. A line that is not painted as a whole can be
  // parted there; before others the mark has to stand.
  seam() {
    const mark = make("span", "seam");

    if (!this.line) return;
    if (this.language === null && this.text.length > 6) {
      this.line.after(mark);
      this.finish(false);
    } else {
      this.line.before(mark);
    }
  }
}

// ------------------------------------------------------------------- a reader

class Reader {
  constructor(node) {
    this.node = node;
    this.list = node.querySelector(".answers");
    this.caret = make("span", "caret");
    this.silence = make("p", "outcome");
    this.silence.dataset.outcome = "silent";
    this.list.onscroll = () => this.scrolled();
    onPress(node.querySelector(".cut"), () => this.cut());
  }

  // From the beginning: what a page has that knows nothing yet.
  watch(name) {
    this.close();
    this.topic = name;
    this.position = "";
    this.tokens = 0;
    this.samples = [];
    this.answer = null;
    this.over = false; // the topic is finished
    this.pending = [];
    this.buffer = "";
    this.shown = [];
    this.heardAt = 0;
    this.retryDelay = RETRY_MIN;
    this.following = true;
    this.list.replaceChildren();
    if (TOPIC.test(name)) this.open();
    changed();
  }

  open() {
    const from = this.position || "earliest";
    const source = new EventSource(
      `${streamOf(this.topic)}?lastEventId=${encodeURIComponent(from)}`,
    );
    const on = (name, kind) =>
      source.addEventListener(name, (event) => this.receive(kind, event));

    this.backAt = 0;
    this.source = source;
    source.onopen = () => this.opened();
    source.onerror = () => this.failed();
    ssedWatch(source);
    on("message", "token");
    on("token", "token");
    on("prompt", "prompt");
    on("ssed.gap", "gap");
    on("ssed.end", "end");
    changed();
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    this.backAt = 0;
  }

  get isOpen() {
    return this.source?.readyState === EventSource.OPEN;
  }

  opened() {
    this.retryDelay = RETRY_MIN;
    this.heardAt = Date.now();
    changed();
  }

  // The browser comes back by itself with its position, but not where the
  // answer is no stream: after 204, which means that the topic is finished, or
  // where a proxy answers for the server.
  failed() {
    this.flush();
    if (!this.over) this.torn();
    if (!this.over && this.source.readyState === EventSource.CLOSED) {
      this.timer = setTimeout(() => this.open(), this.retryDelay);
      this.retryDelay = Math.min(this.retryDelay * 2, RETRY_MAX);
    }
    changed();
  }

  // A page cannot break a connection as a tunnel does. It closes it, and opens
  // another one with the position, as EventSource would.
  cut() {
    const pause = CUT_MS / speed;

    this.flush();
    this.torn();
    this.close();
    this.backAt = Date.now() + pause;
    this.timer = setTimeout(() => this.open(), pause);
    changed();
  }

  torn() {
    this.wasTorn = this.answer && !this.answer.outcome;
  }

  receive(kind, event) {
    this.pending.push([kind, event.data, event.lastEventId]);
    // a hidden page gets no frames
    if (this.pending.length > PENDING_LIMIT) this.flush();
    changed();
  }

  flush() {
    if (!this.pending.length) return;
    this.heardAt = Date.now();
    this.silence.remove();
    for (const [kind, data, id] of this.pending.splice(0)) {
      if (id) this.position = id;
      this[kind](data);
    }
    this.type();
    this.placeCaret();
    if (this.following) this.list.scrollTop = this.list.scrollHeight;
  }

  prompt(data) {
    const { i, text } = read(data);
    const { answer } = this;

    // one that came twice
    if (answer && !answer.outcome && i < answer.next) return;
    this.begin(text);
    if (i >= 0) this.answer.next = i + 1;
  }

  token(data) {
    const { i, text, marked, last } = read(data);

    if (i === undefined) {
      if (!text && !marked) return;
      if (!this.answer || (this.answer.outcome && text)) this.begin();
    } else if (!this.follows(i)) {
      return;
    }
    if (text) this.tokens++;
    this.buffer += text;
    this.answer.marked ||= marked;
    if (last) this.conclude("finished");
  }

  // Is the token the next one of the answer? A number that was there is one
  // that came twice, one that is too great leaves a hole, and one that comes
  // after the end goes on, as a stop has overtaken it.
  follows(i) {
    if (!this.answer || (this.answer.outcome && i === 0)) this.begin();
    const { answer } = this;
    const missing = i - answer.next;

    if (missing < 0) return false;
    if (answer.outcome) this.reopen();
    if (missing > 0) this.note("hole", { count: missing });
    answer.next = i + 1;
    return true;
  }

  gap(data) {
    const { requested, oldest } = parse(data);

    this.note(oldest ? "gap" : "gapEmpty", { requested, oldest });
  }

  end(data) {
    const complete = parse(data)?.complete !== false;

    if (!this.answer) this.begin();
    this.over = true;
    if (this.answer.outcome) return;
    if (!complete) this.conclude("fragment");
    else this.conclude(this.answer.marked ? "stopped" : "finished");
  }

  begin(question) {
    const node = make("div", "answer");

    this.type();
    // an answer that never had a word
    if (this.answer && !this.answer.node.childElementCount)
      this.answer.node.remove();
    if (question !== undefined) {
      const asked = make("p", "question");

      asked.textContent = question;
      this.list.append(asked);
      this.show(asked);
    }
    this.list.append(node);
    this.over = false;
    this.wasTorn = false;
    this.answer = {
      node,
      typist: new Typist(node, (line) => this.show(line)),
      next: 0,
      marked: false,
      outcome: "",
    };
  }

  conclude(outcome) {
    const { answer } = this;

    if (answer.outcome) return;
    this.type();
    answer.outcome = outcome;
    answer.mark = make("p", "outcome");
    answer.mark.dataset.outcome = outcome;
    say(answer.mark, `${outcome}Note`);
    answer.node.after(answer.mark);
    this.show(answer.mark);
  }

  reopen() {
    this.over = false;
    this.answer.outcome = "";
    this.answer.mark.remove();
  }

  type() {
    if (!this.buffer) return;
    const { typist } = this.answer;

    if (this.wasTorn) typist.seam();
    this.wasTorn = false;
    typist.write(this.buffer);
    this.buffer = "";
  }

  note(key, values) {
    const node = make("p", "note");

    this.type();
    say(node, key, values);
    if (this.answer) this.answer.typist.interrupt(node);
    else this.list.append(node);
    this.show(node);
  }

  // What is on the page is bounded, whatever somebody writes into a topic.
  show(node) {
    this.shown.push(node);
    if (this.shown.length <= SHOWN_LIMIT) return;
    this.dropOldest();
    if (this.list.firstElementChild.classList.contains("trimmed")) return;
    const note = make("p", "note trimmed");
    say(note, "trimmed");
    this.list.prepend(note);
  }

  dropOldest() {
    const old = this.shown.shift();
    let parent = old.parentElement;

    old.remove();
    while (parent && parent !== this.list && !parent.childElementCount) {
      const empty = parent;

      parent = parent.parentElement;
      empty.remove();
    }
  }

  placeCaret() {
    const { answer } = this;

    if (!answer || answer.outcome) this.caret.remove();
    else (answer.typist.block ?? answer.node).append(this.caret);
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.list;

    this.following = scrollHeight - scrollTop - clientHeight < 40;
  }

  get state() {
    const { answer } = this;

    if (!TOPIC.test(this.topic)) return "badTopic";
    if (this.backAt) return "cut";
    if (answer?.outcome) return answer.outcome;
    if (!this.isOpen) return this.heardAt ? "reconnecting" : "connecting";
    if (!answer) return "waiting";
    return Date.now() - this.heardAt > SILENT_MS ? "silent" : "writing";
  }

  // Shows that it has been quiet for too long, under an answer without an end.
  renderSilence(state) {
    const seconds = Math.floor((Date.now() - this.heardAt) / 1000);

    if (state !== "silent") {
      if (this.silence.isConnected) this.placeCaret();
      this.silence.remove();
      return;
    }
    say(this.silence, "silence", { seconds });
    if (this.silence.isConnected) return;
    this.caret.remove();
    this.answer.node.after(this.silence);
    if (this.following) this.list.scrollTop = this.list.scrollHeight;
  }

  renderState(state) {
    const node = this.node.querySelector(".state");
    const seconds = Math.ceil((this.backAt - Date.now()) / 1000);
    const cut = page.fill("cutOff", { seconds: Math.max(seconds, 1) });

    node.dataset.state = state;
    setText(node, state === "cut" ? cut : page.words[state]);
  }

  get rate() {
    const { samples } = this;
    const seconds = ((samples.length - 1) * TICK) / 1000;

    return seconds > 0 ? Math.round((this.tokens - samples[0]) / seconds) : 0;
  }

  // The rate is that of the last two seconds.
  tick() {
    this.samples = [...this.samples.slice(-4), this.tokens];
  }

  render() {
    this.flush();
    const { state } = this;
    const put = (name, text) =>
      setText(this.node.querySelector(name), String(text));

    this.renderState(state);
    this.renderSilence(state);
    put(".tokens", this.tokens);
    put(".rate", page.fill("perSecond", { rate: this.rate }));
    put(".position", this.position || page.words.none);
    enable(this.node.querySelector(".cut"), this.source && !this.over);
  }
}

// ------------------------------------------------------------------- the page

// What is kept over a reload, with the entry in the tab's history.
function remember(change) {
  history.replaceState({ ...history.state, ...change }, "");
}

function address(name) {
  return `?topic=${name}${speed === 1 ? "" : `&speed=${speed}`}`;
}

function moveTo(name) {
  topic = name;
  history.pushState({ second: readers.length > 1 }, "", address(name));
  for (const reader of readers) reader.watch(name);
  renderPlaces();
}

function write(script) {
  const mine = new Model(topic, script);

  model = mine;
  remember({ prompt: script.id });
  alone(topic, () => mine.write());
  changed();
}

// A topic is one conversation here, of one question: the next gets its own.
function ask(script) {
  const [reader] = readers;

  if (!reader.isOpen || reader.answer) moveTo(randomTopic());
  hush(element("result"));
  write(script);
}

function finishTopic(url) {
  return fetch(url, { method: "DELETE" });
}

async function stop() {
  const result = element("result");

  hush(result);
  await model?.halt();
  try {
    const { ok, status } = await finishTopic(streamOf(topic));
    if (!ok) say(result, "stopRefused", { status });
  } catch {
    say(result, "stopFailed");
  }
}

function addReader() {
  const node = readers[0].node.cloneNode(true);
  const reader = new Reader(node);

  element("readers").append(node);
  readers.push(reader);
  reader.watch(topic);
}

function closeReader() {
  const reader = readers.pop();

  reader.close();
  reader.node.remove();
}

function toggleSecond() {
  if (readers.length > 1) closeReader();
  else addReader();
  remember({ second: readers.length > 1 });
  changed();
}

function renderModel() {
  const node = element("model-state");
  const { state = "idle" } = model ?? {};
  const key = `model${state[0].toUpperCase()}${state.slice(1)}`;

  node.dataset.state = state;
  if (model) {
    const { next, count, reason } = model;
    const told = Math.max(0, Math.min(next - 1, count));
    setText(node, page.fill(key, { next: told, count, reason }));
  } else {
    setText(node, page.words.idle);
  }
  setText(element("post"), model?.line ?? "");
}

function renderButtons() {
  const busy = Boolean(model?.busy);
  const there = readers.some((reader) => reader.isOpen || reader.answer);
  const over = readers.some((reader) => reader.over);
  const second = element("second-btn");

  for (const button of element("prompts").children) enable(button, !busy);
  enable(element("kill-btn"), busy);
  enable(element("stop-btn"), there && !over);
  second.dataset.text = readers.length > 1 ? "closeSecond" : "second";
  setText(second, page.words[second.dataset.text]);
}

function renderPlaces() {
  const url = location.origin + streamOf(topic);

  setText(element("topic"), topic);
  element("tab-link").href = address(topic);
  setText(element("read-line"), `curl -N '${url}?lastEventId=earliest'`);
  setText(
    element("pipe-line"),
    `curl -N https://…/v1/chat/completions … | curl -T - -X POST ` +
      `-H 'Content-Type: text/event-stream' '${url}?end=1'`,
  );
}

function render() {
  frame = 0;
  for (const reader of readers) reader.render();
  renderModel();
  renderButtons();
}

function renderTexts() {
  for (const node of document.querySelectorAll("[data-say]"))
    say(node, node.dataset.say, node.values);
  render();
}

function addPrompt(script) {
  const button = document.createElement("button");

  button.type = "button";
  button.lang = script.lang;
  button.dataset.prompt = script.id;
  button.textContent = script.dataset.question;
  onPress(button, () => ask(script));
  element("prompts").append(button);
}

function begin() {
  const { prompt, second } = history.state ?? {};

  // somebody else's topic: there is no model here until one asks
  element("model").open = Boolean(history.state || !query.get("topic"));
  if (element("model").open)
    history.replaceState(history.state ?? {}, "", address(topic));
  document.querySelectorAll(".script").forEach(addPrompt);
  readers = [new Reader(document.querySelector(".reader"))];
  readers[0].watch(topic);
  if (second) addReader();
  if (prompt) write(element(prompt));
  renderPlaces();
}

onPress(element("reload-btn"), () => location.reload());
onPress(element("second-btn"), toggleSecond);
onPress(element("stop-btn"), stop);
onPress(element("kill-btn"), () => model.kill());
// Back and forward are other topics.
addEventListener("popstate", () => location.reload());
// The browser keeps a page for the way back, and its streams with it.
addEventListener("pagehide", () => {
  model?.source?.close();
  for (const reader of readers) reader.source?.close();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
setInterval(() => {
  for (const reader of readers) reader.tick();
  changed();
}, TICK);

begin();
