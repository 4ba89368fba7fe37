"use strict";

// What all pages share: the bar at their top, their words in two languages, and
// what the browser remembers for them.
//
//   const page = ssedPage({ en: { title: … }, zh: { title: … } }, render);
//
// puts the bar first into <body>; fills each element that has data-text="key"
// with that word, and the aria-label, placeholder or title of those that have
// data-label, data-placeholder or data-hint; sets the page's title; and then
// calls render(). All but the bar is done again when the language changes.
//
//   ssedWatch(source)
//
// says below the bar that the server does not let this page read, where an
// EventSource has given up for that, until there is one that is open.
//
//   page.language    "en" or "zh"
//   page.words       the page's words in it
//   page.fill(key, { count: 3 })    a word with values in its {places}

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

// what a public listener serves, and what the one of --admin does
const PUBLIC = [
  { file: "./", en: "Catch up", zh: "续传" },
  { file: "chat.html", en: "Chat", zh: "对话" },
  { file: "progress.html", en: "Picture", zh: "图像" },
  { file: "monitor.html", en: "Monitor", zh: "监控" },
  { file: "inspect.html", en: "Inspect", zh: "检查" },
  { file: "clock.html", en: "Clock", zh: "时钟" },
];
const ADMIN = [
  { file: "./", en: "Status", zh: "状态" },
  { file: "metrics", en: "Metrics", zh: "指标" },
  { file: "topics", en: "Topics", zh: "主题" },
];
const isAdmin = document.body.dataset.listener === "admin";
const PAGES = isAdmin ? ADMIN : PUBLIC;
const HOME = isAdmin ? "status.html" : "index.html";
const LANGUAGE = "ssed_language";
const REFUSED = {
  en: "The server does not let this page read: {reason}",
  zh: "服务器不允许本页读取：{reason}",
};
const refused = document.createElement("p");
let refusedFor = "";

function firstLanguage() {
  const kept = stored(LANGUAGE);

  if (kept === "en" || kept === "zh") return kept;
  return /^zh/i.test(navigator.language) ? "zh" : "en";
}

function renderRefused() {
  const zh = document.documentElement.lang === "zh-CN";
  const said = REFUSED[zh ? "zh" : "en"].replace("{reason}", () => refusedFor);

  refused.hidden = !refusedFor;
  refused.textContent = refusedFor ? said : "";
}

function ssedWatch(source) {
  source.addEventListener("open", () => {
    refusedFor = "";
    renderRefused();
  });
  // an EventSource does not tell the status, so it is asked for once more
  source.addEventListener("error", async () => {
    if (source.readyState !== EventSource.CLOSED) return;
    const answer = await fetch(source.url, { cache: "no-store" }).catch(() => 0);

    if ([401, 403, 429].includes(answer.status))
      refusedFor = (await answer.text()).trim().slice(0, 300);
    else answer.body?.cancel();
    renderRefused();
  });
}

function ssedPage(texts = { en: {}, zh: {} }, render = () => {}) {
  const here = location.pathname.split("/").pop() || "./";
  const bar = document.createElement("nav");
  const button = document.createElement("button");
  const links = PAGES.map(({ file }) => {
    const link = document.createElement("a");

    link.href = file;
    if (here === file || (here === HOME && file === "./"))
      link.setAttribute("aria-current", "page");
    return link;
  });
  const page = {
    language: firstLanguage(),
    get words() {
      return texts[page.language];
    },
    fill(key, values = {}) {
      const place = (_, name) => values[name] ?? "?";

      return page.words[key].replace(/\{(\w+)\}/g, place);
    },
  };

  function each(attribute, act) {
    for (const node of document.querySelectorAll(`[data-${attribute}]`))
      act(node, page.words[node.dataset[attribute]]);
  }

  function renderWords() {
    const zh = page.language === "zh";

    document.documentElement.lang = zh ? "zh-CN" : "en";
    links.forEach((link, i) => {
      link.textContent = PAGES[i][page.language];
    });
    bar.setAttribute("aria-label", zh ? "页面" : "Pages");
    button.textContent = zh ? "English" : "中文";
    button.lang = zh ? "en" : "zh-CN";
    each("text", (node, word) => (node.textContent = word));
    each("label", (node, word) => node.setAttribute("aria-label", word));
    each("placeholder", (node, word) => (node.placeholder = word));
    each("hint", (node, word) => (node.title = word));
    renderRefused();
    if (page.words.title) document.title = `ssed · ${page.words.title}`;
    render();
  }

  bar.className = "bar";
  button.type = "button";
  button.id = "language-btn";
  button.className = "quiet";
  button.onclick = () => {
    page.language = page.language === "zh" ? "en" : "zh";
    store(LANGUAGE, page.language);
    renderWords();
  };
  bar.append(...links, button);
  refused.className = "refused";
  refused.setAttribute("role", "alert");
  document.body.prepend(bar, refused);
  // not at once: what render() uses may be declared below the call
  queueMicrotask(renderWords);
  return page;
}
