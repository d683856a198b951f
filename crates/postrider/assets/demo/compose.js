// The form: examples, what is in it, and the message that it makes.

import { byId, make } from './dom.js'
import { examplesNow, t, TARGETS } from './strings.js'

const PICTURES = ['none', 'parcel', 'rain', 'sea']
const DATA = { type: 'sync', cart: 3 }

export class Compose {
  /** `send(kind, body)` answers a sentence about what went wrong, or nothing. */
  constructor (send) {
    this.form = byId('form')
    this.fields = this.form.elements
    this.send = send
    this.example = 'order'
    this.fields.data.value = JSON.stringify(DATA, null, 2)
    this.form.addEventListener('submit', (event) => {
      event.preventDefault()
      this.submit()
    })
    byId('send-later').addEventListener('click', () => this.form.reportValidity() && this.countDown(5))
    for (const radio of this.fields.kind) radio.addEventListener('change', () => this.kindChanged())
    this.redraw()
    this.kindChanged()
    this.fill(this.example)
  }

  get kind () {
    return this.fields.kind.value
  }

  kindChanged () {
    const data = this.kind === 'data'
    byId('notification-fields').hidden = data
    byId('data-fields').hidden = !data
    this.fields.title.required = !data
  }

  /** In the language of now. What the visitor wrote stays as it is. */
  redraw () {
    const filled = this.untouched
    const picture = this.fields.picture?.value ?? 'none'
    const target = this.fields.target.value
    byId('examples').replaceChildren(...examplesNow().map((example) =>
      make('button', { type: 'button', 'data-example': example.id, onclick: () => this.fill(example.id) }, example.chip)))
    byId('pictures').replaceChildren(...PICTURES.map((name) => make('label', {},
      make('input', { type: 'radio', name: 'picture', value: name, 'aria-label': t(`picture_${name}`) }),
      make('span', { class: 'thumb' }, name === 'none' ? t('picture_none') : make('img', { src: `/demo/${name}.svg`, alt: '' })))))
    this.fields.target.replaceChildren(...Object.keys(TARGETS).map((name) => make('option', { value: name }, t(`target_${name}`))))
    this.fields.picture.value = picture
    if (target) this.fields.target.value = target
    if (filled) this.fill(this.example)
  }

  get untouched () {
    return this.filled !== undefined && this.fields.title.value === this.filled.title && this.fields.body.value === this.filled.body
  }

  fill (id) {
    const example = examplesNow().find((it) => it.id === id)
    this.example = id
    this.filled = example
    this.fields.title.value = example.title
    this.fields.body.value = example.body
    this.fields.picture.value = example.picture
    this.fields.target.value = example.target
  }

  /** The body of POST /demo/push; throws where the JSON is none. */
  message () {
    if (this.kind === 'data') return { data: JSON.parse(this.fields.data.value) }
    const { title, body, picture, target, buttons } = this.fields
    const notification = { title: title.value, body: body.value, icon: '/demo/icon.svg' }
    if (picture.value !== 'none') notification.image = `/demo/${picture.value}.svg`
    if (TARGETS[target.value]) notification.click = TARGETS[target.value]
    if (buttons.checked) {
      const actions = examplesNow().find((it) => it.id === this.example).actions
      notification.actions = actions.map(({ id, title, target }) => ({ id, title, ...(target ? { click: TARGETS[target] } : {}) }))
    }
    return { notification }
  }

  async submit () {
    const button = byId('send')
    let body
    try {
      body = this.message()
    } catch {
      return this.say(t('not_json'))
    }
    button.disabled = true
    button.textContent = t('sending')
    this.say(await this.send(this.kind, body))
    button.disabled = false
    button.textContent = t('send')
  }

  countDown (secs) {
    const button = byId('send-later')
    button.disabled = secs > 0
    button.textContent = secs > 0 ? t('in_seconds', { s: secs }) : t('send_later')
    if (secs > 0) setTimeout(() => this.countDown(secs - 1), 1000)
    else this.submit()
  }

  say (problem) {
    byId('problem').hidden = !problem
    byId('problem').textContent = problem ?? ''
  }
}
