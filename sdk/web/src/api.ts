// What the SDK offers, as types. Nothing here runs. This file is also what `postrider.d.ts` begins with.

/** What signs a device in: what its registration answered. */
export interface Credentials {
  device: string
  secret: string
}

export interface RegisterOptions {
  /** Where the server is. Default: the origin of the page. */
  server?: string
  /** An app key of the scope `register`. It can do nothing but register devices, so it may stand in a page. */
  key?: string
  /** Another address to register at, such as one of your own that adds a key. Default: `/v1/devices`. */
  endpoint?: string
  /** What your app notes of the device, such as its version. Audiences cannot ask for it. */
  attributes?: Record<string, string | number | boolean>
  /** For an `endpoint` of your own, which may grant them; a key of the scope `register` may not give tags. */
  tags?: string[]
}

export interface Options {
  /** Where the server is. Default: the origin of the page. */
  server?: string
  /** The id of this device. Tabs of one origin that name the same device share one connection. */
  device: string
  /** The device's secret; or give a `token`. */
  secret?: string
  /** A JWT of your app's server, or what fetches one. It is asked again when the server refuses the last one. */
  token?: string | (() => string | Promise<string>)
  /** The roads to try, best first. Default: all three. */
  roads?: Road[]
  /** How often this client will be heard of, 10 to 1,200 seconds. Default: as the server says. */
  heartbeatSecs?: number
  /**
   * When to show a push as a notification of the browser, once the user permitted it. `hidden` (the default): when the tab
   * that holds the connection is not seen. `never`: leave it to your own code, which then tells `displayed` and `clicked` itself.
   */
  notifications?: 'hidden' | 'always' | 'never' | ((push: Push) => boolean)
  /** Origins beside the page's own that a click may open, such as `https://shop.example`. */
  targets?: string[]
  /**
   * A registration of the SDK's service worker (`/sdk/worker.js`, or a file of your own that imports it). It shows the
   * notifications then, with their buttons; and it is the only way on Android.
   */
  worker?: ServiceWorkerRegistration
  /** The language of the SDK's own words. Default: the browser's. */
  language?: string
}

/** For `open`, which registers the device itself. */
export interface OpenOptions extends RegisterOptions, Omit<Options, 'server' | 'device' | 'secret' | 'token'> {}

export type Road = 'websocket' | 'sse' | 'poll'

/**
 * `idle`: not asked to connect. `connecting`, `online`: as it says. `waiting`: until `retryInMs` have passed.
 * `offline`: until the browser has a network. `frozen`: until the browser wakes the page. `stopped`: the server said that
 * trying again will not help; `reason` says why, and `connect()` tries again all the same.
 */
export type State = 'idle' | 'connecting' | 'online' | 'waiting' | 'offline' | 'frozen' | 'stopped'

export interface Status {
  state: State
  /** The road in use, or the one being tried. */
  road?: Road
  /** Why the connection ended, or could not begin: a reason of the server's table, or `unreachable`. */
  reason?: string
  /** In `waiting`: how long until the next attempt. */
  retryInMs?: number
  /** Whether this tab holds the connection of all tabs. */
  leader: boolean
}

export interface Action {
  id: string
  title: string
  icon?: string
  click?: string
}

/** What is to be shown. All of it is text from outside: put it into text nodes, never into HTML. */
export interface Notification {
  title?: string
  subtitle?: string
  body?: string
  image?: string
  icon?: string
  sound?: string
  badge?: number
  category?: string
  group?: string
  color?: string
  /** What a click opens; judge it with `safeTarget` before you follow it yourself. */
  click?: string
  actions?: Action[]
}

/** A message that was sent to this device. */
export interface Push {
  /** Missing where the sender asked for raw bytes. */
  id?: string
  app?: string
  /** Milliseconds since 1970. */
  sent_at?: number
  expires_at?: number
  notification?: Notification
  data?: unknown
  collapse_key?: string
  /** The payload, where the sender asked for raw bytes. */
  bytes?: Uint8Array
}

/** A message of a topic that this device subscribed to. */
export interface TopicMessage {
  topic: string
  json?: unknown
  text?: string
  bytes?: Uint8Array
  retained: boolean
}

/** The user clicked on a notification of the browser. */
export interface Click {
  push: Push
  /** The button, if it was one. */
  action?: string
  /** Where the click leads, when that is a safe place. */
  target?: string
  /** Don't go there: the page does what is to be done. */
  preventDefault(): void
}

export interface Events {
  push: Push
  message: TopicMessage
  status: Status
  click: Click
  error: Error & { code: string }
  /** Of `open`: this browser is this device, from now on. It is told again when the server knew it no longer. */
  registered: Credentials
}

/** The steps that a page can tell of. */
export type Step = 'displayed' | 'clicked' | 'dismissed' | 'replied'

export interface Client {
  /** The device's id; empty while `open` has not registered one yet. */
  readonly device: string
  readonly status: Status
  /** Connects, and stays connected until `disconnect`. */
  connect(): void
  disconnect(): void
  /** Calls `listener` for each event until the function that it answers is called. */
  on<E extends keyof Events>(event: E, listener: (it: Events[E]) => unknown): () => void
  /**
   * The same as `on('push', …)`. Each push comes once to every tab that is open, and not again after a reload: it is noted
   * durably before it is acknowledged, and counts as handled when a listener (or the promise that it answers) has ended.
   * One that no listener has handled yet comes to the next listener.
   */
  onPush(listener: (push: Push) => unknown): () => void
  /** Answers for each filter whether it was granted. Needs a WebSocket. */
  subscribe(topics: string | string[], options?: { qos?: 0 | 1 }): Promise<boolean[]>
  unsubscribe(topics: string | string[]): Promise<void>
  /** A string goes as text, bytes as base64, anything else as JSON. Needs a WebSocket. */
  publish(topic: string, payload: unknown, options?: { retain?: boolean }): Promise<void>
  /**
   * Tells what became of a push, or of the message with this id. Noted durably, and told again until the server has it. Of
   * raw bytes, which have no id, nothing is told.
   */
  receipt(push: Push | string, step: Step): Promise<void>
  displayed(push: Push | string): Promise<void>
  clicked(push: Push | string): Promise<void>
  dismissed(push: Push | string): Promise<void>
  replied(push: Push | string): Promise<void>
  /** For a notification that the page itself draws: tells `clicked` and goes where the click leads. */
  click(push: Push, action?: string): Promise<void>
  /** Asks the user, if need be. Call it from a click. */
  requestPermission(): Promise<NotificationPermission>
  /** The status in words, for people; in English or Chinese. */
  describe(language?: string): string
}
