// One scene with MQTT.js: node mqttjs.mjs URL VERSION SCENE. Exits 0 when all went as it should.
// VERSION is 3 (MQTT 3.1), 4 (3.1.1) or 5. The scenes wait for events only.

import { randomBytes } from 'node:crypto'
import { strict as assert } from 'node:assert'
import mqtt from 'mqtt'

const [url, versionText, scene] = process.argv.slice(2)
const version = Number(versionText)
const unique = () => 'js' + randomBytes(8).toString('hex')

function options (more = {}) {
  const protocolId = version === 3 ? 'MQIsdp' : 'MQTT'
  return { protocolVersion: version, protocolId, clientId: unique(), reconnectPeriod: 0, connectTimeout: 10000, ...more }
}

function nextMessages (client, count) {
  return new Promise((resolve, reject) => {
    const got = []
    client.on('message', (topic, payload, packet) => {
      got.push({ topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain, properties: packet.properties })
      if (got.length === count) resolve(got)
    })
    client.on('error', reject)
  })
}

async function qos () {
  const topic = unique()
  const client = await mqtt.connectAsync(url, options())
  await client.subscribeAsync(topic, { qos: 2 })
  const came = nextMessages(client, 3)
  for (const level of [0, 1, 2]) await client.publishAsync(topic, `qos ${level}`, { qos: level })
  const got = (await came).map(m => `${m.payload}/${m.qos}`).sort()
  assert.deepEqual(got, ['qos 0/0', 'qos 1/1', 'qos 2/2'])
  await client.endAsync()
}

async function retain () {
  const topic = unique()
  const client = await mqtt.connectAsync(url, options())
  await client.publishAsync(topic, 'kept', { qos: 1, retain: true })
  const came = nextMessages(client, 1)
  await client.subscribeAsync(topic, { qos: 1 })
  const [message] = await came
  assert.equal(message.payload, 'kept')
  assert.equal(message.retain, true)
  await client.publishAsync(topic, '', { qos: 1, retain: true })
  await client.endAsync()
}

async function will () {
  const topic = unique()
  const watcher = await mqtt.connectAsync(url, options())
  await watcher.subscribeAsync(topic, { qos: 1 })
  const came = nextMessages(watcher, 1)
  const dying = await mqtt.connectAsync(url, options({ will: { topic, payload: 'gone', qos: 1 } }))
  dying.stream.destroy()
  assert.equal((await came)[0].payload, 'gone')
  await watcher.endAsync()
}

async function offline () {
  const topic = unique()
  const kept = options({ clean: false, properties: version === 5 ? { sessionExpiryInterval: 300 } : undefined })
  const first = await mqtt.connectAsync(url, kept)
  await first.subscribeAsync(topic, { qos: 1 })
  await first.endAsync()
  const publisher = await mqtt.connectAsync(url, options())
  const wanted = [...Array(20).keys()].map(String)
  for (const payload of wanted) await publisher.publishAsync(topic, payload, { qos: 1 })
  // The listener has to stand before the connection does: the queue comes at once.
  const back = mqtt.connect(url, kept)
  const got = (await nextMessages(back, 20)).map(m => m.payload)
  assert.deepEqual(got, wanted)
  await back.endAsync()
  await publisher.endAsync()
  await (await mqtt.connectAsync(url, { ...kept, clean: true, properties: undefined })).endAsync()
}

async function many () {
  const topic = unique()
  const client = await mqtt.connectAsync(url, options())
  await client.subscribeAsync(topic, { qos: 1 })
  const came = nextMessages(client, 500)
  // MQTT.js does not hold itself to the server's Receive Maximum, so no more than ten at a time are under way.
  for (let n = 0; n < 500; n += 10) {
    await Promise.all([...Array(10).keys()].map(i => client.publishAsync(topic, String(n + i), { qos: 1 })))
  }
  assert.deepEqual((await came).map(m => Number(m.payload)), [...Array(500).keys()])
  await client.endAsync()
}

async function properties () {
  const topic = unique()
  const client = await mqtt.connectAsync(url, options({ properties: { topicAliasMaximum: 5 } }))
  await client.subscribeAsync(topic, { qos: 1 })
  const came = nextMessages(client, 2)
  const sent = { userProperties: { a: ['1', '2'] }, contentType: 'text/x', responseTopic: 'r', correlationData: Buffer.from('c') }
  await client.publishAsync(topic, 'one', { qos: 1, properties: sent })
  await client.publishAsync(topic, 'two', { qos: 1, properties: sent })
  for (const message of await came) {
    assert.equal(message.topic, topic)
    assert.deepEqual(message.properties.userProperties.a, ['1', '2'])
    assert.equal(message.properties.contentType, 'text/x')
    assert.equal(message.properties.correlationData.toString(), 'c')
  }
  await client.endAsync()
}

const scenes = { qos, retain, will, offline, many, properties }
const patience = setTimeout(() => { console.error(`${scene}: nothing came in 25 s`); process.exit(1) }, 25000)
try {
  await scenes[scene]()
  clearTimeout(patience)
  process.exit(0)
} catch (error) {
  console.error(`${scene}: ${error.stack}`)
  process.exit(1)
}
