//! Encoders and decoders: pure graph builders, the parameter registry, and initial values. No backend in sight.
//!
//! Letters: `D` width of an encoder (image token), `T` width of its patch tokens, `E` width of a decoder, `B` images of
//! one view, `N` patch tokens of an anchor, `n` of an instance or a masked view, `m` of a scene, `K` prototypes.

mod csm;
mod csr;
mod css;
mod encoder;
mod feature_maps;
mod init;
mod layers;
mod params;
mod star_net;
mod tiny_vit;
mod vit;

pub use csm::CsmDecoder;
pub use csr::{CsrDecoder, CsrInputs};
pub use css::{CssDecoder, CssInstances};
pub use encoder::{Encoder, EncoderDims, TapGroup, Tokens, View, timm_name};
pub use init::{copy_shared, initialise};
pub use layers::{Mode, Net, Weights};
pub use params::{ALIGNMENT, Init, ParamRegistry, ParamSpec};
pub use vit::DropPath;
