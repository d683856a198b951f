// The door: what a page sees, as an ES module or as the global `postrider`.

import type { Client, OpenOptions, Options } from './api'
import { BrowserClient } from './client'
import { OpenedClient } from './open'

export * from './api'
export { register, forget } from './register'
export { safeTarget } from './target'

/**
 * A client that registers this browser itself, and again should the server no longer know the device. It does nothing
 * until `connect`.
 */
export function open(options: OpenOptions = {}): Client {
  return new OpenedClient(options)
}

/** A client for one device that is registered. It does nothing until `connect`. */
export function create(options: Options): Client {
  return new BrowserClient(options)
}
