//! Everything that the simulation is asked in a test run.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cycles;
mod mended;
mod seeded;
mod seeds;
