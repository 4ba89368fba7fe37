"use strict";

const page = ssedPage({
  en: { title: "chat", lead: "" },
  zh: { title: "chat", lead: "" },
});
