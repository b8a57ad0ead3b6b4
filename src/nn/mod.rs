//! Encoders and decoders: pure graph builders, the parameter registry, and initial values. No backend in sight.
//!
//! Letters: `D` width of an encoder (image token), `T` width of its patch tokens, `E` width of a decoder, `B` images of
//! one view, `N` patch tokens of an anchor, `n` of an instance or a masked view, `m` of a scene, `K` prototypes.

pub(crate) mod init;
pub(crate) mod layers;
pub(crate) mod params;

pub use init::{copy_shared, initialise};
pub use layers::{Mode, Net, Weights};
pub use params::{ALIGNMENT, Init, ParamRegistry, ParamSpec};
