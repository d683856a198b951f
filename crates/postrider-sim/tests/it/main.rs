//! Everything that the simulation is asked in a test run.

mod seeded;
mod seeds;
