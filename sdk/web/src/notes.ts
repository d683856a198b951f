// What has to outlive the page: which messages were seen, which of them no listener has handled yet, receipts that the
// server has not confirmed, and a few values. In IndexedDB, shared by all tabs; in memory where the browser has none.

import type { Step } from './api'
import type { Item } from './frames'

/** As many as the server can have in doubt, and more: docs/promises.md. */
export const SEEN_MAX = 2_000
export const SEEN_MS_MAX = 30 * 24 * 3_600_000

export interface Receipt {
  id: string
  step: Step
}

export interface Notes {
  /** Whether what is written here outlives the page. */
  readonly durable: boolean
  /** Notes items that have a key; answers, in order, which of them are new. Rejects if they may not be safe. */
  note(items: Item[], now: number): Promise<boolean[]>
  /** Items that were noted and not handled, oldest first. */
  open(): Promise<Item[]>
  handled(key: string): Promise<void>
  addReceipt(receipt: Receipt): Promise<void>
  receipts(): Promise<Receipt[]>
  dropReceipt(receipt: Receipt): Promise<void>
  get(name: string): Promise<unknown>
  set(name: string, value: unknown): Promise<void>
}

/** A browser's database can hang for good; then the messages go on without it. */
const PATIENCE_MS = 10_000

export async function openNotes(scope: string): Promise<Notes> {
  try {
    return new StoredNotes(scope, await patiently(openDatabase()))
  } catch {
    // A private window, a browser that was told to keep nothing, or a database that does not answer.
    return new MemoryNotes()
  }
}

const SEEN = 'seen'
const RECEIPTS = 'receipts'
const KEPT = 'kept'
const HIGHEST = '\uffff'

interface SeenRow {
  scope: string
  key: string
  at: number
  /** Only while no listener has handled it. */
  open?: 1
  item?: Item
}

function openDatabase(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('postrider', 1)
    request.onupgradeneeded = () => {
      const seen = request.result.createObjectStore(SEEN, { keyPath: ['scope', 'key'] })
      seen.createIndex('at', ['scope', 'at'])
      seen.createIndex('open', ['scope', 'open', 'at'])
      request.result.createObjectStore(RECEIPTS, { keyPath: ['scope', 'id', 'step'] })
      request.result.createObjectStore(KEPT)
    }
    request.onsuccess = () => {
      // A later version of this SDK in another tab may want to change the tables.
      request.result.onversionchange = () => request.result.close()
      resolve(request.result)
    }
    request.onerror = () => reject(request.error)
    request.onblocked = () => reject(new Error('blocked'))
  })
}

class StoredNotes implements Notes {
  readonly durable = true

  constructor(private readonly scope: string, private readonly database: IDBDatabase) {}

  async note(items: Item[], now: number): Promise<boolean[]> {
    const fresh = items.map(() => true)
    const written = this.write(SEEN, (seen) => {
      items.forEach((item, i) => {
        if (item.key === undefined) return
        // Times of their own keep the order of what came together.
        const row: SeenRow = { scope: this.scope, key: item.key, at: now + i / 1000, open: 1, item }
        const request = seen.get([this.scope, item.key])
        request.onsuccess = () => {
          fresh[i] = request.result === undefined
          if (fresh[i]) seen.put(row)
        }
      })
    })
    await patiently(written)
    void this.prune(now).catch(() => {})
    return fresh
  }

  /** Forgets what is older than a month, and what is more than the bound. */
  private prune(now: number): Promise<void> {
    return this.write(SEEN, (seen) => {
      const all = IDBKeyRange.bound([this.scope, -Infinity], [this.scope, Infinity])
      const count = seen.index('at').count(all)
      count.onsuccess = () => {
        let surplus = count.result - SEEN_MAX
        const walk = seen.index('at').openCursor(all)
        walk.onsuccess = () => {
          const cursor = walk.result
          if (!cursor) return
          const row = cursor.value as SeenRow
          if (surplus-- <= 0 && row.at > now - SEEN_MS_MAX) return
          if (!row.open) cursor.delete()
          cursor.continue()
        }
      }
    })
  }

