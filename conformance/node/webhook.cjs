// A receiver of webhooks with the library of Standard Webhooks of npm: prints a line of JSON for each request.
// webhook.cjs SECRET: its first line says the port.
const http = require("node:http");
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.argv[2]);
const server = http.createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  let said;
  try {
    const message = webhook.verify(Buffer.concat(parts).toString(), request.headers);
    said = { verified: true, id: request.headers["webhook-id"], type: message.type };
  } catch (error) {
    said = { verified: false, why: String(error) };
  }
  console.log(JSON.stringify(said));
  response.writeHead(said.verified ? 204 : 401).end();
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
