//! Fuzzing without a nightly compiler: each body of [`bodies`] is a plain function over bytes, run by libFuzzer from `fuzz/`, and
//! by [`run`] in the tests.
//!
//! The runner is simple: it has no coverage to learn from. What libFuzzer learned lies in `fuzz/corpus/<target>`; the runner
//! replays all of it, then goes on from there by chance for `FUZZ_SECS` seconds (or, where that is not set, for a fixed number of
//! steps). Bodies of decoders that are private stand beside them, as tests whose names begin with `fuzz_`.

pub mod bodies;
pub mod json;
pub mod xmpp;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Steps where no time is given: enough to see that the body works.
const STEPS: u64 = 2_000;
const LEN_MAX: usize = 4_096;
/// Bytes at which decoders change their minds.
const EDGES: [u8; 12] = [0, 1, 0x0f, 0x10, 0x3f, 0x40, 0x7f, 0x80, 0x81, 0xc0, 0xfe, 0xff];

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(kind).join(target)
}

/// The kept corpus of a target, in the order of its names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> =
        fs::read_dir(folder("corpus", target)).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// Replays the corpus of `target`, then mutates it. Panics where the body does, and keeps the input in `fuzz/artifacts`.
pub fn run(target: &str, body: impl Fn(&[u8])) {
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{target} has no corpus");
    corpus.iter().for_each(|input| attempt(target, &body, input));
    let secs = variable("FUZZ_SECS");
    let seed = variable("FUZZ_SEED")
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64));
    let mut chance = Chance(seed | 1);
    let until = secs.map(|secs| Instant::now() + Duration::from_secs(secs));
    let mut steps = 0u64;
    while until.map_or(steps < STEPS, |until| Instant::now() < until) {
        let input = mutated(&corpus, &mut chance);
        attempt(target, &body, &input);
        steps += 1;
    }
    eprintln!("{target}: {} kept inputs, {steps} mutated ones, FUZZ_SEED={seed}", corpus.len());
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn attempt(target: &str, body: &impl Fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(input))) {
        let sum = input
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        let path = folder("artifacts", target).join(format!("crash-{sum:016x}"));
        let kept = fs::create_dir_all(folder("artifacts", target)).and_then(|()| fs::write(&path, input));
        eprintln!(
            "{target} fails on {} bytes, kept in {}: {kept:?}\n{input:02x?}",
            input.len(),
            path.display()
        );
        resume_unwind(panic);
    }
}

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() >> 16) as usize % n }
    }
}

fn mutated(corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(6) {
        mutate(&mut input, corpus, chance);
    }
    input.truncate(LEN_MAX);
    input
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Chance) {
    let at = chance.below(input.len());
    let end = (at + 1 + chance.below(16)).min(input.len());
    match chance.below(8) {
        0 if at < input.len() => input[at] ^= 1 << chance.below(8),
        1 if at < input.len() => input[at] = EDGES[chance.below(EDGES.len())],
        2 if at < input.len() => input[at] = chance.next() as u8,
        3 if at < input.len() => _ = input.drain(at..end),
        4 if at < input.len() => {
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        5 => input.insert(at, chance.next() as u8),
        6 => input.truncate(at),
        // Something that another input has, in the place of what was here.
        _ => {
            let other = &corpus[chance.below(corpus.len())];
            let from = chance.below(other.len());
            let to = (from + 1 + chance.below(64)).min(other.len());
            input.splice(at..end.max(at), other[from.min(to)..to].iter().copied());
        }
    }
}
