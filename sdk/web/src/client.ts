// A tab's client: its listeners, its part among the tabs, what the browser tells of page and network, notifications.

import type { Click, Client, Events, Options, Push, Road, Status, Step } from './api'
import { Connection } from './connection'
import { PostriderError } from './error'
import { base64, base64OfText, isObject, text, type Frame, type Item } from './frames'
import { openNotes, type Notes } from './notes'
import { show } from './notification'
import type { Place } from './roads'
import { describe } from './strings'
import { Tabs } from './tabs'
import { safeTarget } from './target'
import type { Told } from './worker'

const ROADS: Road[] = ['websocket', 'sse', 'poll']
/** How many keys a tab remembers to have shown; the durable notes remember more. */
const SHOWN_MAX = 2_000
const CALL_MS = 35_000
/** How long a click waits for the server to have its receipt, before the page is left. */
const CLICK_MS = 300
const VERSION = 'postrider-web/0.1.0'

/** What tabs say to each other. */
type TabMessage = { status: Status } | { item: Item } | { ask: 'start' | 'receipts' } | TabCall | TabAnswer
type TabCall = { call: Frame; from: string; number: number }
type TabAnswer = { answer: Frame; to: string; number: number }

type Listener = (it: never) => unknown

export function serverOf(server: string | undefined): string {
  return new URL(server ?? '/', location.href).href.replace(/\/+$/, '')
}

/** The id of a message. Raw bytes have none, and nothing can be told of them. */
export function idOf(push: Push | string): string | undefined {
  return typeof push === 'string' ? push : push.id
}

export class BrowserClient implements Client {
  readonly device: string
  private readonly server: string
  private readonly scope: string
  private readonly notes: Promise<Notes>
  private readonly connection: Connection
  private readonly tabs: Tabs
  private readonly listeners = new Map<keyof Events, Set<Listener>>()
  private readonly shown = new Set<string>()
  private readonly asked = new Map<number, (answer: Frame) => void>()
  private numbers = 0
  private wanted = false
  private leads = false
  private leaderStatus: Status = { state: 'idle', leader: false }
  /** Messages reach the listeners in order, also while older ones are still being read from the notes. */
  private order: Promise<void> = Promise.resolve()

  constructor(private readonly options: Options) {
    this.device = options.device
    this.server = serverOf(options.server)
    this.scope = `${this.server}|${this.device}`
    this.notes = openNotes(this.scope)
    const events = { status: () => this.statusChanged(), item: (item: Item) => this.arrived(item) }
    this.connection = new Connection(this.place(), this.notes, events, options.roads ?? ROADS)
    this.tabs = new Tabs(`postrider|${this.scope}`, {
      lead: () => this.lead(),
      follow: () => this.follow(),
      hear: (message) => this.hear(message as TabMessage),
    })
    this.watchPage()
  }

  get status(): Status {
    return this.leads ? this.connection.status() : this.leaderStatus
  }

  connect(): void {
    this.wanted = true
    if (this.leads) return this.connection.start()
    this.setFollowed({ state: 'connecting', leader: false })
    this.tabs.enter()
    this.tabs.post({ ask: 'start' })
  }

  disconnect(): void {
    this.wanted = false
    this.retire({ state: 'idle', leader: false }, () => this.connection.stop())
  }

  on<E extends keyof Events>(event: E, listener: (it: Events[E]) => unknown): () => void {
    const set = this.listeners.get(event) ?? new Set()
    this.listeners.set(event, set.add(listener))
    if (event === 'push' || event === 'message') this.order = this.order.then(() => this.showOpen())
    return () => void set.delete(listener)
  }

  onPush(listener: (push: Push) => unknown): () => void {
    return this.on('push', listener)
  }

  async subscribe(topics: string | string[], options: { qos?: 0 | 1 } = {}): Promise<boolean[]> {
    const list = [topics].flat()
    const qos = options.qos ?? 1
    const answer = await this.call({ type: 'subscribe', topics: list, qos })
    const granted = Array.isArray(answer.granted) ? answer.granted.map(Boolean) : list.map(() => true)
    await this.keepTopics((kept) => list.forEach((topic, i) => granted[i] && (kept[topic] = qos)))
    return granted
  }

