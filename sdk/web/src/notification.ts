// A push as a notification of the browser. Title and body are plain text there by the standard.

import type { Options, Push } from './api'
import { wordsOf } from './strings'
import type { Shown } from './worker'

export interface NotificationEvents {
  displayed(): void
  dismissed(): void
  clicked(): void
  failed(why: unknown): void
}

export function show(push: Push, scope: string, options: Options, events: NotificationEvents): void {
  const from = push.notification ?? {}
  const title = from.title || wordsOf(options.language ?? navigator.language).untitled
  const settings: NotificationOptions & { image?: string } = {
    body: from.body,
    icon: safePicture(from.icon, location.href),
    image: safePicture(from.image, location.href),
    // One notification for a message, and one for all messages that replace each other.
    tag: push.collapse_key ?? push.id,
    data: { postrider: { push, scope, targets: options.targets ?? [] } satisfies Shown },
  }
  if (options.worker) {
    const actions = from.actions?.map(({ id, title }) => ({ action: id, title }))
    options.worker.showNotification(title, { ...settings, actions } as NotificationOptions).then(events.displayed, events.failed)
    return
  }
  try {
    const shown = new Notification(title, settings)
    let clicked = false
    shown.onshow = events.displayed
    shown.onerror = () => events.failed('the browser could not show it')
    shown.onclick = () => {
      clicked = true
      window.focus()
      shown.close()
      events.clicked()
    }
    // It closes also after a click, and when the browser tidies up; only the first is known from the second.
    shown.onclose = () => clicked || events.dismissed()
  } catch (why) {
    events.failed(why)
  }
}

/** The address of a picture, or nothing where it is not http or https. */
function safePicture(picture: string | undefined, here: string): string | undefined {
  if (!picture) return undefined
  try {
    const url = new URL(picture, here)
    return url.protocol === 'http:' || url.protocol === 'https:' ? url.href : undefined
  } catch {
    return undefined
  }
}
