// The live page: this browser as a device that sends pushes to itself. The SDK is the global `postrider`.

import { Compose } from './compose.js'
import { byId } from './dom.js'
import { Ledger } from './ledger.js'
import { Phone } from './phone.js'
import { currentLanguage, locale, read, setLanguage, t, translate, write } from './strings.js'

const REGISTRATION = { endpoint: '/demo/devices', attributes: { page: 'demo' } }
/** The page does without a worker that takes longer. */
const WORKER_MS = 2000
const { postrider } = window

let credentials
let client
let joined = true
/** Why this browser could not be registered. */
let trouble

const phone = new Phone({
  opened: async (push, action) => {
    await client.click(push, action)
    ledger.hint(push.id)
  },
  dismissed: async (push) => {
    await client.dismissed(push.id)
    ledger.hint(push.id)
  },
  replied: async (push, text) => {
    ledger.replied(push.id, text)
    await client.replied(push)
    ledger.hint(push.id)
  },
  changed: remember,
})

const ledger = new Ledger(async (id) => {
  const answer = await request(`/demo/messages/${encodeURIComponent(id)}`).catch(() => undefined)
  return answer?.ok ? answer.json() : undefined
}, remember)

const compose = new Compose(async (kind, body) => {
  try {
    const answer = await request('/demo/push', body)
    const told = await answer.json().catch(() => ({}))
    if (!answer.ok) return t('failed', { why: told.error?.message ?? answer.status })
    const payload = kind === 'data' ? JSON.stringify(body.data, null, 2) : undefined
    ledger.follow(told.message_id, kind, body.notification?.title, payload)
    phone.scrollIntoView()
  } catch {
    return t('unreachable')
  }
})

const PAST = 'postrider.demo.past'

/** A page that is loaded anew shows what it showed, as long as this browser is the same device. */
function remember () {
  if (!credentials) return
  try {
    sessionStorage.setItem(PAST, JSON.stringify({ device: credentials.device, sent: ledger.sent(), shade: phone.pushes() }))
  } catch {
    // A private window, or one that is full: the past goes with the page.
  }
}

function recall () {
  let past
  try {
    past = JSON.parse(sessionStorage.getItem(PAST))
  } catch {
    return
  }
  if (past?.device !== credentials.device) return
  ledger.restore(past.sent)
  phone.restore(past.shade)
}

function request (path, body) {
  const { device, secret } = credentials
  const headers = { Authorization: `Basic ${btoa(`${device}:${secret}`)}` }
  if (body === undefined) return fetch(path, { headers, cache: 'no-store' })
  return fetch(path, { method: 'POST', headers: { ...headers, 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
}

/** What shows the browser's notifications with their buttons; nothing where the page is not secure (plain http). */
async function registerWorker () {
  try {
    const registration = await navigator.serviceWorker.register('/sdk/worker.js')
    const installing = registration.installing ?? registration.waiting
    if (!registration.active) await new Promise((done) => installing.addEventListener('statechange', () => installing.state === 'activated' && done()))
    return registration
  } catch {
    return undefined
  }
}

/** Registers this browser, or takes what it was registered as, and connects. */
async function begin () {
  const worker = await Promise.race([registerWorker(), new Promise((done) => setTimeout(done, WORKER_MS))])
  client = postrider.open({ ...REGISTRATION, notifications: 'always', worker })
  client.on('registered', (registered) => {
    credentials = registered
    trouble = undefined
    byId('device').textContent = byId('device').title = credentials.device
    recall()
  })
  client.on('status', drawStatus)
  client.onPush(received)
  client.on('click', stayHere)
  client.on('error', (error) => {
    if (!credentials) trouble = error.message
    console.warn(error)
  })
  client.connect()
  drawStatus()
}

async function received (push) {
  if (push.notification) {
    if (phone.add(push)) await client.displayed(push.id)
  } else {
    phone.receivedData()
  }
  ledger.hint(push.id)
}

/** A click that leads to a route of this page needs no new page. */
function stayHere (click) {
  const target = click.target && new URL(click.target)
  if (!target || target.origin !== location.origin || target.pathname !== location.pathname) return
  click.preventDefault()
  location.hash = target.hash
}

function drawStatus () {
  if (!client) return
  const status = client.status
  const { state, road, leader, retryInMs } = status
  byId('dot').dataset.state = state
  byId('state').textContent = client.describe(locale()).split(' · ')[0]
  byId('road').textContent = state === 'online' ? { websocket: 'WebSocket', sse: 'SSE', poll: 'HTTP poll' }[road] : '–'
  byId('tab').textContent = state === 'online' ? t(leader ? 'tab_leader' : 'tab_follower') : '–'
  byId('detail').textContent = trouble ? t('no_device', { why: trouble }) : detailOf(state, retryInMs)
  byId('cut').textContent = t(joined ? 'cut' : 'join')
  document.body.dataset.connection = state
}

function detailOf (state, retryInMs) {
  if (state === 'online') return t('online_detail')
  if (state === 'waiting' && retryInMs !== undefined) return t('retry', { s: Math.ceil(retryInMs / 1000) })
  return state === 'connecting' ? '' : t('away_detail')
}

byId('cut').addEventListener('click', () => {
  if (!client) return
  joined = !joined
  if (joined) client.connect()
  else client.disconnect()
  drawStatus()
})

// The browser's own notifications.

function drawPermission () {
  byId('permit').hidden = typeof Notification === 'undefined' || Notification.permission !== 'default'
}

byId('permit').addEventListener('click', async () => {
  await client?.requestPermission()
  drawPermission()
})

// Language and colours.

for (const button of document.querySelectorAll('[data-language]')) {
  button.addEventListener('click', () => {
    if (button.dataset.language === currentLanguage()) return
    setLanguage(button.dataset.language)
    compose.redraw()
    phone.redraw()
    ledger.draw()
    drawStatus()
  })
}

const prefersDark = matchMedia('(prefers-color-scheme: dark)')

function drawTheme () {
  document.documentElement.dataset.theme = read('postrider.demo.theme') ?? (prefersDark.matches ? 'dark' : 'light')
}

byId('theme').addEventListener('click', () => {
  write('postrider.demo.theme', document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark')
  drawTheme()
})
prefersDark.addEventListener('change', drawTheme)

drawTheme()
translate()
drawPermission()
ledger.draw()
// The time until the next attempt runs down.
setInterval(drawStatus, 1000)
begin()
