//! Several processes of one run ("ranks"), each with a device of its own: who they are ([`Launch`]), how they find each other
//! ([`meet`]), and what they then have in common (a [`Collective`](crate::backend::Collective) over TCP).
//!
//! Every rank has a *control* connection to rank 0, which carries small collectives, heartbeats and reasons to end; and *data*
//! connections to its two neighbours in a ring, which carry sums. Rank 0 judges: it hears from everybody what they are busy with,
//! decides who is dead, stands still or is late, and tells the others; the first cause wins. A process that cannot see such a
//! verdict, since its main thread is stuck inside a device's library, is ended by its heartbeat thread with exit status [`STUCK`].

mod deadlines;
mod frame;
mod greeting;
mod group;
mod heartbeat;
mod hosts;
mod join;
mod launch;
mod lines;
mod link;
mod local;
mod meeting;
mod member;
mod ring;
mod store;
mod whereabouts;

pub use deadlines::Deadlines;
pub use group::meet;
pub use heartbeat::STUCK;
pub use launch::{Launch, Meeting};
pub use local::{Local, follow_parent};
pub use member::Hello;

#[cfg(test)]
mod tests;
