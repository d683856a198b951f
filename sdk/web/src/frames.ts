// What comes from the server, made safe: every field that is used has the type that it should have, or is left out.

import type { Action, Notification, Push, TopicMessage } from './api'

/** A frame of docs/protocol/websocket.md; only `type` is known to be there. */
export type Frame = { type: string } & Record<string, unknown>

/** A message for the app, and what is needed to note and acknowledge it. */
export interface Item {
  /** By which a repeat is known. Missing for what is neither kept nor acknowledged. */
  key?: string
  delivery?: string
  push?: Push
  message?: TopicMessage
}

export function parseFrame(text: string): Frame | undefined {
  try {
    const frame: unknown = JSON.parse(text)
    if (isObject(frame) && typeof frame.type === 'string') return frame as Frame
  } catch {
    // Not JSON: nothing that this client could read.
  }
  return undefined
}

/** Reads a `push` or `message` frame. */
export function readItem(frame: Frame): Item {
  const delivery = text(frame.delivery)
  if (frame.type === 'push') {
    const push = readPush(frame)
    return { key: push.id ?? keyWithoutId(delivery, frame), delivery, push }
  }
  return { key: keyWithoutId(delivery, frame), delivery, message: readMessage(frame) }
}

/**
 * What has no id is known by its number in the inbox and its content: numbers alone are given again when a server is
 * restored from a backup.
 */
function keyWithoutId(delivery: string | undefined, frame: Frame): string | undefined {
  if (delivery === undefined) return undefined
  const content = JSON.stringify([frame.topic, frame.json, frame.text, frame.base64])
  let hash = 0x811c9dc5
  for (let i = 0; i < content.length; i++) hash = Math.imul(hash ^ content.charCodeAt(i), 0x01000193)
  return `${delivery}-${content.length}-${(hash >>> 0).toString(16)}`
}

function readPush(frame: Frame): Push {
  if (!isObject(frame.message)) return { bytes: bytes(frame.base64) }
  const from = frame.message
  return {
    id: text(from.id),
    app: text(from.app),
    sent_at: number(from.sent_at),
    expires_at: number(from.expires_at),
    notification: isObject(from.notification) ? readNotification(from.notification) : undefined,
    data: from.data,
    collapse_key: text(from.collapse_key),
  }
}

function readMessage(frame: Frame): TopicMessage {
  return {
    topic: text(frame.topic) ?? '',
    json: frame.json,
    text: text(frame.text),
    bytes: bytes(frame.base64),
    retained: frame.retained === true,
  }
}

const TEXTS = ['title', 'subtitle', 'body', 'image', 'icon', 'sound', 'category', 'group', 'color', 'click'] as const

function readNotification(from: Record<string, unknown>): Notification {
  const made: Notification = {}
  for (const name of TEXTS) {
    const value = text(from[name])
    if (value !== undefined) made[name] = value
  }
  made.badge = number(from.badge)
  if (Array.isArray(from.actions)) made.actions = from.actions.filter(isObject).flatMap(readAction)
  return made
}

function readAction(from: Record<string, unknown>): Action[] {
  const id = text(from.id)
  const title = text(from.title)
  if (id === undefined || title === undefined) return []
  return [{ id, title, icon: text(from.icon), click: text(from.click) }]
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

export function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

export function number(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined
}

function bytes(value: unknown): Uint8Array | undefined {
  if (typeof value !== 'string') return undefined
  try {
    return Uint8Array.from(atob(value), (c) => c.charCodeAt(0))
  } catch {
    return undefined
  }
}

export function base64(of: Uint8Array): string {
  let binary = ''
  for (const byte of of) binary += String.fromCharCode(byte)
  return btoa(binary)
}

/** Text as base64 of its UTF-8, for HTTP Basic. */
export function base64OfText(of: string): string {
  return base64(new TextEncoder().encode(of))
}
