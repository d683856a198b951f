// The connection as a state machine: which road to take, when to try again, when to doubt that the peer is there.
//
// It has no socket, clock, timer or randomness: each call brings the time (monotonic, in milliseconds), and what is to be
// done goes to `Effects`. After each call, `deadline` is when `tick` wants to be called. Every state has a deadline or an
// event that ends it; that no state is without both is what keeps the client from being silently deaf.
//
//   idle ──start──► connecting ──welcome──► up ──closed──► waiting ──► connecting …
//                       │ refused for good                   │ no network: offline, until `online` or a minute
//                       ▼                                    ▼
//                    stopped ──start──►                   frozen, from any of these, until `start`

import type { Road, State } from './api'
import type { Ending } from './ending'

export interface Effects {
  /** Opens a road; whatever comes from it carries the number. `token`: a resume token to sign in with. */
  open(number: number, road: Road, token?: string): void
  close(number: number): void
  ping(number: number): void
  status(): void
}

export interface Welcome {
  heartbeatMs: number
  token?: string
}

const OPEN_MS = 15_000
const PONG_MS = 10_000
const BACKOFF_FIRST_MS = 1_000
const BACKOFF_MAX_MS = 120_000
/** A connection that lasted this long held: the next wait is a short one. */
const HELD_MS = 10_000
/** The browser may be wrong about having no network. */
const OFFLINE_CHECK_MS = 60_000
const BETTER_FIRST_MS = 30_000
const BETTER_MAX_MS = 600_000
/** How often the best road may fail before the next one is tried: more often where it has worked before. */
const PATIENCE = 2
const PATIENCE_PROVEN = 4

interface Attempt {
  number: number
  road: Road
  until: number
  withToken: boolean
}

interface Live {
  number: number
  road: Road
  since: number
  heard: number
  /** When the peer has to be asked, or, once `asked`, given up. */
  doubtAt: number
  asked: boolean
  heartbeatMs: number
}

type Phase =
  | { is: 'idle' | 'frozen' }
  | { is: 'stopped' }
  | { is: 'waiting' | 'offline'; until: number }
  | { is: 'connecting'; attempt: Attempt }
  /** `better`: a try of a better road beside the one in use. */
  | { is: 'up'; live: Live; better?: Attempt; betterAt: number }

export class Link {
  reason: string | undefined
  private phase: Phase = { is: 'idle' }
  private numbers = 0
  private failures = 0
  private roadAt = 0
  private roadFailures = 0
  private proven = new Set<Road>()
  private betterMs = BETTER_FIRST_MS
  private network = true
  private token: string | undefined
  private freshSignInRefused = false

  constructor(
    private readonly effects: Effects,
    private readonly random: () => number,
    private readonly roads: Road[],
  ) {}

  get state(): State {
    return this.phase.is === 'up' ? 'online' : this.phase.is
  }

  get road(): Road | undefined {
    if (this.phase.is === 'up') return this.phase.live.road
    return this.phase.is === 'connecting' ? this.phase.attempt.road : undefined
  }

  /** The number of the road in use. */
  get current(): number | undefined {
    return this.phase.is === 'up' ? this.phase.live.number : undefined
  }

  /** When `tick` is to be called; none where only an event can help. */
  get deadline(): number | undefined {
    const phase = this.phase
    switch (phase.is) {
      case 'waiting':
      case 'offline':
        return phase.until
      case 'connecting':
        return phase.attempt.until
      case 'up':
        return Math.min(phase.live.doubtAt, phase.better ? phase.better.until : phase.betterAt)
    }
    return undefined
  }

  start(now: number): void {
    if (this.phase.is !== 'idle' && this.phase.is !== 'stopped' && this.phase.is !== 'frozen') return
    this.failures = this.roadFailures = this.roadAt = 0
    this.freshSignInRefused = false
    this.connect(now)
  }

  stop(): void {
    this.drop()
    this.reason = undefined
    this.enter({ is: 'idle' })
  }

  /** The browser will not run this page for a while. */
  freeze(): void {
    if (this.phase.is === 'idle' || this.phase.is === 'stopped') return
    this.drop()
    this.enter({ is: 'frozen' })
  }

  /** What the browser believes about the network. It may be wrong, so it never ends anything by itself. */
  networkChanged(now: number, there: boolean): void {
    this.network = there
    if (this.phase.is === 'waiting' || this.phase.is === 'offline') {
      if (there) this.connect(now)
      else this.enter({ is: 'offline', until: now + OFFLINE_CHECK_MS })
    } else this.doubt(now)
  }

  /** Something suggests that the peer may be gone: ask at once instead of at the next heartbeat. */
  doubt(now: number): void {
    if (this.phase.is === 'up' && !this.phase.live.asked) this.ask(this.phase.live, now)
  }

  welcomed(now: number, number: number, welcome: Welcome): void {
    const attempt = this.attemptOf(number)
    if (!attempt) return
    if (this.phase.is === 'up') this.effects.close(this.phase.live.number)
    this.proven.add(attempt.road)
    this.token = welcome.token
    this.roadFailures = 0
    this.roadAt = this.roads.indexOf(attempt.road)
    this.freshSignInRefused = false
    this.reason = undefined
    const live: Live = {
      number,
      road: attempt.road,
      since: now,
      heard: now,
      doubtAt: 0,
      asked: false,
      heartbeatMs: welcome.heartbeatMs,
    }
    this.rest(live)
    if (this.roadAt === 0) this.betterMs = BETTER_FIRST_MS
    this.enter({ is: 'up', live, betterAt: this.roadAt === 0 ? Infinity : now + this.spread(this.betterMs) })
  }

