/** What was refused, by a code of the server's list, or `timeout`, `connection_lost`, `needs_websocket`, `unreachable`. */
export class PostriderError extends Error {
  /** `retry`: whether the same may succeed later. */
  constructor(readonly code: string, message: string = code, readonly retry: boolean = code === 'unreachable') {
    super(message)
    this.name = 'PostriderError'
  }
}
