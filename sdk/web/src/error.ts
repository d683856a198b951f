/** What was refused, by a code of the server's list, or `timeout`, `connection_lost`, `needs_websocket`, `unreachable`. */
export class PostriderError extends Error {
  constructor(readonly code: string, message: string = code) {
    super(message)
    this.name = 'PostriderError'
  }
}
