// A real browser for browser.py: commands as JSON lines on standard input, answers by their id on standard output.
// It opens pages, runs code in them, clicks, and tells what they said; what has to hold is decided in Python.

import { createInterface } from 'node:readline'
import puppeteer from 'puppeteer-core'

const browser = await puppeteer.launch({
  executablePath: process.argv[2],
  headless: true,
  // Chromium refuses its sandbox to root. Tabs have to run as if each were the one that is looked at. A name that is not
  // localhost is no secure context.
  args: ['--no-sandbox', '--host-resolver-rules=MAP insecure.test 127.0.0.1', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-timer-throttling',
    '--disable-renderer-backgrounding', '--disable-backgrounding-occluded-windows'],
})

const contexts = new Map()
const tabs = new Map()
let numbers = 0

function watch (page, log) {
  page.on('console', (message) => log.push(`console ${message.type()}: ${message.text()}`))
  page.on('pageerror', (error) => log.push(`error: ${error.message}`))
  page.on('dialog', (dialog) => {
    log.push(`dialog: ${dialog.message()}`)
    dialog.dismiss()
  })
}

const commands = {
  async context ({ origins }) {
    const context = await browser.createBrowserContext()
    for (const origin of origins) await context.overridePermissions(origin, ['notifications'])
    contexts.set(++numbers, context)
    return numbers
  },
  async end ({ context }) {
    await contexts.get(context).close()
    contexts.delete(context)
  },
  async open ({ context, url }) {
    const page = await contexts.get(context).newPage()
    const tab = ++numbers
    tabs.set(tab, { page, log: [] })
    watch(page, tabs.get(tab).log)
    await page.goto(url, { waitUntil: 'load' })
    return tab
  },
  /** Runs the body of an async function with `args`. Over the inspector, so that no policy of the page forbids it. */
  async run ({ tab, body, args }) {
    return tabs.get(tab).page.evaluate(`(async (args) => { ${body} })(${JSON.stringify(args)})`)
  },
  /** The same in the service worker of a window. */
  async inWorker ({ context, body, args }) {
    const target = await contexts.get(context).waitForTarget((it) => it.type() === 'service_worker', { timeout: 15000 })
    return (await target.worker()).evaluate(`(async (args) => { ${body} })(${JSON.stringify(args)})`)
  },
  async click ({ tab, selector }) {
    await tabs.get(tab).page.locator(selector).setTimeout(15000).click()
  },
  async fill ({ tab, selector, text }) {
    await tabs.get(tab).page.locator(selector).setTimeout(15000).fill(text)
  },
  async load ({ tab, url }) {
    const { page } = tabs.get(tab)
    if (url) await page.goto(url, { waitUntil: 'load' })
    else await page.reload({ waitUntil: 'load' })
  },
  async lifecycle ({ tab, state }) {
    const session = await tabs.get(tab).page.createCDPSession()
    await session.send('Page.setWebLifecycleState', { state })
    await session.detach()
  },
  /** Chromium tells the page, and lets no new connection through. */
  async offline ({ tab, offline }) {
    await tabs.get(tab).page.setOfflineMode(offline)
  },
  async close ({ tab }) {
    await tabs.get(tab).page.close()
    tabs.delete(tab)
  },
  async picture ({ tab, path, full }) {
    await tabs.get(tab).page.screenshot({ path, fullPage: full })
  },
  async log ({ tab }) {
    return tabs.get(tab).log
  },
}

async function answer (line) {
  const { id, command, ...fields } = JSON.parse(line)
  let said
  try {
    said = { id, value: await commands[command](fields) ?? null }
  } catch (error) {
    said = { id, error: String(error.message ?? error) }
  }
  process.stdout.write(JSON.stringify(said) + '\n')
}

const lines = createInterface({ input: process.stdin })
lines.on('line', (line) => void answer(line))
lines.on('close', async () => {
  await browser.close()
  process.exit(0)
})