  async unsubscribe(topics: string | string[]): Promise<void> {
    const list = [topics].flat()
    await this.call({ type: 'unsubscribe', topics: list })
    await this.keepTopics((kept) => list.forEach((topic) => delete kept[topic]))
  }

  async publish(topic: string, payload: unknown, options: { retain?: boolean } = {}): Promise<void> {
    const as =
      typeof payload === 'string' ? { text: payload }
      : payload instanceof Uint8Array ? { base64: base64(payload) }
      : { json: payload }
    await this.call({ type: 'publish', topic, retain: options.retain ?? false, ...as })
  }

  async receipt(push: Push | string, step: Step): Promise<void> {
    const id = idOf(push)
    if (id === undefined) return
    await (await this.notes).addReceipt({ id, step })
    if (this.leads) await this.connection.tellReceipts()
    else this.tabs.post({ ask: 'receipts' })
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
    const notification = push.notification
    const button = notification?.actions?.find((it) => it.id === action)
    const target = safeTarget(button?.click ?? notification?.click, location.href, this.options.targets)
    let stay = target === undefined
    const click: Click = { push, action, target, preventDefault: () => (stay = true) }
    this.emit('click', click)
    if (push.id !== undefined) {
      await Promise.race([this.clicked(push.id), new Promise((done) => setTimeout(done, CLICK_MS))])
    }
    if (stay || target === undefined) return
    if (new URL(target).origin === location.origin) location.assign(target)
    else window.open(target, '_blank', 'noopener')
  }

  async requestPermission(): Promise<NotificationPermission> {
    return typeof Notification === 'undefined' ? 'denied' : Notification.requestPermission()
  }

  describe(language: string = this.options.language ?? navigator.language): string {
    return describe(this.status, language)
  }

  private place(): Place {
    const { device, secret, token, heartbeatSecs } = this.options
    const fresh = async () => (typeof token === 'function' ? token() : token)
    return {
      server: this.server,
      hello: async () => {
        const jwt = await fresh()
        const sign = jwt === undefined ? { device, secret } : { token: jwt }
        return { type: 'hello', ...sign, heartbeat_secs: heartbeatSecs, user_agent: VERSION }
      },
      authorization: async () => {
        const jwt = await fresh()
        return jwt === undefined ? `Basic ${base64OfText(`${device}:${secret}`)}` : `Bearer ${jwt}`
      },
    }
  }

  // Tabs.

  private lead(): void {
    this.leads = true
    this.connection.start()
  }

  private follow(): void {
    this.leads = false
    this.connection.stop()
    // This tab's connection may just have ended the leader's.
    this.tabs.post({ ask: 'start' })
  }

  private retire(status: Status, end: () => void): void {
    end()
    this.leads = false
    this.tabs.exit()
    this.setFollowed(status)
  }

  private hear(message: TabMessage): void {
    if (!this.wanted) return
    if ('status' in message) this.setFollowed({ ...message.status, leader: false })
    else if ('item' in message) this.queue(message.item)
    else if ('answer' in message) this.answered(message)
    else if (!this.leads) return
    else if ('call' in message) void this.callFor(message)
    else if (message.ask === 'receipts') void this.connection.tellReceipts()
    else {
      this.connection.start()
      this.statusChanged()
    }
  }

  private answered(message: TabAnswer): void {
    if (message.to === this.tabs.id) this.asked.get(message.number)?.(message.answer)
  }

  private async callFor({ call, from, number }: TabCall): Promise<void> {
    const refusal = (why: PostriderError): Frame => ({ type: 'error', code: why.code, message: why.message })
    const answer = await this.connection.call(call).catch(refusal)
    this.tabs.post({ answer, to: from, number })
  }

  private async call(frame: Frame): Promise<Frame> {
    if (!this.wanted) throw new PostriderError('not_connected')
    if (this.leads) return this.connection.call(frame)
    const number = ++this.numbers
    const answer = await new Promise<Frame>((resolve) => {
      const timeout = setTimeout(() => resolve({ type: 'error', code: 'timeout' }), CALL_MS)
      this.asked.set(number, (answer) => {
        clearTimeout(timeout)
        resolve(answer)
      })
      this.tabs.post({ call: frame, from: this.tabs.id, number })
    })
    this.asked.delete(number)
    if (answer.type !== 'ok') throw new PostriderError(text(answer.code) ?? 'refused', text(answer.message))
    return answer
  }

