// A device by npm's `@xmpp/client`: says `ready`, then the body of each message, whose arrival stream management tells.
import { webcrypto } from "node:crypto";
import { client, xml } from "@xmpp/client";
import WebSocket from "ws";

// The library takes those of browsers, which this Node may not have: 18 has neither.
globalThis.crypto ??= webcrypto;
globalThis.WebSocket ??= WebSocket;

const [service, user, password] = process.argv.slice(2);
const device = client({ service, domain: "localhost", username: user, password, resource: "node" });

device.on("error", (error) => console.error(String(error)));
device.on("stanza", async (stanza) => {
  if (stanza.is("message") && stanza.getChild("body")) console.log(stanza.getChildText("body"));
});
device.on("online", async (address) => {
  await device.send(xml("presence"));
  console.log(`ready ${address}`);
});
await device.start();
