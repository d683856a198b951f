//! The configuration: what can be set, where it comes from, what it becomes.
//!
//! | file | what it has |
//! | --- | --- |
//! | `sections` | every setting with its default and its sentence: the one place to add one |
//! | `values` | values with a form of their own: addresses, words |
//! | `load` | file, environment, flags, and errors that tell where |
//! | `validate` | what is wrong between settings |
//! | `into` | settings as the parts of the server want them |
//! | `docs` | the example file and the reference, out of `sections` |

pub mod docs;
mod into;
mod load;
mod sections;
#[cfg(test)]
mod tests;
mod validate;
mod values;

#[cfg(test)]
use load::ConfigError;
pub use load::{PRESETS, Sources};
pub use sections::*;
pub use values::LogFormat;
