// The three roads to the server. Each opens itself, brings frames, takes frames, and says once that it has ended.

import type { Road } from './api'
import { endingOfBye, endingOfCode, endingOfStatus, type Ending } from './ending'
import { isObject, parseFrame, type Frame } from './frames'
import { eventsOf } from './sse'

export interface Driver {
  send(frame: Frame): void
  close(): void
}

export interface Hearer {
  frame(frame: Frame): void
  /** A sign of life that is no frame. */
  heard(): void
  ended(ending: Ending): void
}

export interface Place {
  /** Without a slash at the end. */
  server: string
  /** The `hello` of a WebSocket. */
  hello(): Promise<Frame>
  /** The header `Authorization` of a request. */
  authorization(): Promise<string>
}

const POLL_SECS = 25
/** The longest pause between two polls that the server is believed. */
const PAUSE_SECS_MAX = 60
/** An empty answer that was to wait and comes this soon did not wait. */
const AT_ONCE_MS = 1_000
const UNREACHABLE: Ending = { reason: 'unreachable', retry: true }

export function openRoad(road: Road, place: Place, hearer: Hearer): Driver {
  if (road === 'websocket') return new WebSocketRoad(place, hearer)
  return road === 'sse' ? new StreamRoad(place, hearer) : new PollRoad(place, hearer)
}

class WebSocketRoad implements Driver {
  private socket: WebSocket | undefined
  private bye: Ending | undefined
  private refusal: Ending | undefined
  private done = false

  constructor(place: Place, private readonly hearer: Hearer) {
    // The sign-in first: the server waits only some seconds for it once the socket is open.
    place.hello().then((hello) => this.begin(place.server, hello), () => this.end(UNREACHABLE))
  }

  private begin(server: string, hello: Frame): void {
    if (this.done) return
    try {
      this.socket = new WebSocket(server.replace(/^http/, 'ws') + '/ws')
    } catch {
      return this.end(UNREACHABLE)
    }
    const socket = this.socket
    socket.onopen = () => this.send(hello)
    socket.onmessage = (event) => this.take(event.data)
    socket.onclose = (event) => this.end(this.bye ?? this.refusal ?? endingOfCode(event.code))
  }

  private take(data: unknown): void {
    const frame = typeof data === 'string' ? parseFrame(data) : undefined
    if (this.done || !frame) return
    if (frame.type === 'bye') this.bye = endingOfBye(frame)
    else if (frame.type === 'error' && frame.code === 'bad_credentials') this.refusal = { reason: 'not_authorized', retry: false }
    else this.hearer.frame(frame)
  }

  send(frame: Frame): void {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(frame))
  }

  close(): void {
    this.done = true
    this.socket?.close(1000)
  }

  private end(ending: Ending): void {
    if (this.done) return
    this.done = true
    this.hearer.ended(ending)
  }
}

/** What both HTTP roads share: requests that end with the road, and frames that become requests. */
abstract class HttpRoad implements Driver {
  protected readonly abort = new AbortController()
  private readonly acks: string[] = []
  private acking = false
  /** What was brought and is not acknowledged, and whom to tell when that is nothing any more. */
  protected readonly owed = new Set<string>()
  protected allAcked: (() => void) | undefined

  constructor(protected readonly place: Place, protected readonly hearer: Hearer, private readonly acksPath: string) {
    this.run().then(
      () => this.end({ reason: 'connection_lost', retry: true }),
      (why) => this.end(isEnding(why) ? why : UNREACHABLE),
    )
  }

  protected abstract run(): Promise<void>

  protected async request(path: string, body?: unknown, more: RequestInit = {}): Promise<Response> {
    const headers: Record<string, string> = { Authorization: await this.place.authorization() }
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    const answer = await fetch(this.place.server + path, {
      method: body === undefined ? 'GET' : 'POST',
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      cache: 'no-store',
      credentials: 'omit',
      signal: this.abort.signal,
      ...more,
    })
    this.hearer.heard()
    return answer
  }

  protected async need(path: string, body?: unknown): Promise<Response> {
    const answer = await this.request(path, body)
    if (!answer.ok) throw endingOfStatus(answer.status, answer.headers.get('Retry-After'))
    return answer
  }

