"use strict";

const page = ssedPage({
  en: { title: "progress", lead: "" },
  zh: { title: "progress", lead: "" },
});
