// What became of each message: asks the server, and draws the steps as they come.

import { byId, CHECK, CROSS, glyph, make } from './dom.js'
import { locale, t } from './strings.js'

const WAY = ['accepted', 'queued', 'sent', 'delivered', 'displayed', 'clicked']
/** A data message is not shown, so its way ends earlier. */
const DATA_WAY = WAY.slice(0, 4)
const LAST = ['clicked', 'dismissed', 'replied', 'expired', 'superseded', 'evicted', 'cancelled', 'rejected', 'erased', 'handed_over']
/** Beside the way, and no end without delivery. */
const GOES_ON = ['forwarded', 'dismissed', 'replied']
const KEPT_MAX = 6
const ASK_MS = 350
const ASK_SLOWLY_MS = 2500
const SLOWLY_AFTER_MS = 30_000
const GIVE_UP_MS = 15 * 60_000

export class Ledger {
  /** `ask(id)` answers the timeline of a message, or nothing while it cannot be had. `changed` is told that one is followed. */
  constructor (ask, changed) {
    this.ask = ask
    this.changed = changed
    byId('mini').addEventListener('click', () => byId('ledger').scrollIntoView())
    this.entries = []
  }

  /** Follows a message that was just sent. */
  follow (id, kind, title, payload) {
    const entry = { id, kind, title, payload, reply: undefined, steps: [], since: Date.now(), drawn: new Set() }
    this.entries.unshift(entry)
    for (const old of this.entries.splice(KEPT_MAX)) clearTimeout(old.timer)
    this.current = entry
    this.draw()
    this.look(entry)
    this.changed()
  }

  /** What was sent, oldest first. */
  sent () {
    return this.entries.map(({ id, kind, title, payload, reply }) => ({ id, kind, title, payload, reply })).reverse()
  }

  /** What was sent before the page was loaded anew. */
  restore (sent) {
    for (const { id, kind, title, payload, reply } of sent) {
      if (this.entries.some((entry) => entry.id === id)) continue
      this.follow(id, kind, title, payload)
      this.current.reply = reply
    }
  }

  /** What the visitor answered. */
  replied (id, text) {
    const entry = this.entries.find((it) => it.id === id)
    if (entry) entry.reply = text
    this.changed()
  }

  /** Something may have happened to it. */
  hint (id) {
    const entry = this.entries.find((it) => it.id === id)
    if (!entry) return
    entry.since = Date.now()
    clearTimeout(entry.timer)
    this.look(entry)
  }

  async look (entry) {
    const found = await this.ask(entry.id)
    if (found) this.update(entry, found)
    const waited = Date.now() - entry.since
    const over = LAST.includes(found?.state) || (entry.kind === 'data' && found?.state === 'delivered')
    if (over || waited > GIVE_UP_MS || !this.entries.includes(entry)) return
    clearTimeout(entry.timer)
    entry.timer = setTimeout(() => this.look(entry), waited > SLOWLY_AFTER_MS ? ASK_SLOWLY_MS : ASK_MS)
  }

  update (entry, found) {
    if (found.timeline.length === entry.steps.length) return
    entry.steps = found.timeline
    entry.reason = found.reason
    entry.since = Date.now()
    if (entry === this.current) {
      const last = found.timeline[found.timeline.length - 1]
      byId('announce').textContent = nameOf(last.step)
    }
    this.draw()
  }

  draw () {
    const entry = this.current
    if (!entry) return this.drawEmpty()
    const rows = rowsOf(entry).map((row) => drawRow(row, entry))
    byId('timeline').replaceChildren(
      make('div', { class: 'about' }, make('strong', {}, entry.title || t(`kind_${entry.kind}`)), make('code', { title: entry.id }, shortId(entry.id))),
      entry.payload ? make('pre', { class: 'payload' }, entry.payload) : '',
      make('ol', { class: 'steps', 'data-id': entry.id }, ...rows))
    for (const { step } of entry.steps) entry.drawn.add(step)
    const last = entry.steps[entry.steps.length - 1]
    byId('mini').hidden = !last
    if (last) byId('mini').textContent = `${nameOf(last.step)} · ${t('ledger')} ↓`
    this.drawEarlier()
  }

  /** The way that a message will take. */
  drawEmpty () {
    const rows = WAY.map((step) => make('li', {}, make('span', { class: 'mark', 'aria-hidden': 'true' }), make('span', { class: 'name' }, nameOf(step))))
    byId('timeline').replaceChildren(make('p', { class: 'empty' }, t('ledger_empty')), make('ol', { class: 'steps' }, ...rows))
  }

  drawEarlier () {
    const others = this.entries.filter((entry) => entry !== this.current)
    byId('earlier').hidden = others.length === 0
    byId('earlier-list').replaceChildren(...others.map((entry) => {
      const last = entry.steps[entry.steps.length - 1]
      const show = () => {
        this.current = entry
        this.draw()
      }
      return make('li', {}, make('button', { type: 'button', onclick: show },
        make('span', {}, entry.title || t(`kind_${entry.kind}`)), make('span', {}, last ? nameOf(last.step) : '…')))
    }))
  }
}

/** The steps that were, then those that are to come. */
function rowsOf (entry) {
  const at = new Map(entry.steps.map((it) => [it.step, Date.parse(it.at)]))
  const way = entry.kind === 'data' ? DATA_WAY : WAY
  const reached = Math.max(-1, ...entry.steps.map(({ step }) => way.indexOf(step)))
  const others = entry.steps.filter(({ step }) => !way.includes(step)).map(({ step }) => step)
  const stops = others.filter((step) => step !== 'forwarded')
  const rows = way.map((step, i) => ({ step, at: at.get(step), done: at.has(step) || i < reached }))
  // What was put away, or ended, comes no further.
  const to = stops.length > 0 ? rows.filter((row) => row.done) : rows
  const next = to.find((row) => !row.done)
  if (next) next.next = true
  return [...to, ...others.map((step) => ({ step, at: at.get(step), done: true, ended: !GOES_ON.includes(step) }))]
}

function drawRow (row, entry) {
  const fresh = row.done && !entry.drawn.has(row.step)
  const classes = [row.done && 'done', row.ended && 'ended', row.next && 'next', fresh && 'fresh'].filter(Boolean).join(' ')
  const mark = make('span', { class: 'mark', 'aria-hidden': 'true' }, row.done ? glyph(row.ended ? CROSS : CHECK) : '')
  const why = row.step === 'replied' && entry.reply ? `“${entry.reply}”` : row.done ? wordsOrNothing(`why_${row.step}`) ?? entry.reason : row.next ? wordsOrNothing(`wait_${row.step}`) : undefined
  return make('li', { class: classes, 'data-step': row.step }, mark, make('span', { class: 'name' }, nameOf(row.step)),
    row.at === undefined ? '' : make('time', { datetime: new Date(row.at).toISOString() }, clock(row, entry)),
    why ? make('span', { class: 'why' }, why) : '')
}

/** The first step by the clock, the others by how much later they came. */
function clock (row, entry) {
  const first = Math.min(...entry.steps.map((it) => Date.parse(it.at)))
  if (row.step === 'accepted') {
    return new Intl.DateTimeFormat(locale(), { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3, hourCycle: 'h23' }).format(row.at)
  }
  const ms = row.at - first
  return ms < 1000 ? `+${ms} ms` : `+${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`
}

function nameOf (step) {
  return wordsOrNothing(`step_${step}`) ?? t('ended', { step })
}

function wordsOrNothing (name) {
  const words = t(name)
  return words === name ? undefined : words
}

function shortId (id) {
  return id.length > 14 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id
}
