"use strict";

const page = ssedPage({
  en: { title: "inspect", lead: "" },
  zh: { title: "inspect", lead: "" },
});
