// The state machine in virtual time.

import { strict as assert } from 'node:assert'
import { test } from 'node:test'
import type { Road } from '../src/api'
import { Link } from '../src/link'

const ROADS: Road[] = ['websocket', 'sse', 'poll']
const LOST = { reason: 'connection_lost', retry: true }
const UNREACHABLE = { reason: 'unreachable', retry: true }

interface Opened {
  number: number
  road: Road
  token?: string
  at: number
}

/** A link with a clock that the test moves, and a note of all that it did. */
class World {
  now = 1_000
  opened: Opened[] = []
  closed: number[] = []
  pings: number[] = []
  states: string[] = []
  link: Link

  constructor(random: () => number = () => 0.5) {
    this.link = new Link(
      {
        open: (number, road, token) => this.opened.push({ number, road, token, at: this.now }),
        close: (number) => this.closed.push(number),
        ping: (number) => this.pings.push(number),
        status: () => this.states.push(this.link.state),
      },
      random,
      ROADS,
    )
  }

  get last(): Opened {
    return this.opened[this.opened.length - 1]!
  }

  /** Goes to the next deadline. */
  toDeadline(): void {
    const deadline = this.link.deadline
    assert.ok(deadline !== undefined, `no deadline in ${this.link.state}`)
    this.now = Math.max(this.now, deadline)
    this.link.tick(this.now)
  }

  welcome(heartbeatMs = 55_000, token = 'resume'): void {
    this.link.welcomed(this.now, this.last.number, { heartbeatMs, token })
  }

  fail(ending: { reason: string; retry: boolean; retryAfterMs?: number } = UNREACHABLE): void {
    this.link.closed(this.now, this.last.number, ending)
  }

  pass(ms: number): void {
    this.now += ms
  }

  /** Fails until the road is tried. */
  failUntil(road: Road): void {
    while (this.last.road !== road || this.link.state !== 'connecting') {
      if (this.link.state === 'connecting') this.fail()
      else this.toDeadline()
    }
  }
}

function started(random?: () => number): World {
  const world = new World(random)
  world.link.start(world.now)
  return world
}

function online(random?: () => number): World {
  const world = started(random)
  world.welcome()
  return world
}

test('it connects, and is online with the welcome', () => {
  const world = started()
  assert.equal(world.link.state, 'connecting')
  assert.equal(world.last.road, 'websocket')
  world.welcome()
  assert.equal(world.link.state, 'online')
  assert.equal(world.link.current, world.last.number)
})

test('an opening that nobody answers is given up', () => {
  const world = started()
  const first = world.last.number
  world.toDeadline()
  assert.deepEqual(world.closed, [first])
  assert.equal(world.link.state, 'waiting')
  world.toDeadline()
  assert.equal(world.link.state, 'connecting')
})

test('waits double up to two minutes, with full jitter', () => {
  for (const random of [0, 0.5, 0.999]) {
    const world = started(() => random)
    const bounds: number[] = []
    for (let i = 0; i < 12; i++) {
      world.fail()
      bounds.push(world.link.deadline! - world.now)
      world.toDeadline()
    }
    bounds.forEach((wait, i) => assert.equal(wait, random * Math.min(1000 * 2 ** i, 120_000)))
  }
})

test('it waits at least as long as the server says', () => {
  const world = online(() => 0)
  world.fail({ reason: 'shutting_down', retry: true, retryAfterMs: 1500 })
  assert.equal(world.link.deadline, world.now + 1500)
})

test('a connection that held begins the waits anew, one that did not does not', () => {
  const world = started(() => 1)
  for (let i = 0; i < 3; i++) {
    world.fail()
    world.toDeadline()
  }
  world.welcome()
  world.pass(1_000)
  world.fail(LOST)
  assert.equal(world.link.deadline! - world.now, 8_000)
  world.toDeadline()
  world.welcome()
  world.pass(20_000)
  world.fail(LOST)
  assert.equal(world.link.deadline! - world.now, 1_000)
})

test('what will not help is not tried again, until the app asks', () => {
  for (const reason of ['taken_over', 'revoked', 'quota_exceeded']) {
    const world = online()
    world.fail({ reason, retry: false })
    assert.equal(world.link.state, 'stopped')
    assert.equal(world.link.reason, reason)
    assert.equal(world.link.deadline, undefined)
    world.link.networkChanged(world.now, true)
    assert.equal(world.link.state, 'stopped')
    world.link.start(world.now)
    assert.equal(world.link.state, 'connecting')
  }
})

