// A service worker that shows and follows notifications: where a page may not show its own (Chrome on Android), and for
// buttons, which only a worker's notifications have. It holds no connection, and takes no push while no page is open.

import type { Push } from './api'
import { openNotes } from './notes'
import { safeTarget } from './target'

/** What a page hangs on a notification, and what is told to a page about it. */
export interface Shown {
  push: Push
  /** Which client showed it. */
  scope: string
  targets: string[]
}

/** The message to a page. It answers over the port that comes with it. */
export interface Told {
  postrider: Shown
  action: string
}

/** The part of a worker's world that is used, so that a test can stand in for it. */
export interface World {
  location: { href: string }
  clients: {
    matchAll(options: object): Promise<PageClient[]>
    openWindow(url: string): Promise<unknown>
  }
  addEventListener(type: string, listener: (event: NotificationEvent) => void): void
}

export interface PageClient {
  visibilityState: string
  focus(): Promise<unknown>
  postMessage(message: unknown, transfer: MessagePort[]): void
}

interface NotificationEvent {
  notification: { data: unknown; close(): void }
  action: string
  waitUntil(work: Promise<unknown>): void
}

const ANSWER_MS = 1_000

export function serve(world: World): void {
  world.addEventListener('notificationclick', (event) => {
    const shown = shownBy(event)
    if (!shown) return
    event.notification.close()
    event.waitUntil(clicked(world, shown, event.action))
  })
  world.addEventListener('notificationclose', (event) => {
    const shown = shownBy(event)
    if (shown) event.waitUntil(note(shown, 'dismissed'))
  })
}

function shownBy(event: NotificationEvent): Shown | undefined {
  return (event.notification.data as { postrider?: Shown } | null)?.postrider
}

/** The page that showed it does what is to be done; where there is none any more, a page is opened. */
async function clicked(world: World, shown: Shown, action: string): Promise<void> {
  await note(shown, 'clicked')
  const pages = await world.clients.matchAll({ type: 'window', includeUncontrolled: true })
  pages.sort((a, b) => Number(b.visibilityState === 'visible') - Number(a.visibilityState === 'visible'))
  for (const page of pages) {
    if (await takes(page, { postrider: shown, action })) return
  }
  const notification = shown.push.notification
  const button = notification?.actions?.find(({ id }) => id === action)
  const target = safeTarget(button?.click ?? notification?.click, world.location.href, shown.targets)
  await world.clients.openWindow(target ?? new URL('/', world.location.href).href)
}

/** The receipt is told by the next page that connects. */
async function note(shown: Shown, step: 'clicked' | 'dismissed'): Promise<void> {
  const id = shown.push.id
  if (id !== undefined) await (await openNotes(shown.scope)).addReceipt({ id, step })
}

async function takes(page: PageClient, told: Told): Promise<boolean> {
  const { port1, port2 } = new MessageChannel()
  const answered = new Promise<boolean>((resolve) => {
    port1.onmessage = () => resolve(true)
    setTimeout(() => resolve(false), ANSWER_MS)
  })
  page.postMessage(told, [port2])
  const taken = await answered
  port1.close()
  // Only now: a page that is no client of ours is left alone. Browsers allow it for some seconds after the click.
  if (taken) await page.focus().catch(() => {})
  return taken
}

if (typeof registration !== 'undefined') serve(self as unknown as World)

declare const registration: unknown
