// The one connection of all tabs, as the leading tab runs it: the state machine of link.ts with real roads, a real clock
// and the notes. What comes in is noted, then acknowledged, then handed on.

import type { Road, Status } from './api'
import { PostriderError } from './error'
import { readItem, text, type Frame, type Item } from './frames'
import { Link } from './link'
import type { Notes, Receipt } from './notes'
import { openRoad, type Driver, type Place } from './roads'

export interface ConnectionEvents {
  status(): void
  item(item: Item): void
}

interface Call {
  frame: Frame
  resolve(answer: Frame): void
  reject(why: PostriderError): void
  timeout: ReturnType<typeof setTimeout>
  /** The road that it went out on. */
  sentOn?: number
}

const CALL_MS = 30_000
const CALLS_MAX = 1_000
const HEARTBEAT_SECS = 55
/** Refusals of a receipt that may not be the last word. */
const LATER = ['unavailable', 'too_often', 'quota_exceeded', 'timeout', 'connection_lost', 'too_many']
/** Receipts that are told at a time: a server takes only so many requests that it has not answered. */
const TOLD_AT_ONCE = 8

export class Connection {
  private readonly link: Link
  private readonly drivers = new Map<number, Driver>()
  private readonly calls = new Map<number, Call>()
  private refs = 0
  private timer: ReturnType<typeof setTimeout> | undefined
  private arrived: Item[] = []
  private noting = false
  /** Deliveries that are acknowledged when their message was handled, because it could not be noted. */
  private readonly unsafe = new Map<string, string>()
  private telling = false
  private moreToTell = false

  constructor(
    private readonly place: Place,
    private readonly notes: Promise<Notes>,
    private readonly events: ConnectionEvents,
    roads: Road[],
  ) {
    const effects = {
      open: (number: number, road: Road, token?: string) => this.open(number, road, token),
      close: (number: number) => this.close(number),
      ping: (number: number) => this.drivers.get(number)?.send({ type: 'ping' }),
      status: () => events.status(),
    }
    this.link = new Link(effects, Math.random, roads)
  }

  status(): Status {
    const { state, road, reason, deadline } = this.link
    const retryInMs = state === 'waiting' && deadline !== undefined ? Math.max(0, Math.round(deadline - now())) : undefined
    return { state, road, reason, retryInMs, leader: true }
  }

  start(): void {
    this.turn((at) => this.link.start(at))
  }

  stop(): void {
    this.turn(() => this.link.stop())
  }

  freeze(): void {
    this.turn(() => this.link.freeze())
  }

  networkChanged(there: boolean): void {
    this.turn((at) => this.link.networkChanged(at, there))
  }

  doubt(): void {
    this.turn((at) => this.link.doubt(at))
  }

  /** Sends a frame that is answered by `ok` or `error`, now or once there is a connection. */
  call(frame: Frame): Promise<Frame> {
    if (this.calls.size >= CALLS_MAX) return Promise.reject(new PostriderError('too_many'))
    const ref = ++this.refs
    return new Promise((resolve, reject) => {
      const timeout = setTimeout(() => this.settle(ref, { type: 'error', code: 'timeout' }), CALL_MS)
      const call: Call = { frame: { ...frame, ref }, resolve, reject, timeout }
      this.calls.set(ref, call)
      this.sendCall(call)
    })
  }

  /** A listener has ended for the item of this key. */
  handled(key: string): void {
    const delivery = this.unsafe.get(key)
    if (delivery === undefined) return
    this.unsafe.delete(key)
    this.acknowledge([delivery])
  }

  /** Tells the server the receipts that it has not confirmed. */
  async tellReceipts(): Promise<void> {
    this.moreToTell = true
    if (this.telling) return
    this.telling = true
    try {
      const notes = await this.notes
      while (this.moreToTell && this.link.current !== undefined) {
        this.moreToTell = false
        const receipts = await notes.receipts()
        while (receipts.length > 0 && this.link.current !== undefined) {
          await Promise.all(receipts.splice(0, TOLD_AT_ONCE).map((receipt) => this.tell(notes, receipt)))
        }
      }
    } finally {
      this.telling = false
    }
  }

  private async tell(notes: Notes, receipt: Receipt): Promise<void> {
    try {
      await this.call({ type: 'receipt', id: receipt.id, step: receipt.step })
    } catch (why) {
      if (LATER.includes((why as PostriderError).code)) {
        // With the next connection; and where this one goes on, after a while.
        setTimeout(() => void this.tellReceipts(), CALL_MS)
        return
      }
    }
    await notes.dropReceipt(receipt)
  }

