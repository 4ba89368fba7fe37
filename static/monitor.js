"use strict";

const page = ssedPage({
  en: { title: "monitor", lead: "" },
  zh: { title: "monitor", lead: "" },
});
