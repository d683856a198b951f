// A client that registers itself. Where the server says that it no longer knows the device (it was deleted, or the server's
// data was replaced), it registers again and goes on with the same listeners.

import type { Client, Credentials, Events, OpenOptions, Options, Push, RegisterOptions, Status, Step } from './api'
import { BrowserClient, idOf } from './client'
import { PostriderError } from './error'
import { register } from './register'
import { describe } from './strings'

/** What the client is made of; the tests bring their own. */
export interface Parts {
  register(options: RegisterOptions, refused?: string): Promise<Credentials>
  make(options: Options): Client
  /** Between 0 and 1. */
  random(): number
  after(ms: number, work: () => void): void
}

const PARTS: Parts = {
  register,
  make: (options) => new BrowserClient(options),
  random: Math.random,
  after: (ms, work) => void setTimeout(work, ms),
}

/** The wait after the first failure to register is at most this; it doubles up to the other. */
const FIRST_WAIT_MS = 1_000
const LAST_WAIT_MS = 120_000
/** Reasons for which the device will not be let in again. */
const REFUSED = ['not_authorized', 'revoked']

interface Entry {
  event: keyof Events
  listener: (it: never) => unknown
  end?: (() => void) | undefined
}

export class OpenedClient implements Client {
  private client: Client | undefined
  private readonly entries = new Set<Entry>()
  private readonly waiting: { resolve(client: Client): void; reject(why: PostriderError): void }[] = []
  private own: Status = { state: 'idle', leader: false }
  private wanted = false
  /** Rises with each begin and end, so that an answer that comes too late is known as such. */
  private attempt = 0
  private failures = 0
  /** The device that the server refused last. */
  private refused: string | undefined
  /** Whether a refusal is worth a new registration: not when the new device was refused at once, too. */
  private mayRenew = true

  constructor(private readonly options: OpenOptions, private readonly parts: Parts = PARTS) {}

  get device(): string {
    return this.client?.device ?? ''
  }

  get status(): Status {
    return this.client?.status ?? this.own
  }

  connect(): void {
    if (this.client) {
      this.wanted = true
      return this.client.connect()
    }
    if (this.wanted && this.own.state === 'connecting') return
    this.wanted = true
    this.failures = 0
    this.begin()
  }

  disconnect(): void {
    this.wanted = false
    this.attempt += 1
    this.refuseWaiting('not_connected')
    if (this.client) this.client.disconnect()
    else this.setOwn({ state: 'idle', leader: false })
  }

  on<E extends keyof Events>(event: E, listener: (it: Events[E]) => unknown): () => void {
    const entry: Entry = { event, listener }
    this.entries.add(entry)
    this.attach(entry)
    return () => {
      this.entries.delete(entry)
      entry.end?.()
    }
  }

  onPush(listener: (push: Push) => unknown): () => void {
    return this.on('push', listener)
  }

  async subscribe(topics: string | string[], options?: { qos?: 0 | 1 }): Promise<boolean[]> {
    return (await this.made()).subscribe(topics, options)
  }

  async unsubscribe(topics: string | string[]): Promise<void> {
    return (await this.made()).unsubscribe(topics)
  }

  async publish(topic: string, payload: unknown, options?: { retain?: boolean }): Promise<void> {
    return (await this.made()).publish(topic, payload, options)
  }

  async receipt(push: Push | string, step: Step): Promise<void> {
    if (idOf(push) !== undefined) await (await this.made()).receipt(push, step)
  }

  displayed(push: Push | string): Promise<void> {
    return this.receipt(push, 'displayed')
  }

  clicked(push: Push | string): Promise<void> {
    return this.receipt(push, 'clicked')
  }

  dismissed(push: Push | string): Promise<void> {
    return this.receipt(push, 'dismissed')
  }

  replied(push: Push | string): Promise<void> {
    return this.receipt(push, 'replied')
  }

  async click(push: Push, action?: string): Promise<void> {
    return (await this.made()).click(push, action)
  }

  async requestPermission(): Promise<NotificationPermission> {
    return typeof Notification === 'undefined' ? 'denied' : Notification.requestPermission()
  }

  describe(language: string = this.options.language ?? navigator.language): string {
    return describe(this.status, language)
  }

  private begin(): void {
    const attempt = ++this.attempt
    this.setOwn({ state: 'connecting', leader: false })
    const registered = this.parts.register(this.options, this.refused)
    void registered.then(
      (credentials) => attempt === this.attempt && this.begun(credentials),
      (why: unknown) => attempt === this.attempt && this.failed(why),
    )
  }

  private begun(credentials: Credentials): void {
    this.failures = 0
    const client = this.parts.make({ ...this.options, ...credentials })
    this.client = client
    client.on('status', (status) => client === this.client && this.changed(status))
    this.tell('registered', credentials)
    for (const entry of this.entries) this.attach(entry)
    this.waiting.splice(0).forEach(({ resolve }) => resolve(client))
    client.connect()
  }

  private failed(why: unknown): void {
    const error = why instanceof PostriderError ? why : new PostriderError('unreachable', String(why))
    this.tell('error', error)
    if (!error.retry) {
      this.refuseWaiting(error.code)
      return this.setOwn({ state: 'stopped', reason: error.code, leader: false })
    }
    const width = Math.min(LAST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.failures++)
    const retryInMs = Math.round(width * (0.5 + this.parts.random() / 2))
    this.setOwn({ state: 'waiting', reason: error.code, retryInMs, leader: false })
    const attempt = this.attempt
    this.parts.after(retryInMs, () => attempt === this.attempt && this.begin())
  }

  private changed(status: Status): void {
    if (status.state === 'online') this.mayRenew = true
    const refused = status.state === 'stopped' && REFUSED.includes(status.reason ?? '')
    if (!refused || !this.mayRenew) return this.tell('status', status)
    const client = this.client!
    this.client = undefined
    for (const entry of this.entries) {
      entry.end?.()
      entry.end = undefined
    }
    client.disconnect()
    this.refused = client.device
    this.mayRenew = false
    this.begin()
  }

  /** Listeners of what this class tells itself stay here; the others are given to the client. */
  private attach(entry: Entry): void {
    if (this.client && entry.event !== 'status' && entry.event !== 'registered') {
      entry.end = this.client.on(entry.event, entry.listener as never)
    }
  }

  private tell<E extends keyof Events>(event: E, it: Events[E]): void {
    for (const entry of [...this.entries]) {
      if (entry.event !== event) continue
      try {
        const ended: unknown = entry.listener(it as never)
        if (ended instanceof Promise) ended.catch((why) => console.error(why))
      } catch (why) {
        console.error(why)
      }
    }
  }

  private setOwn(status: Status): void {
    this.own = status
    this.tell('status', status)
  }

  /** The client that is made, now or once the device is registered. */
  private made(): Promise<Client> {
    if (this.client) return Promise.resolve(this.client)
    if (!this.wanted || this.own.state === 'stopped') return Promise.reject(new PostriderError('not_connected'))
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }))
  }

  private refuseWaiting(code: string): void {
    this.waiting.splice(0).forEach(({ reject }) => reject(new PostriderError(code)))
  }
}
