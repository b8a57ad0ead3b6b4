//! One file an op and its gradient: what it takes and gives, how its shapes, types and work follow, what may happen in
//! place, and its derivative.
//!
//! Letters used below: `M` rows, `D` width, `N`/`K` a linear layer's outputs/inputs, `T` rows of a token stream,
//! `S` segments of it, `G` groups of rows, `B` images, `n` tokens of an image, `k` kept tokens of an image, `P` prototypes, `V` views.
//! Every op overwrites its outputs; none accumulates unless its name says so.

pub(super) mod attention;
pub(super) mod batch_norm;
pub(super) mod conv;
pub(super) mod dense_loss;
pub(super) mod depthwise_conv;
pub(super) mod embed;
pub(super) mod layer_norm;
pub(super) mod layout;
pub(super) mod linear;
pub(super) mod mixup;
pub(super) mod optim;
pub(super) mod pointwise;
pub(super) mod pool;
pub(super) mod prototype_ce;
pub(super) mod window_attention;

pub use attention::*;
pub use batch_norm::*;
pub use conv::*;
pub use dense_loss::*;
pub use depthwise_conv::*;
pub use embed::*;
pub use layer_norm::*;
pub use layout::*;
pub use linear::*;
pub use mixup::*;
pub use optim::*;
pub use pointwise::*;
pub use pool::*;
pub use prototype_ce::*;
pub use window_attention::*;
