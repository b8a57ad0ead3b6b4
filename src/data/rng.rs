//! Counter-based random numbers: a stream is a pure function of what it is for, so results do not depend on the
//! number of worker threads, nor on where a run was interrupted.

use rand::SeedableRng;
pub use rand_chacha::ChaCha8Rng as StreamRng;

/// What a stream of random numbers is used for; streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    // 1 and 9 were given before: a purpose keeps its number for good, and the others theirs.
    Shuffle = 2,
    Views = 3,
    Mask = 4,
    Scene = 5,
    Scale = 6,
    DropPath = 7,
    Synth = 8,
    Mix = 10,
}

/// The stream for (`seed`, `epoch`, `sample`, `purpose`): ChaCha8 keyed by the four numbers themselves.
pub fn stream(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> StreamRng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&sample.to_le_bytes());
    key[24..28].copy_from_slice(&(purpose as u32).to_le_bytes());
    StreamRng::from_seed(key)
}
