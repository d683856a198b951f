// The SDK's own words, for people.

import type { Road, Status } from './api'

type Words = Record<Status['state'] | Road | 'untitled' | 'again' | 'taken_over' | 'revoked' | 'not_authorized', string>

const ENGLISH: Words = {
  idle: 'Not connected',
  connecting: 'Connecting…',
  online: 'Connected',
  waiting: 'No connection',
  offline: 'No network',
  frozen: 'Paused by the browser',
  stopped: 'Disconnected',
  websocket: 'WebSocket',
  sse: 'event stream',
  poll: 'polling',
  untitled: 'New message',
  again: 'next attempt in {s} s',
  taken_over: 'the device is connected elsewhere',
  revoked: 'the device was removed',
  not_authorized: 'the sign-in was refused',
}

const CHINESE: Words = {
  idle: '未连接',
  connecting: '正在连接…',
  online: '已连接',
  waiting: '连接已断开',
  offline: '没有网络',
  frozen: '已被浏览器暂停',
  stopped: '已停止',
  websocket: 'WebSocket',
  sse: '事件流',
  poll: '轮询',
  untitled: '新消息',
  again: '{s} 秒后重试',
  taken_over: '设备已在别处连接',
  revoked: '设备已被移除',
  not_authorized: '登录被拒绝',
}

export function wordsOf(language: string | undefined): Words {
  return /^zh\b/i.test(language ?? '') ? CHINESE : ENGLISH
}

export function describe(status: Status, language: string | undefined): string {
  const words = wordsOf(language)
  const more: string[] = []
  if (status.state === 'online' && status.road) more.push(words[status.road])
  if (status.retryInMs !== undefined) more.push(words.again.replace('{s}', String(Math.ceil(status.retryInMs / 1000))))
  if (status.state === 'stopped' && status.reason) more.push(words[status.reason as keyof Words] ?? status.reason)
  return [words[status.state], ...more].join(' · ')
}
