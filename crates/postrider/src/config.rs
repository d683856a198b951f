//! The configuration: what can be set, where it comes from, what it becomes.
//!
//! | file | what it has |
//! | --- | --- |
//! | `sections` | every setting with its default and its sentence: the one place to add one |
//! | `values` | values with a form of their own: addresses, words |
//! | `load` | file, environment, flags, and errors that tell where |
//! | `bounds` | the least and the most of each number |
//! | `validate` | what is wrong between settings |
//! | `into` | settings as the parts of the server want them |
//! | `docs` | the example file and the reference, out of `sections` |

mod bounds;
pub mod docs;
mod into;
mod load;
mod sections;
#[cfg(test)]
mod tests;
mod validate;
mod values;

pub use load::{ConfigError, PRESETS, Sources};
pub use sections::*;
pub use values::LogFormat;
