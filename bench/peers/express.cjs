// What one writes with Express: a list of responses, and a write to each.
const express = require("express");

const app = express();
const topics = new Map();
let id = 0;

function subscribersOf(topic) {
  if (!topics.has(topic)) topics.set(topic, new Set());
  return topics.get(topic);
}

app.disable("x-powered-by");

app.get("/events/:topic", (request, response) => {
  const subscribers = subscribersOf(request.params.topic);
  response.set({
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
  });
  response.flushHeaders();
  subscribers.add(response);
  request.on("close", () => subscribers.delete(response));
});

app.post("/events/:topic", express.text({ type: () => true }), (request, response) => {
  const frame = `id: ${++id}\ndata: ${request.body}\n\n`;
  for (const subscriber of subscribersOf(request.params.topic))
    subscriber.write(frame);
  response.status(201).json({ id: String(id) });
});

const server = app.listen(0, "127.0.0.1", 4096, () =>
  console.error(`event=listening address=127.0.0.1:${server.address().port}\nevent=ready`));
