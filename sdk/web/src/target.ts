// Where a click may lead. What a sender wrote is not to be trusted with more than the pages of this site.

/**
 * The address to open, or nothing where it is not a page of this site or of an origin in `allowed`. Only http and https:
 * `javascript:`, `data:` and the like never pass.
 */
export function safeTarget(click: string | undefined, here: string, allowed: string[] = []): string | undefined {
  if (!click) return undefined
  let url: URL
  try {
    url = new URL(click, here)
  } catch {
    return undefined
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') return undefined
  // A name and password in an address are there to deceive.
  if (url.username || url.password) return undefined
  return url.origin === new URL(here).origin || allowed.includes(url.origin) ? url.href : undefined
}