  async open(): Promise<Item[]> {
    const index = this.store(SEEN, 'readonly').index('open')
    const rows = await answer(index.getAll(IDBKeyRange.bound([this.scope, 1, -Infinity], [this.scope, 1, Infinity])))
    return (rows as SeenRow[]).map((row) => row.item!)
  }

  handled(key: string): Promise<void> {
    return this.write(SEEN, (seen) => {
      const request = seen.get([this.scope, key])
      request.onsuccess = () => {
        const row = request.result as SeenRow | undefined
        if (row?.open) seen.put({ scope: row.scope, key: row.key, at: row.at })
      }
    })
  }

  addReceipt(receipt: Receipt): Promise<void> {
    return this.write(RECEIPTS, (receipts) => receipts.put({ scope: this.scope, ...receipt }))
  }

  receipts(): Promise<Receipt[]> {
    const range = IDBKeyRange.bound([this.scope], [this.scope, HIGHEST, HIGHEST])
    return answer(this.store(RECEIPTS, 'readonly').getAll(range)) as Promise<Receipt[]>
  }

  dropReceipt(receipt: Receipt): Promise<void> {
    return this.write(RECEIPTS, (receipts) => receipts.delete([this.scope, receipt.id, receipt.step]))
  }

  get(name: string): Promise<unknown> {
    return answer(this.store(KEPT, 'readonly').get([this.scope, name]))
  }

  set(name: string, value: unknown): Promise<void> {
    return this.write(KEPT, (kept) => kept.put(value, [this.scope, name]))
  }

  private store(name: string, mode: IDBTransactionMode): IDBObjectStore {
    return this.database.transaction(name, mode, { durability: 'strict' }).objectStore(name)
  }

  /** Resolves when the transaction is on disk: that is what an acknowledgement promises. */
  private write(name: string, work: (store: IDBObjectStore) => unknown): Promise<void> {
    return new Promise((resolve, reject) => {
      const store = this.store(name, 'readwrite')
      store.transaction.oncomplete = () => resolve()
      store.transaction.onabort = store.transaction.onerror = () => reject(store.transaction.error)
      work(store)
    })
  }
}

function patiently<T>(work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timeout = setTimeout(() => reject(new Error('timeout')), PATIENCE_MS)
    work.then(resolve, reject).finally(() => clearTimeout(timeout))
  })
}

function answer<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

/** The same in memory. A message is then acknowledged only after its listener has ended. */
export class MemoryNotes implements Notes {
  readonly durable = false
  private readonly seen = new Map<string, Item | undefined>()
  private readonly unconfirmed = new Map<string, Receipt>()
  private readonly kept = new Map<string, unknown>()

  async note(items: Item[]): Promise<boolean[]> {
    const fresh = items.map((item) => {
      if (item.key === undefined) return true
      if (this.seen.has(item.key)) return false
      this.seen.set(item.key, item)
      return true
    })
    for (const key of this.seen.keys()) {
      if (this.seen.size <= SEEN_MAX) break
      this.seen.delete(key)
    }
    return fresh
  }

  async open(): Promise<Item[]> {
    return [...this.seen.values()].filter((item): item is Item => item !== undefined)
  }

  async handled(key: string): Promise<void> {
    if (this.seen.has(key)) this.seen.set(key, undefined)
  }

  async addReceipt(receipt: Receipt): Promise<void> {
    this.unconfirmed.set(`${receipt.step} ${receipt.id}`, receipt)
  }

  async receipts(): Promise<Receipt[]> {
    return [...this.unconfirmed.values()]
  }

  async dropReceipt(receipt: Receipt): Promise<void> {
    this.unconfirmed.delete(`${receipt.step} ${receipt.id}`)
  }

  async get(name: string): Promise<unknown> {
    return this.kept.get(name)
  }

  async set(name: string, value: unknown): Promise<void> {
    this.kept.set(name, value)
  }
}
