// The pure parts: endings, frames, targets, server-sent events, notes in memory, words.

import { strict as assert } from 'node:assert'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { endingOfBye, endingOfCode, endingOfStatus } from '../src/ending'
import { parseFrame, readItem } from '../src/frames'
import { MemoryNotes, SEEN_MAX } from '../src/notes'
import { Lines } from '../src/sse'
import { describe } from '../src/strings'
import { safeTarget } from '../src/target'

const HERE = 'https://shop.example/orders?x=1'

test('each close code means what the protocol says', () => {
  const text = readFileSync('../../docs/protocol/websocket.md', 'utf8')
  const rows = [...text.matchAll(/^\| (\d{4}) \| (\w+) \| (yes|no) \|/gm)]
  assert.ok(rows.length >= 17, 'the table was not found')
  for (const [, code, reason, retry] of rows) {
    // 1000 without our having closed comes from something between: worth another try.
    if (code === '1000') continue
    assert.deepEqual(endingOfCode(Number(code)), { reason, retry: retry === 'yes' }, code)
  }
})

test('a code that nobody listed is worth another try', () => {
  for (const code of [1000, 1005, 1006, 1015, 3000, 4999]) assert.equal(endingOfCode(code).retry, true)
})

test('a farewell is read with care', () => {
  assert.deepEqual(endingOfBye({ reason: 'shutting_down', retry: true, retry_after_ms: 1500 }),
    { reason: 'shutting_down', retry: true, retryAfterMs: 1500 })
  assert.deepEqual(endingOfBye({ reason: 7, retry_after_ms: 'soon' }),
    { reason: 'connection_lost', retry: true, retryAfterMs: undefined })
  assert.equal(endingOfBye({ retry_after_ms: 1e12 }).retryAfterMs, 3_600_000)
})

test('a refused request says when to come back', () => {
  assert.deepEqual(endingOfStatus(429, '7'), { reason: 'too_often', retry: true, retryAfterMs: 7000 })
  assert.equal(endingOfStatus(429, 'Wed, 21 Oct 2026 07:28:00 GMT').retryAfterMs, 1000)
  assert.equal(endingOfStatus(401, null).retry, false)
  assert.equal(endingOfStatus(502, null).retry, true)
})

test('what is no frame is none', () => {
  for (const text of ['', 'null', '[]', '7', '{"type":7}', '{', '{"a":1}']) assert.equal(parseFrame(text), undefined)
  assert.equal(parseFrame('{"type":"push"}')?.type, 'push')
})

test('fields of the wrong kind are left out', () => {
  const notification = { title: { html: '<b>' }, body: ['x'], image: 7, click: null, badge: '1', sound: 's',
    actions: [{ id: 1, title: 'no' }, null, { id: 'a', title: 'A', click: {} }, 'x'] }
  const { push } = readItem({ type: 'push', delivery: '1', message: { id: 'm', notification, sent_at: 'now' } })
  assert.equal(push?.sent_at, undefined)
  const read = JSON.parse(JSON.stringify(push?.notification))
  assert.deepEqual(read, { sound: 's', actions: [{ id: 'a', title: 'A' }] })
})

test('raw bytes come as bytes', () => {
  assert.deepEqual(readItem({ type: 'push', delivery: '1', base64: 'AAEC' }).push?.bytes, new Uint8Array([0, 1, 2]))
  assert.equal(readItem({ type: 'push', delivery: '1', base64: '%' }).push?.bytes, undefined)
})

test('a repeat is known by the message, and where it has no id by its place and content', () => {
  const push = (delivery: string) => readItem({ type: 'push', delivery, message: { id: 'm' } }).key
  assert.equal(push('1'), push('2'))
  const message = (delivery: string, text: string) => readItem({ type: 'message', delivery, topic: 't', text }).key
  assert.equal(message('1', 'a'), message('1', 'a'))
  assert.notEqual(message('1', 'a'), message('2', 'a'))
  // A restored server gives its numbers again.
  assert.notEqual(message('1', 'a'), message('1', 'b'))
  assert.equal(readItem({ type: 'message', topic: 't', text: 'live' }).key, undefined)
})

test('a click leads to pages of this site or of the origins allowed, by http or https', () => {
  const allowed = ['https://pay.example']
  const good: [string, string][] = [
    ['/order/7', 'https://shop.example/order/7'],
    ['#/order/7', 'https://shop.example/orders?x=1#/order/7'],
    ['https://shop.example/a', 'https://shop.example/a'],
    ['https://pay.example/b', 'https://pay.example/b'],
  ]
  for (const [click, target] of good) assert.equal(safeTarget(click, HERE, allowed), target)
  const bad = ['javascript:alert(1)', ' JaVaScRiPt:alert(1)', 'java\nscript:alert(1)', 'data:text/html,x', 'blob:https://shop.example/1',
    'vbscript:x', 'file:///etc/passwd', 'https://evil.example/', '//evil.example/', '\\\\evil.example', 'http://shop.example/',
    'https://shop.example@evil.example/', 'https://u:p@shop.example/', 'https://shop.example.evil.example/', 'http://[', '']
  for (const click of bad) assert.equal(safeTarget(click, HERE, allowed), undefined, click)
  assert.equal(safeTarget(undefined, HERE), undefined)
})

test('events are put together wherever the pieces are cut', () => {
  const text = ': hello\n\nretry: 2000\r\n\r\nid: 3-1\nevent: welcome\ndata: {"a":\ndata:1}\n\ndata: x\r\rdata\n\n'
  const whole = new Lines().take(text)
  assert.deepEqual(whole, [{ retryMs: 2000 }, { data: '{"a":\n1}' }, { data: 'x' }, { data: '' }])
  for (let size = 1; size < 7; size++) {
    const lines = new Lines()
    const got = []
    for (let at = 0; at < text.length; at += size) got.push(...lines.take(text.slice(at, at + size)))
    assert.deepEqual(got, whole, `pieces of ${size}`)
  }
})

test('a line without an end is not collected for ever', () => {
  const lines = new Lines()
  assert.throws(() => {
    for (let i = 0; i < 100; i++) lines.take('x'.repeat(1 << 16))
  })
})

test('what is seen is new once, stays open until it is handled, and is bounded', async () => {
  const notes = new MemoryNotes()
  const item = (key: string) => ({ key, delivery: key, push: { id: key } })
  assert.deepEqual(await notes.note([item('a'), item('b'), item('a')]), [true, true, false])
  await notes.handled('a')
  assert.deepEqual((await notes.open()).map((it) => it.key), ['b'])
  assert.deepEqual(await notes.note([item('a')]), [false])
  for (let i = 0; i < SEEN_MAX; i++) await notes.note([item(String(i))])
  assert.deepEqual(await notes.note([item('a')]), [true])
})

test('the status has words in both languages', () => {
  const waiting = { state: 'waiting', retryInMs: 2_100, leader: true } as const
  assert.equal(describe(waiting, 'en-GB'), 'No connection · next attempt in 3 s')
  assert.equal(describe(waiting, 'zh-CN'), '连接已断开 · 3 秒后重试')
  assert.equal(describe({ state: 'online', road: 'sse', leader: true }, 'fr'), 'Connected · event stream')
  assert.equal(describe({ state: 'stopped', reason: 'taken_over', leader: true }, 'zh'), '已停止 · 设备已在别处连接')
})
