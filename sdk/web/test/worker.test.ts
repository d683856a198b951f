// The service worker against a world of the test's own. Without IndexedDB its notes are in memory and not looked at here.

import { strict as assert } from 'node:assert'
import { test } from 'node:test'
import type { Push } from '../src/api'
import { serve, type PageClient, type Told, type World } from '../src/worker'

const PUSH: Push = { id: 'm', notification: { click: '/order/7', actions: [{ id: 'pay', title: 'Pay', click: 'https://pay.example/7' }] } }

class Page implements PageClient {
  focused = false
  told: Told[] = []

  constructor(readonly visibilityState: string, private readonly scope: string) {}

  async focus(): Promise<void> {
    this.focused = true
  }

  postMessage(message: unknown, transfer: MessagePort[]): void {
    const told = message as Told
    this.told.push(told)
    if (told.postrider.scope === this.scope) transfer[0]!.postMessage(true)
    else transfer[0]!.close()
  }
}

async function click(pages: Page[], action: string, push: Push = PUSH): Promise<string[]> {
  const opened: string[] = []
  const listeners = new Map<string, (event: never) => void>()
  const world: World = {
    location: { href: 'https://shop.example/worker.js' },
    clients: { matchAll: async () => pages, openWindow: async (url) => opened.push(url) },
    addEventListener: (type, listener) => listeners.set(type, listener as never),
  }
  serve(world)
  const data = { postrider: { push, scope: 'ours', targets: ['https://pay.example'] } }
  const work: Promise<unknown>[] = []
  const event = { notification: { data, close() {} }, action, waitUntil: (it: Promise<unknown>) => work.push(it) }
  listeners.get('notificationclick')!(event as never)
  await Promise.all(work)
  return opened
}

test('the page that showed it is told and brought to the front', async () => {
  const [hidden, visible] = [new Page('hidden', 'ours'), new Page('visible', 'ours')]
  assert.deepEqual(await click([hidden, visible], 'pay'), [])
  assert.equal(visible.told[0]?.action, 'pay')
  assert.deepEqual([visible.focused, hidden.focused, hidden.told.length], [true, false, 0])
})

test('without such a page the target is opened', async () => {
  const foreign = new Page('visible', 'another')
  assert.deepEqual(await click([foreign], ''), ['https://shop.example/order/7'])
  assert.equal(foreign.focused, false)
  assert.deepEqual(await click([], 'pay'), ['https://pay.example/7'])
})

test('a target that is not safe opens the site, and nothing else', async () => {
  for (const bad of ['javascript:alert(1)', 'https://evil.example/', 'data:text/html,x']) {
    assert.deepEqual(await click([], '', { id: 'm', notification: { click: bad } }), ['https://shop.example/'])
  }
})
