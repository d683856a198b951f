// How a connection ended, and whether to connect again: the table of docs/protocol/websocket.md.

export interface Ending {
  /** Of the table; `unreachable` where the road never began. */
  reason: string
  retry: boolean
  retryAfterMs?: number
}

const NEVER_AGAIN: Record<number, string> = {
  1002: 'protocol_error',
  1003: 'unsupported_data',
  1007: 'invalid_utf8',
  1008: 'policy',
  1009: 'too_large',
  4000: 'taken_over',
  4001: 'revoked',
  4002: 'not_authorized',
  4006: 'quota_exceeded',
}

const AGAIN: Record<number, string> = {
  1001: 'shutting_down',
  1011: 'internal_error',
  1013: 'unavailable',
  4003: 'keepalive',
  4004: 'slow_reader',
  4005: 'session_expired',
  4007: 'too_often',
}

/** What a close code says; one that is not in the table (1006: the network) is worth another try. */
export function endingOfCode(code: number): Ending {
  const final = NEVER_AGAIN[code]
  return final ? { reason: final, retry: false } : { reason: AGAIN[code] ?? 'connection_lost', retry: true }
}

/** What a `bye` says, which is more exact than the code that follows it. */
export function endingOfBye(bye: Record<string, unknown>): Ending {
  return {
    reason: typeof bye.reason === 'string' ? bye.reason : 'connection_lost',
    retry: bye.retry !== false,
    retryAfterMs: millis(bye.retry_after_ms),
  }
}

/** What the status of a refused HTTP request says. */
export function endingOfStatus(status: number, retryAfter: string | null): Ending {
  const retryAfterMs = millis(Number(retryAfter ?? NaN) * 1000)
  if (status === 401 || status === 403) return { reason: 'not_authorized', retry: false }
  if (status === 429) return { reason: 'too_often', retry: true, retryAfterMs: retryAfterMs ?? 1000 }
  return { reason: status === 503 ? 'unavailable' : 'unreachable', retry: true, retryAfterMs }
}

/** A wait that the server asks for: an hour is the most that it is believed. */
function millis(value: unknown): number | undefined {
  return typeof value === 'number' && value >= 0 ? Math.min(value, 3_600_000) : undefined
}