  send(frame: Frame): void {
    if (frame.type === 'ack') {
      this.acks.push(...(frame.deliveries as string[]))
      void this.acknowledge()
    } else if (frame.type === 'receipt') {
      void this.tell(frame)
    } else if (frame.ref !== undefined) {
      this.hearer.frame({ type: 'error', ref: frame.ref, code: 'needs_websocket' })
    }
  }

  /** One request at a time. An acknowledgement that fails ends the road: with the next one its message comes again. */
  private async acknowledge(): Promise<void> {
    if (this.acking) return
    this.acking = true
    try {
      while (this.acks.length > 0) {
        const deliveries = this.acks.splice(0, 100)
        await this.need(this.acksPath, { deliveries })
        for (const delivery of deliveries) this.owed.delete(delivery)
      }
      if (this.owed.size === 0) this.allAcked?.()
    } catch (why) {
      this.end(isEnding(why) ? why : UNREACHABLE)
    } finally {
      this.acking = false
    }
  }

  private async tell(receipt: Frame): Promise<void> {
    const path = `/v1/messages/${encodeURIComponent(String(receipt.id))}/receipts`
    try {
      // It has to outlive the page that a click leaves.
      const answer = await this.request(path, { step: receipt.step }, { keepalive: true, signal: null })
      const unsure = answer.status === 429 || answer.status >= 500
      const code = unsure ? 'unavailable' : 'refused'
      this.hearer.frame(answer.ok ? { type: 'ok', ref: receipt.ref } : { type: 'error', ref: receipt.ref, code })
    } catch {
      this.hearer.frame({ type: 'error', ref: receipt.ref, code: 'unavailable' })
    }
  }

  close(): void {
    this.abort.abort()
  }

  protected end(ending: Ending): void {
    if (this.abort.signal.aborted) return
    this.abort.abort()
    this.hearer.ended(ending)
  }
}

class StreamRoad extends HttpRoad {
  constructor(place: Place, hearer: Hearer) {
    super(place, hearer, '/v1/stream/acks')
  }

  protected async run(): Promise<void> {
    const answer = await this.need('/v1/stream')
    let retryAfterMs = 0
    let bye: Ending | undefined
    for await (const event of eventsOf(answer.body!)) {
      this.hearer.heard()
      if (event.retryMs !== undefined) retryAfterMs = Math.min(event.retryMs, 60_000)
      const frame = event.data === undefined ? undefined : parseFrame(event.data)
      if (frame?.type === 'bye') bye = endingOfBye(frame)
      else if (frame) this.hearer.frame(frame)
    }
    throw bye ?? { reason: 'connection_lost', retry: true, retryAfterMs }
  }
}

class PollRoad extends HttpRoad {
  constructor(place: Place, hearer: Hearer) {
    super(place, hearer, '/v1/inbox/acks')
  }

  protected async run(): Promise<void> {
    for (let wait = 0; !this.abort.signal.aborted; wait = POLL_SECS) {
      const asked = performance.now()
      const answer: unknown = await (await this.need(`/v1/inbox?wait=${wait}&limit=32`)).json()
      // The first answer is the welcome: it shows that the road leads somewhere.
      if (wait === 0) this.hearer.frame({ type: 'welcome', heartbeat_secs: PAUSE_SECS_MAX })
      const frames = isObject(answer) && Array.isArray(answer.messages) ? answer.messages.filter(isFrame) : []
      // What is not acknowledged would come again with the next answer.
      for (const { delivery } of frames) if (typeof delivery === 'string') this.owed.add(delivery)
      const acked = new Promise<void>((done) => (this.allAcked = done))
      for (const frame of frames) this.hearer.frame(frame)
      if (this.owed.size > 0) await acked
      // Something between here and the server may not let a request wait: then this is a plain pull.
      if (wait > 0 && frames.length === 0 && performance.now() - asked < AT_ONCE_MS) await pause(answer)
    }
  }
}

async function pause(answer: unknown): Promise<void> {
  const secs = isObject(answer) && typeof answer.poll_after_secs === 'number' ? answer.poll_after_secs : 0
  const ms = 1000 * Math.min(Math.max(secs, 1), PAUSE_SECS_MAX)
  await new Promise((done) => setTimeout(done, ms))
}

function isFrame(value: unknown): value is Frame {
  return isObject(value) && typeof value.type === 'string'
}

function isEnding(why: unknown): why is Ending {
  return isObject(why) && typeof why.reason === 'string' && typeof why.retry === 'boolean'
}
