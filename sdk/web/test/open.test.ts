// `open` against a server and a clock of the test's own.

import { strict as assert } from 'node:assert'
import { test } from 'node:test'
import type { Client, Credentials, Events, Options, Push, Status } from '../src/api'
import { PostriderError } from '../src/error'
import { OpenedClient } from '../src/open'

type Listener = (it: never) => unknown

/** What `create` would have made: the test says what the server does to it. */
class Device {
  status: Status = { state: 'idle', leader: false }
  connected = 0
  ended = false
  told: string[] = []
  private readonly listeners = new Map<keyof Events, Set<Listener>>()

  constructor(readonly device: string) {}

  on(event: keyof Events, listener: Listener): () => void {
    const set = this.listeners.get(event) ?? new Set()
    this.listeners.set(event, set.add(listener))
    return () => void set.delete(listener)
  }

  emit<E extends keyof Events>(event: E, it: Events[E]): void {
    for (const listener of this.listeners.get(event) ?? []) listener(it as never)
  }

  become(status: Omit<Status, 'leader'>): void {
    this.status = { ...status, leader: true }
    this.emit('status', this.status)
  }

  connect(): void {
    this.connected += 1
  }

  disconnect(): void {
    this.ended = true
  }

  async receipt(push: Push | string, step: string): Promise<void> {
    this.told.push(`${typeof push === 'string' ? push : push.id} ${step}`)
  }
}

/** A page with an opened client, and all that it asked for. */
class World {
  registered = 0
  refused: (string | undefined)[] = []
  refuse: PostriderError | undefined
  devices: Device[] = []
  timers: { ms: number; work: () => void }[] = []
  pushes: string[] = []
  devicesTold: string[] = []
  states: string[] = []
  client: OpenedClient

  constructor() {
    this.client = new OpenedClient({ key: 'prk_1' }, {
      register: async (_, refused): Promise<Credentials> => {
        this.refused.push(refused)
        if (this.refuse) throw this.refuse
        this.registered += 1
        return { device: `d${this.registered}`, secret: 's' }
      },
      make: (options: Options) => {
        const device = new Device(options.device)
        this.devices.push(device)
        return device as unknown as Client
      },
      random: () => 1,
      after: (ms, work) => void this.timers.push({ ms, work }),
    })
    this.client.onPush((push) => this.pushes.push(push.id ?? ''))
    this.client.on('registered', ({ device }) => this.devicesTold.push(device))
    this.client.on('status', ({ state }) => this.states.push(state))
  }

  get last(): Device {
    return this.devices[this.devices.length - 1]!
  }

  async connect(): Promise<void> {
    this.client.connect()
    await settled()
  }
}

async function settled(): Promise<void> {
  await new Promise((done) => setImmediate(done))
}

test('a device that was deleted is registered again, and the listeners go on', async () => {
  for (const reason of ['not_authorized', 'revoked']) {
    const world = new World()
    await world.connect()
    world.last.become({ state: 'online' })
    world.last.become({ state: 'stopped', reason })
    await settled()
    assert.deepEqual(world.refused, [undefined, 'd1'])
    assert.deepEqual(world.devicesTold, ['d1', 'd2'])
    assert.equal(world.devices[0]!.ended, true)
    assert.equal(world.client.device, 'd2')
    assert.equal(world.last.connected, 1)
    world.devices[0]!.emit('push', { id: 'of the old device' })
    world.last.emit('push', { id: 'm' })
    assert.deepEqual(world.pushes, ['m'])
    assert.deepEqual(world.states, ['connecting', 'online', 'connecting'])
  }
})

test('what was kept and is refused at the first connect is registered again', async () => {
  const world = new World()
  await world.connect()
  world.last.become({ state: 'stopped', reason: 'not_authorized' })
  await settled()
  assert.equal(world.client.device, 'd2')
})

test('a new device that is refused at once is not replaced for ever', async () => {
  const world = new World()
  await world.connect()
  for (let i = 0; i < 5; i++) {
    world.last.become({ state: 'stopped', reason: 'not_authorized' })
    await settled()
  }
  assert.equal(world.registered, 2)
  assert.equal(world.client.status.state, 'stopped')
  // Once it was let in, a later refusal is a new one.
  world.last.become({ state: 'online' })
  world.last.become({ state: 'stopped', reason: 'revoked' })
  await settled()
  assert.equal(world.registered, 3)
})

test('another reason to stop is no reason to register again', async () => {
  const world = new World()
  await world.connect()
  world.last.become({ state: 'stopped', reason: 'taken_over' })
  await settled()
  assert.equal(world.registered, 1)
  assert.equal(world.client.status.reason, 'taken_over')
})

test('a server that cannot be reached is asked again, later and later, and not after disconnect', async () => {
  const world = new World()
  world.refuse = new PostriderError('unreachable')
  await world.connect()
  for (let i = 0; i < 9; i++) {
    world.timers[i]!.work()
    await settled()
  }
  assert.deepEqual(world.timers.map(({ ms }) => ms / 1000), [1, 2, 4, 8, 16, 32, 64, 120, 120, 120])
  assert.equal(world.client.status.state, 'waiting')
  world.client.disconnect()
  world.timers[9]!.work()
  await settled()
  assert.equal(world.refused.length, 10)
  assert.equal(world.client.status.state, 'idle')
  world.refuse = undefined
  await world.connect()
  assert.equal(world.client.device, 'd1')
})

test('a key that is refused stops, says why, and is tried again when the page asks', async () => {
  const world = new World()
  const errors: string[] = []
  world.client.on('error', ({ code }) => errors.push(code))
  world.refuse = new PostriderError('unauthorized')
  await world.connect()
  assert.deepEqual(errors, ['unauthorized'])
  assert.equal(world.client.status.state, 'stopped')
  assert.equal(world.timers.length, 0)
  world.refuse = undefined
  await world.connect()
  assert.equal(world.last.connected, 1)
})

test('what is told before the device is registered is told then', async () => {
  const world = new World()
  await assert.rejects(world.client.displayed('m'), { code: 'not_connected' })
  world.client.connect()
  const told = world.client.displayed({ id: 'm' })
  await told
  await world.client.displayed({ bytes: new Uint8Array() })
  assert.deepEqual(world.last.told, ['m displayed'])
})
