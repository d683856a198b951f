// Makes elements. Whatever comes from outside goes in as text or as an attribute, never as HTML.

/** `make('p', {class: 'fine'}, 'text', child)`; `on…` attributes are listeners, undefined ones are left out. */
export function make (name, attributes = {}, ...children) {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value)
    else if (value !== undefined) element.setAttribute(key, value)
  }
  element.append(...children.filter((child) => child !== undefined))
  return element
}

const SVG = 'http://www.w3.org/2000/svg'

/** A small line drawing. */
export function glyph (path, size = 14) {
  const svg = document.createElementNS(SVG, 'svg')
  const attributes = { viewBox: '0 0 16 16', width: size, height: size, fill: 'none', stroke: 'currentColor', 'stroke-width': 2.2,
    'stroke-linecap': 'round', 'stroke-linejoin': 'round', 'aria-hidden': 'true' }
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value)
  const line = document.createElementNS(SVG, 'path')
  line.setAttribute('d', path)
  svg.append(line)
  return svg
}

export const CHECK = 'm3.5 8.5 3 3 6-7'
export const CROSS = 'M4 4l8 8M12 4l-8 8'

export function byId (id) {
  return document.getElementById(id)
}
