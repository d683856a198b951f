// The drawn phone: its clock, its notifications, and the app that a click opens.

import { byId, CROSS, glyph, make } from './dom.js'
import { locale, pageOf, t } from './strings.js'

const NOTES_MAX = 20
const PILL_MS = 3500

export class Phone {
  /** `opened(push, action)`, `dismissed(push)` and `replied(push, text)` are told what the visitor does; `changed` that the shade did. */
  constructor ({ opened, dismissed, replied, changed }) {
    this.opened = opened
    this.dismissed = dismissed
    this.replied = replied
    this.changed = changed
    this.frame = byId('phone')
    this.list = byId('notes')
    this.app = byId('app')
    this.shown = new Map()
    for (const button of document.querySelectorAll('button[data-view]')) {
      button.addEventListener('click', () => this.show(button.dataset.view))
    }
    addEventListener('hashchange', () => this.route())
    this.route()
    this.tick()
  }

  /** `lock` or `shade`. Leaves the app. */
  show (view) {
    if (location.hash) history.pushState(null, '', location.pathname + location.search)
    this.frame.dataset.view = view
    for (const button of document.querySelectorAll('button[data-view]')) {
      button.setAttribute('aria-pressed', String(button.dataset.view === view))
    }
    this.route()
  }

  /** Draws a push. Answers whether somebody can see it. */
  add (push) {
    this.remove(push.id)
    if (!this.app.hidden) this.show('shade')
    const note = this.draw(push)
    this.shown.set(push.id, { push, note })
    this.list.prepend(note)
    this.list.scrollTop = 0
    note.addEventListener('animationend', () => note.classList.remove('arriving'), { once: true })
    if (this.shown.size > NOTES_MAX) this.remove(this.shown.keys().next().value)
    this.empty()
    this.changed()
    return document.visibilityState === 'visible'
  }

  remove (id) {
    this.shown.get(id)?.note.remove()
    if (this.shown.delete(id)) this.changed()
    this.empty()
  }

  /** The pushes in the shade, oldest first. */
  pushes () {
    return [...this.shown.values()].map(({ push }) => push)
  }

  /** What lay in the shade before the page was loaded anew. */
  restore (pushes) {
    for (const push of pushes) {
      if (this.shown.has(push.id)) continue
      this.add(push)
      this.shown.get(push.id).note.classList.remove('arriving')
    }
  }

  /** On a small screen the phone is further down. */
  scrollIntoView () {
    const { top, bottom, height } = this.frame.getBoundingClientRect()
    if (Math.min(bottom, innerHeight) - Math.max(top, 0) < height / 2) this.frame.scrollIntoView({ block: 'center' })
  }

  /** A data message shows nothing on a phone; the page says so all the same. */
  receivedData () {
    const pill = byId('pill')
    pill.textContent = t('data_came')
    pill.hidden = false
    clearTimeout(this.pillTimer)
    this.pillTimer = setTimeout(() => { pill.hidden = true }, PILL_MS)
  }

  /** In the language of now. */
  redraw () {
    for (const entry of this.shown.values()) {
      const note = this.draw(entry.push)
      note.classList.remove('arriving')
      entry.note.replaceWith(note)
      entry.note = note
    }
    byId('pill').textContent = t('data_came')
    this.route()
    this.drawClock()
  }

  draw (push) {
    const from = push.notification
    const title = from.title || t('untitled')
    const open = make('button', { type: 'button', class: 'note-open', onclick: () => this.leave(push, () => this.opened(push)) },
      make('img', { class: 'note-icon', src: '/demo/icon.svg', alt: '' }),
      make('span', { class: 'note-meta' }, make('span', {}, 'postrider'), make('time', { 'data-at': push.sent_at }, age(push.sent_at))),
      make('span', { class: 'note-title' }, title),
      from.body ? make('span', { class: 'note-body' }, from.body) : undefined,
      // Only pictures of this server: the page loads nothing else, and its policy forbids it too.
      from.image?.startsWith('/demo/') ? make('img', { class: 'note-picture', src: from.image, alt: '' }) : undefined)
    const actions = (from.actions ?? []).slice(0, 3).map((action) =>
      make('button', { type: 'button', onclick: () => action.id === 'reply' ? this.askReply(push) : this.leave(push, () => this.opened(push, action.id)) }, action.title))
    const dismiss = make('button', { type: 'button', class: 'note-dismiss', 'aria-label': t('dismiss', { title }),
      onclick: () => this.leave(push, () => this.dismissed(push)) }, glyph(CROSS, 12))
    return make('li', { class: 'note arriving', 'data-id': push.id }, open, dismiss,
      actions.length > 0 ? make('div', { class: 'note-actions' }, ...actions) : undefined)
  }

  /** A field to answer in takes the place of the buttons. */
  askReply (push) {
    const field = make('input', { name: 'reply', maxlength: '200', required: '', 'aria-label': t('reply'), placeholder: t('reply') })
    const send = (event) => {
      event.preventDefault()
      this.leave(push, () => this.replied(push, field.value))
    }
    const form = make('form', { class: 'note-reply', autocomplete: 'off', onsubmit: send }, field, make('button', { type: 'submit' }, t('send')))
    this.shown.get(push.id)?.note.querySelector('.note-actions')?.replaceWith(form)
    field.focus({ preventScroll: true })
  }

  leave (push, then) {
    const note = this.shown.get(push.id)?.note
    note?.classList.add('leaving')
    // Not by the animation's end: it may be switched off.
    setTimeout(() => this.remove(push.id), 260)
    then()
  }

  /** Shows the app when the address names a page of it. */
  route () {
    const route = location.hash
    const opened = route.startsWith('#/')
    this.app.hidden = !opened
    this.frame.classList.toggle('opened', opened)
    if (!opened) return
    const page = pageOf(route)
    this.app.replaceChildren(
      make('button', { type: 'button', class: 'back', onclick: () => this.show(this.frame.dataset.view) }, `‹ ${t('back')}`),
      page.picture ? make('img', { src: `/demo/${page.picture}.svg`, alt: '' }) : '',
      make('h3', {}, page.title), make('p', {}, page.text), make('p', { class: 'fine' }, t('opened_by')), make('code', {}, location.pathname + route))
    this.app.focus({ preventScroll: true })
  }

  empty () {
    byId('no-notes').hidden = this.shown.size > 0
  }

  tick () {
    this.drawClock()
    setTimeout(() => this.tick(), 1000 - Date.now() % 1000)
  }

  drawClock () {
    const now = new Date()
    const time = new Intl.DateTimeFormat(locale(), { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }).format(now)
    const date = new Intl.DateTimeFormat(locale(), { weekday: 'long', month: 'long', day: 'numeric' }).format(now)
    for (const [id, words] of [['clock', time], ['small-clock', time], ['date', date]]) {
      if (byId(id).textContent !== words) byId(id).textContent = words
    }
    for (const label of this.list.querySelectorAll('time')) {
      const words = age(Number(label.dataset.at))
      if (label.textContent !== words) label.textContent = words
    }
  }
}

function age (at) {
  const minutes = Math.floor((Date.now() - at) / 60_000)
  return minutes >= 1 ? t('minutes', { n: minutes }) : t('now')
}
