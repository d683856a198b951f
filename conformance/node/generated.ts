// A client of the types that openapi-typescript makes of the server's document: node generated.js SERVER KEY.
// It sends, reads the report, turns the pages of the list, and says `passed`.

import { strict as assert } from 'node:assert'
import createClient from 'openapi-fetch'
import type { components, paths } from './schema.js'

const [server = '', key = ''] = process.argv.slice(2)
const api = createClient<paths>({ baseUrl: server, headers: { Authorization: `Bearer ${key}` } })
const MESSAGES = 5
const PAGE = 2

/** What an answer has, or an error that says what was refused. */
function good<T> ({ data, error }: { data?: T, error?: unknown }): T {
  if (data === undefined) throw new Error(JSON.stringify(error))
  return data
}

const device = good(await api.POST('/v1/devices', { body: { platform: 'web', attributes: { version: 12 }, tags: [], provider_tokens: {} } }))
const audience: components['schemas']['Audience'] = { or: [{ device: device.device_id }, { and: [{ tag: 'nobody' }, { not: 'all' }] }] }
const sent: string[] = []
for (let i = 0; i < MESSAGES; i++) {
  const body: components['schemas']['MessageRequest'] = { audience, data: { i }, priority: 'low', backlog: { last: MESSAGES } }
  const accepted = good(await api.POST('/v1/messages', { body }))
  assert.equal(accepted.targeted, 1)
  assert.deepEqual(accepted.warnings?.map(w => w.code), ['unused_tag'])
  sent.push(accepted.message_id)
}

const report = good(await api.GET('/v1/messages/{id}', { params: { path: { id: sent[0] ?? '' } } }))
assert.deepEqual([report.priority, report.targeted, report.states], ['low', 1, { queued: 1 }])

const seen: string[] = []
let cursor: string | null | undefined
do {
  const query: { limit: number, cursor?: string } = cursor ? { limit: PAGE, cursor } : { limit: PAGE }
  const page = good(await api.GET('/v1/messages', { params: { query } }))
  assert.ok(page.messages.length <= PAGE)
  seen.push(...page.messages.map(m => m.message_id))
  cursor = page.next_cursor
} while (cursor)
assert.deepEqual(seen.filter(id => sent.includes(id)).reverse(), sent)

const refused = await api.GET('/v1/devices/{id}', { params: { path: { id: 'nobody' } } })
assert.equal(refused.response.status, 404)
assert.equal(refused.error?.error.code, 'no_such_device')
console.log('passed')