  /** Every call of the link goes through here, so that its deadline is always watched. */
  private turn(work: (at: number) => void): void {
    work(now())
    clearTimeout(this.timer)
    const deadline = this.link.deadline
    // Timers can fire a little early.
    if (deadline !== undefined) this.timer = setTimeout(() => this.turn((at) => this.link.tick(at)), deadline - now() + 1)
  }

  private open(number: number, road: Road, token?: string): void {
    const place: Place = token === undefined ? this.place : { ...this.place, hello: async () => ({ type: 'hello', token }) }
    const driver = openRoad(road, place, {
      frame: (frame) => this.take(number, frame),
      heard: () => this.turn((at) => this.link.heard(at, number)),
      ended: (ending) => {
        this.drivers.delete(number)
        this.lose(number)
        this.turn((at) => this.link.closed(at, number, ending))
      },
    })
    this.drivers.set(number, driver)
  }

  private close(number: number): void {
    this.drivers.get(number)?.close()
    this.drivers.delete(number)
    this.lose(number)
  }

  private take(number: number, frame: Frame): void {
    if (frame.type === 'welcome') return this.welcome(number, frame)
    this.turn((at) => this.link.heard(at, number))
    if (frame.type === 'push' || frame.type === 'message') {
      this.arrived.push(readItem(frame))
      void this.noteArrived()
    } else if ((frame.type === 'ok' || frame.type === 'error') && typeof frame.ref === 'number') {
      this.settle(frame.ref, frame)
    }
  }

  private welcome(number: number, frame: Frame): void {
    const secs = typeof frame.heartbeat_secs === 'number' ? Math.max(frame.heartbeat_secs, 1) : HEARTBEAT_SECS
    this.turn((at) => this.link.welcomed(at, number, { heartbeatMs: secs * 1000, token: text(frame.resume_token) }))
    if (this.link.current !== number) return
    if (frame.resumed === false) void this.subscribeAgain()
    for (const call of this.calls.values()) this.sendCall(call)
    void this.tellReceipts()
  }

  /** The server has forgotten the session: what this browser had subscribed to is asked for anew. */
  private async subscribeAgain(): Promise<void> {
    const topics = Object.entries((await (await this.notes).get('topics')) ?? {})
    for (const qos of [0, 1]) {
      const these = topics.filter(([, of]) => of === qos).map(([topic]) => topic)
      if (these.length > 0) this.call({ type: 'subscribe', topics: these, qos }).catch(() => {})
    }
  }

  private async noteArrived(): Promise<void> {
    if (this.noting) return
    this.noting = true
    const notes = await this.notes
    while (this.arrived.length > 0) {
      const items = this.arrived.splice(0)
      let safe = notes.durable
      const fresh = await notes.note(items, Date.now()).catch(() => {
        safe = false
        return items.map((item) => item.key === undefined || !this.unsafe.has(item.key))
      })
      const acks: string[] = []
      items.forEach((item, i) => {
        if (item.delivery === undefined || item.key === undefined) return
        if (!safe && (fresh[i] || this.unsafe.has(item.key))) this.unsafe.set(item.key, item.delivery)
        else acks.push(item.delivery)
      })
      this.acknowledge(acks)
      items.forEach((item, i) => fresh[i] && this.events.item(item))
    }
    this.noting = false
  }

  private acknowledge(deliveries: string[]): void {
    if (deliveries.length > 0 && this.link.current !== undefined) {
      this.drivers.get(this.link.current)?.send({ type: 'ack', deliveries })
    }
  }

  private sendCall(call: Call): void {
    const current = this.link.current
    if (current === undefined || call.sentOn !== undefined) return
    call.sentOn = current
    this.drivers.get(current)?.send(call.frame)
  }

  private settle(ref: number, answer: Frame): void {
    const call = this.calls.get(ref)
    if (!call) return
    this.calls.delete(ref)
    clearTimeout(call.timeout)
    if (answer.type === 'ok') call.resolve(answer)
    else call.reject(new PostriderError(text(answer.code) ?? 'refused', text(answer.message)))
  }

  /** What went out on a road that is gone may or may not have been done. */
  private lose(number: number): void {
    for (const [ref, call] of this.calls) {
      if (call.sentOn === number) this.settle(ref, { type: 'error', code: 'connection_lost' })
    }
  }
}

/** Monotonic: the wall clock may jump, and a timer must not wait for it. */
function now(): number {
  return performance.now()
}