  private setFollowed(status: Status): void {
    this.leaderStatus = status
    this.emit('status', this.status)
  }

  private statusChanged(): void {
    if (!this.leads) return
    const status = this.status
    this.tabs.post({ status })
    this.emit('status', status)
  }

  // Messages.

  private arrived(item: Item): void {
    this.tabs.post({ item })
    this.queue(item)
    const push = item.push
    if (!push?.notification || !this.mayShow(push)) return
    show(push, this.scope, this.options, {
      displayed: () => void (push.id && this.displayed(push.id)),
      dismissed: () => void (push.id && this.dismissed(push.id)),
      clicked: () => void this.click(push),
      failed: (why) => this.emit('error', new PostriderError('notification', String(why))),
    })
  }

  private mayShow(push: Push): boolean {
    if (typeof Notification === 'undefined' || Notification.permission !== 'granted') return false
    const when = this.options.notifications ?? 'hidden'
    if (typeof when === 'function') return when(push)
    return when === 'always' || (when === 'hidden' && document.visibilityState === 'hidden')
  }

  private queue(item: Item): void {
    this.order = this.order.then(() => this.hand(item))
  }

  private async showOpen(): Promise<void> {
    const notes = await this.notes
    for (const item of await notes.open().catch(() => [])) this.hand(item)
  }

  /** Gives an item to the listeners, if there are any; otherwise it stays noted for the next one. */
  private hand(item: Item): void {
    const event = item.push ? 'push' : 'message'
    if (!this.listeners.get(event)?.size || (item.key !== undefined && this.shown.has(item.key))) return
    const done = this.emit(event, (item.push ?? item.message)!)
    if (item.key === undefined) return
    this.remember(item.key)
    void done.then(() => this.handled(item.key!))
  }

  private remember(key: string): void {
    this.shown.add(key)
    if (this.shown.size > SHOWN_MAX) this.shown.delete(this.shown.values().next().value!)
  }

  private async handled(key: string): Promise<void> {
    await (await this.notes).handled(key).catch(() => {})
    this.connection.handled(key)
  }

  private async keepTopics(change: (kept: Record<string, number>) => void): Promise<void> {
    const notes = await this.notes
    const kept = await notes.get('topics')
    const topics = (isObject(kept) ? kept : {}) as Record<string, number>
    change(topics)
    await notes.set('topics', topics)
  }

  /** Resolves when all listeners have ended. One that throws is reported and does not keep the others from it. */
  private async emit<E extends keyof Events>(event: E, it: Events[E]): Promise<void> {
    const run = async (listener: Listener) => {
      try {
        await listener(it as never)
      } catch (why) {
        if (event === 'error') console.error(why)
        else void this.emit('error', Object.assign(why instanceof Error ? why : new Error(String(why)), { code: 'listener' }))
      }
    }
    await Promise.all([...(this.listeners.get(event) ?? [])].map(run))
  }

  // The page.

  private watchPage(): void {
    const sleep = () => this.wanted && this.retire({ state: 'frozen', leader: false }, () => this.connection.freeze())
    const wake = () => this.wanted && this.status.state === 'frozen' && this.connect()
    addEventListener('pagehide', sleep)
    addEventListener('pageshow', wake)
    document.addEventListener('freeze', sleep)
    document.addEventListener('resume', wake)
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState !== 'visible') return
      wake()
      if (this.leads) this.connection.doubt()
    })
    if (this.options.worker) navigator.serviceWorker.addEventListener('message', (event) => this.workerTells(event))
    addEventListener('online', () => this.connection.networkChanged(true))
    addEventListener('offline', () => this.connection.networkChanged(false))
  }

  /** Our service worker says that its notification was clicked. */
  private workerTells(event: MessageEvent): void {
    const told = event.data as Partial<Told> | null
    if (told?.postrider?.scope !== this.scope || !this.wanted) return
    event.ports[0]?.postMessage(true)
    void this.click(told.postrider.push, told.action)
  }
}
