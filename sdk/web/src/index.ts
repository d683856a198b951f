// The door: what a page sees, as an ES module or as the global `postrider`.

import type { Client, Options } from './api'
import { BrowserClient } from './client'

export * from './api'
export { register, forget } from './register'
export { safeTarget } from './target'

/** A client for one device. It does nothing until `connect`. */
export function create(options: Options): Client {
  return new BrowserClient(options)
}
