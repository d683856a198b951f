// Server-sent events read from a response's body: `EventSource` cannot send the header that signs in.
// The format is that of the HTML standard, 9.2.6; ids and names are not needed here, since every frame names its type.

export interface ServerSentEvent {
  /** Missing where it is only a sign of life: a comment, or a hint. */
  data?: string
  retryMs?: number
}

/** A line longer than this is no frame of ours: a message has at most 64 KiB, which base64 and escapes may swell. */
const LINE_MAX = 1 << 20

export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerSentEvent> {
  const reader = body.getReader()
  const lines = new Lines()
  const decoder = new TextDecoder()
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    // Also a comment is an event here: it shows that the server is there.
    yield {}
    for (const event of lines.take(decoder.decode(value, { stream: true }))) yield event
  }
}

/** Puts events together from pieces of text that may be cut anywhere. */
export class Lines {
  private rest = ''
  private data: string[] = []
  private endedWithReturn = false

  take(piece: string): ServerSentEvent[] {
    // CR LF is one line end also where the pieces part it.
    if (this.endedWithReturn && piece.startsWith('\n')) piece = piece.slice(1)
    this.endedWithReturn = piece === '' ? this.endedWithReturn : piece.endsWith('\r')
    const lines = (this.rest + piece).split(/\r\n|\r|\n/)
    this.rest = lines.pop() ?? ''
    if (this.rest.length > LINE_MAX) throw new Error('line too long')
    return lines.flatMap((line) => this.line(line))
  }

  private line(line: string): ServerSentEvent[] {
    if (line === '') {
      const data = this.data
      this.data = []
      return data.length > 0 ? [{ data: data.join('\n') }] : []
    }
    const [, field, value = ''] = /^([^:]*)(?:: ?(.*))?$/.exec(line) ?? []
    if (field === 'data') this.data.push(value)
    if (field === 'retry' && /^\d+$/.test(value)) return [{ retryMs: Number(value) }]
    return []
  }
}
