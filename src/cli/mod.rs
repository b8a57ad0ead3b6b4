//! The command line. The only place, with `main`, that names a concrete backend.

pub mod synth;