test('it resumes with the token, and signs in in full at once when that is refused', () => {
  const world = online()
  world.fail(LOST)
  world.toDeadline()
  assert.equal(world.last.token, 'resume')
  world.fail({ reason: 'not_authorized', retry: false })
  assert.equal(world.last.token, undefined)
  assert.equal(world.last.at, world.now)
  assert.equal(world.link.state, 'connecting')
})

test('a full sign-in is tried twice: the second token may be a fresh one', () => {
  const world = started()
  const refused = { reason: 'not_authorized', retry: false }
  world.fail(refused)
  assert.equal(world.link.state, 'waiting')
  world.toDeadline()
  world.fail(refused)
  assert.equal(world.link.state, 'stopped')
})

test('it asks after a silent heartbeat, and gives up ten seconds later', () => {
  const world = online()
  world.toDeadline()
  assert.equal(world.now, 56_000)
  assert.equal(world.pings.length, 1)
  assert.equal(world.link.state, 'online')
  world.toDeadline()
  assert.equal(world.now, 66_000)
  assert.equal(world.link.state, 'waiting')
  assert.equal(world.closed.length, 1)
})

test('an answer in time keeps the connection', () => {
  const world = online()
  for (let i = 0; i < 100; i++) {
    world.toDeadline()
    world.pass(9_000)
    world.link.heard(world.now, world.last.number)
  }
  assert.equal(world.link.state, 'online')
  assert.equal(world.pings.length, 100)
})

test('after a long sleep of the machine it asks before it trusts', () => {
  const world = online()
  world.pass(8 * 3_600_000)
  world.link.tick(world.now)
  assert.equal(world.pings.length, 1)
  assert.equal(world.link.deadline, world.now + 10_000)
})

test('a doubt is answered or ends the connection, also on roads that cannot be asked', () => {
  const world = started()
  world.failUntil('sse')
  world.welcome(25_000)
  world.link.doubt(world.now)
  assert.ok(world.link.deadline! <= world.now + 35_000)
  world.pass(35_000)
  world.link.tick(world.now)
  assert.equal(world.link.state, 'waiting')
})

test('where WebSocket is refused it takes the event stream, then the poll, then begins anew', () => {
  const world = started()
  const roads: Road[] = [world.last.road]
  for (let i = 0; i < 6; i++) {
    world.fail()
    world.toDeadline()
    roads.push(world.last.road)
  }
  assert.deepEqual(roads, ['websocket', 'websocket', 'sse', 'sse', 'poll', 'poll', 'websocket'])
})

test('a road that has worked is given more time: the server is away, not the road', () => {
  const world = online()
  world.fail(LOST)
  for (let i = 0; i < 3; i++) {
    world.toDeadline()
    assert.equal(world.last.road, 'websocket')
    world.fail()
  }
  world.toDeadline()
  world.fail()
  world.toDeadline()
  assert.equal(world.last.road, 'sse')
})

test('from a lesser road it goes back up, and lets go of the lesser one only then', () => {
  const world = started()
  world.failUntil('sse')
  world.welcome(25_000)
  const stream = world.last.number
  keepAlive(world, stream, 'websocket')
  assert.equal(world.last.road, 'websocket')
  assert.equal(world.link.road, 'sse')
  assert.deepEqual(world.closed, [])
  world.welcome()
  assert.equal(world.link.road, 'websocket')
  assert.deepEqual(world.closed, [stream])
})

/** Lets time pass on a lively road until the other one is tried beside it. */
function keepAlive(world: World, number: number, until: Road): void {
  for (let i = 0; i < 1_000 && world.last.road !== until; i++) {
    world.pass(5_000)
    world.link.heard(world.now, number)
    world.link.tick(world.now)
  }
}

test('a better road that fails changes nothing but the next try', () => {
  const world = started()
  world.failUntil('poll')
  world.welcome(25_000)
  const poll = world.last.number
  keepAlive(world, poll, 'websocket')
  const first = world.now
  world.fail()
  assert.equal(world.link.state, 'online')
  assert.equal(world.link.current, poll)
  const tries = world.opened.length
  while (world.opened.length === tries) {
    world.pass(5_000)
    world.link.heard(world.now, poll)
    world.link.tick(world.now)
  }
  assert.ok(world.now - first > 30_000)
})