  /** Anything came from the peer. */
  heard(now: number, number: number): void {
    if (this.phase.is !== 'up' || this.phase.live.number !== number) return
    this.phase.live.heard = now
    this.rest(this.phase.live)
  }

  closed(now: number, number: number, ending: Ending): void {
    const phase = this.phase
    if (phase.is === 'up' && phase.better?.number === number) return this.betterFailed(phase, now)
    if (phase.is === 'up' && phase.live.number === number) {
      if (now - phase.live.since >= HELD_MS) this.failures = 0
      // The server ends the old road as soon as it accepts the better one, which may be heard of first.
      if (phase.better) this.enter({ is: 'connecting', attempt: phase.better })
      else this.again(now, ending)
    } else if (phase.is === 'connecting' && phase.attempt.number === number) {
      this.refused(now, phase.attempt, ending)
    }
  }

  tick(now: number): void {
    const phase = this.phase
    const deadline = this.deadline
    if (deadline === undefined || now < deadline) return
    if (phase.is === 'waiting' || phase.is === 'offline') {
      this.connect(now)
    } else if (phase.is === 'connecting') {
      this.effects.close(phase.attempt.number)
      this.refused(now, phase.attempt, { reason: 'unreachable', retry: true })
    } else if (phase.is === 'up') {
      this.tickUp(phase, now)
    }
  }

  private tickUp(phase: Phase & { is: 'up' }, now: number): void {
    if (now >= phase.live.doubtAt) {
      // A road that only the server speaks on cannot be asked.
      if (phase.live.asked || phase.live.road !== 'websocket') {
        this.effects.close(phase.live.number)
        return this.closed(now, phase.live.number, { reason: 'connection_lost', retry: true })
      }
      this.ask(phase.live, now)
    }
    if (phase.better && now >= phase.better.until) {
      this.effects.close(phase.better.number)
      this.betterFailed(phase, now)
    } else if (!phase.better && now >= phase.betterAt) {
      phase.better = this.attempt(now, this.roads[0]!)
    }
  }

  private ask(live: Live, now: number): void {
    live.asked = true
    if (live.road === 'websocket') {
      live.doubtAt = now + PONG_MS
      this.effects.ping(live.number)
    } else {
      live.doubtAt = Math.min(live.doubtAt, now + live.heartbeatMs + PONG_MS)
    }
  }

  private rest(live: Live): void {
    live.asked = false
    live.doubtAt = live.heard + (live.road === 'websocket' ? live.heartbeatMs : 1.5 * live.heartbeatMs + PONG_MS)
  }

  private betterFailed(phase: Phase & { is: 'up' }, now: number): void {
    phase.better = undefined
    this.betterMs = Math.min(2 * this.betterMs, BETTER_MAX_MS)
    phase.betterAt = now + this.spread(this.betterMs)
  }

  private connect(now: number): void {
    this.enter({ is: 'connecting', attempt: this.attempt(now, this.roads[this.roadAt]!) })
  }

  private attempt(now: number, road: Road): Attempt {
    const number = ++this.numbers
    const token = road === 'websocket' ? this.token : undefined
    this.effects.open(number, road, token)
    return { number, road, until: now + OPEN_MS, withToken: token !== undefined }
  }

  private attemptOf(number: number): Attempt | undefined {
    const phase = this.phase
    const attempt = phase.is === 'connecting' ? phase.attempt : phase.is === 'up' ? phase.better : undefined
    return attempt?.number === number ? attempt : undefined
  }

  /** An attempt ended before the server said welcome. */
  private refused(now: number, attempt: Attempt, ending: Ending): void {
    if (ending.reason === 'not_authorized') {
      // A resume token may be old, a JWT may have run out meanwhile: sign in anew once, then believe it.
      if (attempt.withToken) {
        this.token = undefined
        return this.connect(now)
      }
      if (this.freshSignInRefused) return this.again(now, ending)
      this.freshSignInRefused = true
      return this.again(now, { ...ending, retry: true })
    }
    this.roadFailures += 1
    if (this.roadFailures >= (this.proven.has(attempt.road) ? PATIENCE_PROVEN : PATIENCE)) {
      this.roadFailures = 0
      this.roadAt = (this.roadAt + 1) % this.roads.length
    }
    this.again(now, ending)
  }

  /** Full jitter: at least what the server asked for, then anything up to a bound that doubles with each failure. */
  private again(now: number, ending: Ending): void {
    this.reason = ending.reason
    if (!ending.retry) return this.enter({ is: 'stopped' })
    if (!this.network) return this.enter({ is: 'offline', until: now + OFFLINE_CHECK_MS })
    const bound = Math.min(BACKOFF_FIRST_MS * 2 ** Math.min(this.failures, 16), BACKOFF_MAX_MS)
    this.failures += 1
    this.enter({ is: 'waiting', until: now + (ending.retryAfterMs ?? 0) + this.random() * bound })
  }

  /** Lets go of whatever is open. */
  private drop(): void {
    const phase = this.phase
    if (phase.is === 'connecting') this.effects.close(phase.attempt.number)
    if (phase.is === 'up') {
      this.effects.close(phase.live.number)
      if (phase.better) this.effects.close(phase.better.number)
    }
  }

  private spread(ms: number): number {
    return ms * (0.75 + this.random() / 2)
  }

  private enter(phase: Phase): void {
    this.phase = phase
    this.effects.status()
  }
}
