// A device by npm's `ws` or `eventsource`: says `ready`, then id and title of each push, and acknowledges it.
import { EventSource } from "eventsource";
import WebSocket from "ws";

const [client, address, device, secret] = process.argv.slice(2);
const authorization = `Basic ${Buffer.from(`${device}:${secret}`).toString("base64")}`;
const show = (frame) => console.log(`${frame.message.id} ${frame.message.notification.title}`);

if (client === "ws") {
  const socket = new WebSocket(`ws://${address}/ws`);
  socket.on("open", () => socket.send(JSON.stringify({ type: "hello", device, secret })));
  socket.on("message", (text) => {
    const frame = JSON.parse(text);
    if (frame.type === "welcome") console.log("ready");
    if (frame.type === "push") {
      show(frame);
      socket.send(JSON.stringify({ type: "ack", deliveries: [frame.delivery] }));
    }
  });
} else {
  const withHeaders = (url, init) => fetch(url, { ...init, headers: { ...init.headers, authorization } });
  const source = new EventSource(`http://${address}/v1/stream`, { fetch: withHeaders });
  source.addEventListener("welcome", () => console.log("ready"));
  source.onmessage = async (event) => {
    const frame = JSON.parse(event.data);
    show(frame);
    const body = JSON.stringify({ deliveries: [frame.delivery] });
    const headers = { authorization, "content-type": "application/json" };
    await fetch(`http://${address}/v1/stream/acks`, { method: "POST", headers, body });
  };
}