test('the server ends the lesser road before its welcome on the better one is heard: that is no take-over', () => {
  const world = started()
  world.failUntil('sse')
  world.welcome(25_000)
  const stream = world.last.number
  keepAlive(world, stream, 'websocket')
  world.link.closed(world.now, stream, { reason: 'taken_over', retry: false })
  assert.equal(world.link.state, 'connecting')
  world.welcome()
  assert.equal(world.link.state, 'online')
  assert.equal(world.link.road, 'websocket')
})

test('without a network it waits for one, and does not quite believe that there is none', () => {
  const world = online()
  world.link.networkChanged(world.now, false)
  assert.equal(world.link.state, 'online')
  world.toDeadline()
  assert.equal(world.link.state, 'offline')
  world.toDeadline()
  assert.equal(world.link.state, 'connecting')
  world.fail()
  assert.equal(world.link.state, 'offline')
  const before = world.now
  world.link.networkChanged(world.now, true)
  assert.equal(world.link.state, 'connecting')
  assert.equal(world.last.at, before)
})

test('a frozen page holds nothing, and connects when it wakes', () => {
  const world = online()
  world.link.freeze()
  assert.equal(world.link.state, 'frozen')
  assert.deepEqual(world.closed, [world.last.number])
  world.pass(3_600_000)
  world.link.start(world.now)
  assert.equal(world.link.state, 'connecting')
})

test('what comes late from an old road changes nothing', () => {
  const world = online()
  const old = world.last.number
  world.fail(LOST)
  world.toDeadline()
  world.welcome()
  world.link.closed(world.now, old, { reason: 'taken_over', retry: false })
  world.link.welcomed(world.now, old, { heartbeatMs: 1 })
  assert.equal(world.link.state, 'online')
  assert.notEqual(world.link.current, old)
})

/** A small generator with a seed, so that a failure can be repeated. */
function seeded(seed: number): () => number {
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    return seed / 2 ** 32
  }
}

test('in 200 random lives no state is without a deadline or an event that ends it', () => {
  const endings = [LOST, UNREACHABLE, { reason: 'not_authorized', retry: false }, { reason: 'taken_over', retry: false },
    { reason: 'too_often', retry: true, retryAfterMs: 5_000 }]
  for (let seed = 0; seed < 200; seed++) {
    const random = seeded(seed)
    const world = new World(random)
    const link = world.link
    const anyNumber = () => world.opened[Math.floor(random() * world.opened.length)]?.number ?? 1
    const events = [
      () => link.start(world.now),
      () => random() < 0.1 && link.stop(),
      () => random() < 0.2 && link.freeze(),
      () => link.networkChanged(world.now, random() < 0.7),
      () => link.doubt(world.now),
      () => link.welcomed(world.now, anyNumber(), { heartbeatMs: 1_000 + random() * 100_000, token: 't' }),
      () => link.heard(world.now, anyNumber()),
      () => link.closed(world.now, anyNumber(), endings[Math.floor(random() * endings.length)]!),
      () => world.pass(random() * 100_000),
      () => link.tick(world.now),
    ]
    for (let step = 0; step < 300; step++) {
      events[Math.floor(random() * events.length)]!()
      const needsEvent = ['idle', 'stopped', 'frozen'].includes(link.state)
      assert.equal(link.deadline === undefined, needsEvent, `seed ${seed}, step ${step}, ${link.state}`)
      if (link.deadline !== undefined) assert.ok(Number.isFinite(link.deadline) && link.deadline - world.now < 4_000_000)
      const open = world.opened.filter(({ number }) => !world.closed.includes(number))
      if (link.state === 'online') assert.ok(open.some(({ number }) => number === link.current), `seed ${seed}: no road`)
    }
    survives(world)
  }
})

/** Whatever happened: a server that answers is reached in the end. */
function survives(world: World): void {
  const { link } = world
  link.start(world.now)
  link.networkChanged(world.now, true)
  for (let i = 0; i < 50 && link.state !== 'online'; i++) {
    if (link.state === 'connecting') world.welcome()
    else world.toDeadline()
  }
  assert.equal(link.state, 'online')
}
