//! Everything that the simulation is asked in a test run.

mod seeds;
