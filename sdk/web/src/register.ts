// Registers this browser as a device, once: the answer is kept, for later visits and for other tabs.

import type { Credentials, RegisterOptions } from './api'
import { serverOf } from './client'
import { PostriderError } from './error'
import { isObject, text } from './frames'

function place(options: RegisterOptions): { address: string; keptAs: string } {
  const server = serverOf(options.server)
  const address = new URL(options.endpoint ?? '/v1/devices', server + '/').href
  return { address, keptAs: `postrider|${address}|${options.key ?? ''}` }
}

/** Registers this browser once. Name a device that the server `refused`, and it is not answered from what is kept. */
export async function register(options: RegisterOptions = {}, refused?: string): Promise<Credentials> {
  const { keptAs } = place(options)
  // Two tabs that open at once, or that are refused at once, are one device.
  return navigator.locks ? navigator.locks.request(keptAs, () => once(options, refused)) : once(options, refused)
}

async function once(options: RegisterOptions, refused: string | undefined): Promise<Credentials> {
  const { address, keptAs } = place(options)
  const kept = read(keptAs)
  if (kept && kept.device !== refused) return kept
  const headers: Record<string, string> = { 'Content-Type': 'application/json' }
  if (options.key) headers.Authorization = `Bearer ${options.key}`
  const body = JSON.stringify({ platform: 'web', attributes: options.attributes, tags: options.tags })
  const answer = await fetch(address, { method: 'POST', headers, body, credentials: 'same-origin' }).catch((why) => {
    throw new PostriderError('unreachable', String(why))
  })
  const made: unknown = await answer.json().catch(() => undefined)
  if (!answer.ok) throw refusal(answer.status, made)
  const device = isObject(made) ? text(made.device_id) : undefined
  const secret = isObject(made) ? text(made.device_secret) : undefined
  if (device === undefined || secret === undefined) throw new PostriderError('unreachable', 'not a registration')
  try {
    localStorage.setItem(keptAs, JSON.stringify({ device, secret }))
  } catch {
    // A private window: the device lasts as long as the page.
  }
  return { device, secret }
}

/** Forgets what `register` kept: the next call registers a new device. */
export function forget(options: RegisterOptions = {}): void {
  try {
    localStorage.removeItem(place(options).keptAs)
  } catch {
    // Nothing was kept either.
  }
}

function read(name: string): Credentials | undefined {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(name) ?? 'null')
    const device = isObject(kept) ? text(kept.device) : undefined
    const secret = isObject(kept) ? text(kept.secret) : undefined
    return device !== undefined && secret !== undefined ? { device, secret } : undefined
  } catch {
    return undefined
  }
}

function refusal(status: number, answer: unknown): PostriderError {
  const error = isObject(answer) && isObject(answer.error) ? answer.error : {}
  return new PostriderError(text(error.code) ?? `http_${status}`, text(error.message), status === 429 || status >= 500)
}
