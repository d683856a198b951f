// Tabs of one origin share one connection: one of them leads and holds it, the others hear of everything over a
// BroadcastChannel. Who holds the Web Lock leads; the browser gives it to the next one when a tab closes or crashes.
//
// Web Locks need a secure context (https, or localhost). Without them the tabs lead by beacons: who has heard none for a
// while leads, and of two that lead the smaller id stays.

export interface TabEvents {
  lead(): void
  follow(): void
  hear(message: unknown): void
}

const BEACON_MS = 5_000
/** Browsers let timers of hidden tabs run only once a minute. */
const SILENCE_MS = 90_000
const ASK_MS = 400

export class Tabs {
  /** Names this tab for the others. */
  readonly id = Math.random().toString(36).slice(2)
  private readonly channel: BroadcastChannel | undefined
  private leave: (() => void) | undefined
  private leads = false

  constructor(private readonly name: string, private readonly events: TabEvents) {
    if (typeof BroadcastChannel === 'undefined') return
    this.channel = new BroadcastChannel(name)
    this.channel.onmessage = (event) => this.hear(event.data)
  }

  /** Stands for the lead, until `exit`. */
  enter(): void {
    if (this.leave) return
    if (navigator.locks) this.leave = this.queueForLock()
    else if (this.channel) this.leave = this.watchBeacons(this.channel)
    else {
      this.leave = () => {}
      this.setLeads(true)
    }
  }

  exit(): void {
    this.leave?.()
    this.leave = undefined
    this.leads = false
  }

  /** Tells the other tabs. */
  post(message: object): void {
    this.channel?.postMessage(message)
  }

  private queueForLock(): () => void {
    const abort = new AbortController()
    let release = () => {}
    const held = new Promise<void>((done) => (release = done))
    const request = navigator.locks.request(this.name, { signal: abort.signal }, () => {
      if (!abort.signal.aborted) this.setLeads(true)
      return held
    })
    request.catch(() => {}) // Aborted while it waited: that is how a tab stops standing.
    return () => {
      release()
      abort.abort()
    }
  }

  private heardBeacon: (from: string) => void = () => {}
  private heardFarewell: () => void = () => {}
  private heardQuestion: () => void = () => {}

  private watchBeacons(channel: BroadcastChannel): () => void {
    let silence: ReturnType<typeof setTimeout>
    const beacon = () => this.leads && channel.postMessage({ beacon: this.id })
    const await_ = (ms: number) => {
      clearTimeout(silence)
      silence = setTimeout(() => {
        this.setLeads(true)
        beacon()
      }, ms)
    }
    this.heardBeacon = (from) => {
      if (this.leads && from > this.id) return void beacon()
      this.setLeads(false)
      await_(SILENCE_MS * (1 + Math.random() / 4))
    }
    this.heardFarewell = () => !this.leads && await_(ASK_MS * Math.random())
    this.heardQuestion = beacon
    channel.postMessage({ beacon: '?' })
    await_(ASK_MS * (1 + Math.random()))
    const beat = setInterval(beacon, BEACON_MS)
    return () => {
      clearTimeout(silence)
      clearInterval(beat)
      if (this.leads) channel.postMessage({ beacon: '' })
      this.heardBeacon = this.heardFarewell = this.heardQuestion = () => {}
    }
  }

  private hear(message: { beacon?: string }): void {
    if (message.beacon === undefined) this.events.hear(message)
    else if (message.beacon === '?') this.heardQuestion()
    else if (message.beacon === '') this.heardFarewell()
    else this.heardBeacon(message.beacon)
  }

  private setLeads(leads: boolean): void {
    if (this.leads === leads) return
    this.leads = leads
    if (leads) this.events.lead()
    else this.events.follow()
  }
}
