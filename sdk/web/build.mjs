// Builds the SDK into the server's assets. The server embeds what is committed there, so that building it needs no Node.
//
//   node build.mjs            writes crates/postrider/assets/sdk
//   node build.mjs --check    fails if what is committed there is not exactly what this source gives, or is too large
//   node build.mjs --tests    bundles the unit tests into build/test
//   node build.mjs --examples compiles the examples of README.md strictly against the types that the server serves

import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const here = dirname(fileURLToPath(import.meta.url))
const assets = join(here, '../../crates/postrider/assets/sdk')
const GZIPPED_MAX = 12 * 1024

const shared = {
  absWorkingDir: here,
  bundle: true,
  charset: 'utf8',
  legalComments: 'none',
  logLevel: 'warning',
  minify: true,
  sourcemap: 'linked',
  target: 'es2020',
  write: false,
}

/** name → bytes */
async function products () {
  const made = new Map()
  const module = { entryPoints: ['src/index.ts'], format: 'esm', outfile: 'out/postrider.mjs' }
  const script = { entryPoints: ['src/index.ts'], format: 'iife', globalName: 'postrider', outfile: 'out/postrider.js' }
  const worker = { entryPoints: ['src/worker.ts'], format: 'iife', outfile: 'out/worker.js' }
  for (const options of [module, script, worker]) {
    const { outputFiles } = await build({ ...shared, ...options })
    for (const file of outputFiles) made.set(file.path.split('/').pop(), Buffer.from(file.contents))
  }
  made.set('postrider.d.ts', Buffer.from(declarations()))
  return made
}

/** One file: the types of api.ts, and what index.ts adds. */
function declarations () {
  const folder = join(here, 'build/types')
  const options = ['--declaration', '--emitDeclarationOnly', '--outDir', folder, '--rootDir', 'src', '--noEmit', 'false']
  const tsc = join(here, 'node_modules/typescript/bin/tsc')
  execFileSync(process.execPath, [tsc, '--project', join(here, 'tsconfig.build.json'), ...options], { cwd: here, stdio: 'inherit' })
  const read = (name) => readFileSync(join(folder, `${name}.d.ts`), 'utf8')
  const own = (text) => text.replace(/^(import|export [*{]).*\n/gm, '')
  const functions = ['register', 'target', 'index'].map((name) => own(read(name)))
  return [read('api'), ...functions, 'export as namespace postrider\n'].join('\n')
}

function check (made) {
  let sound = true
  for (const [name, bytes] of made) {
    let committed
    try {
      committed = readFileSync(join(assets, name))
    } catch {
      committed = undefined
    }
    if (!committed?.equals(bytes)) {
      console.error(`${name} is not what the source gives: run \`npm run build\` in sdk/web and commit it`)
      sound = false
    }
  }
  return sound
}

function sizes (made) {
  let sound = true
  for (const name of ['postrider.mjs', 'postrider.js', 'worker.js']) {
    const gzipped = gzipSync(made.get(name), { level: 9 }).length
    console.log(`${name}: ${made.get(name).length} bytes, ${gzipped} gzipped`)
    if (gzipped > GZIPPED_MAX) {
      console.error(`${name}: at most ${GZIPPED_MAX} bytes gzipped`)
      sound = false
    }
  }
  return sound
}

async function tests () {
  const folder = join(here, 'test')
  const entryPoints = readdirSync(folder).filter((name) => name.endsWith('.test.ts')).map((name) => join(folder, name))
  rmSync(join(here, 'build/test'), { recursive: true, force: true })
  await build({ ...shared, entryPoints, format: 'esm', platform: 'node', minify: false, sourcemap: 'inline', write: true,
    outdir: 'build/test', outExtension: { '.js': '.mjs' } })
}

/** Each example as a file that knows the global `postrider` by its committed types, as an app in TypeScript would. */
function examples () {
  const folder = join(here, 'build/examples')
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const blocks = [...readFileSync(join(here, 'README.md'), 'utf8').matchAll(/^```(html|js|ts)\n(.*?)^```/gms)]
  const scripts = blocks.map(([, kind, text]) => kind === 'html' ? inScripts(text) : text)
  if (scripts.length < 2 || scripts.some((text) => text.trim() === '')) throw new Error('README.md: examples are missing')
  const types = `/// <reference path=${JSON.stringify(join(assets, 'postrider.d.ts'))} />\n`
  const files = scripts.map((text, at) => {
    const file = join(folder, `example-${at + 1}.ts`)
    // In braces, so that one example's names are not the other's.
    writeFileSync(file, `${types}{\n${text}}\n`)
    return file
  })
  const tsc = join(here, 'node_modules/typescript/bin/tsc')
  const compilerOptions = { noEmit: true, strict: true, noUncheckedIndexedAccess: true, target: 'es2022', lib: ['es2022', 'dom'], types: [] }
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files }))
  execFileSync(process.execPath, [tsc, '--project', folder], { cwd: here, stdio: 'inherit' })
  console.log(`README.md: ${files.length} examples compile`)
}

function inScripts (html) {
  return [...html.matchAll(/<script>(.*?)<\/script>/gs)].map(([, text]) => text).join('\n')
}

if (process.argv.includes('--examples')) {
  examples()
} else if (process.argv.includes('--tests')) {
  await tests()
} else {
  const made = await products()
  const sound = process.argv.includes('--check') ? check(made) : true
  if (!process.argv.includes('--check')) {
    mkdirSync(assets, { recursive: true })
    for (const [name, bytes] of made) writeFileSync(join(assets, name), bytes)
  }
  process.exit(sizes(made) && sound ? 0 : 1)
}
