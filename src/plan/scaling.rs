//! What several devices make of a plan: when its gradients are ready, how long they travel, and what of that is not hidden.

use super::layout::{Plan, Slot, Space};
use super::machine::Machine;
use crate::ir::Region;

/// How ranks are joined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    pub ranks: usize,
    /// Bytes a second that the slowest link of the ring carries, of those on its label as many as are usable.
    pub bandwidth: f64,
    /// Seconds of one hop.
    pub latency: f64,
}

impl Links {
    /// Seconds of a ring's sum of `bytes` over all ranks: each link carries `2 (n - 1) / n` of them.
    pub fn sum_seconds(&self, bytes: f64) -> f64 {
        let n = self.ranks as f64;
        if self.ranks < 2 {
            return 0.0;
        }
        2.0 * (n - 1.0) / n * bytes / self.bandwidth + 2.0 * (n - 1.0) * self.latency
    }
}

/// A stretch of gradients on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    pub bytes: f64,
    /// Seconds from the beginning of the micro step.
    pub ready: f64,
    pub begins: f64,
    pub ends: f64,
}

/// What is summed behind the last micro step, in which `plan` writes it: `stretches` are `(region, first element, elements)`,
/// `wire` the bytes that an element of gradients has on its way. One sum follows another.
pub fn sums(
    plan: &Plan,
    stretches: &[(Region, usize, usize)],
    wire: usize,
    machine: &Machine,
    links: &Links,
) -> Vec<Sum> {
    let (mut now, mut done) = (0.0, Vec::with_capacity(plan.steps.len()));
    for step in &plan.steps {
        now += machine.floor(step);
        done.push(now);
    }
    let mut free = 0.0f64;
    let sum = |stretch: &(Region, usize, usize)| {
        let last = plan.steps.iter().rposition(|step| step.outputs.iter().any(|s| touches(s, stretch)));
        let ready = last.map_or(now, |i| done[i]);
        let bytes = (stretch.2 * wire) as f64;
        let begins = free.max(ready);
        free = begins + links.sum_seconds(bytes);
        Sum { bytes, ready, begins, ends: free }
    };
    stretches.iter().map(sum).collect()
}

fn touches(slot: &Slot, &(region, first, len): &(Region, usize, usize)) -> bool {
    let start = slot.offset / slot.dtype.bytes();
    slot.space == Space::Region(region) && start < first + len && first < start + slot.shape.count()
}

/// Seconds of communication behind the end of the micro step, which nothing hides.
pub fn exposed(plan: &Plan, sums: &[Sum], machine: &Machine) -> f64 {
    sums.last().map_or(0.0, |last| (last.ends - machine.seconds(plan)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_moves_each_byte_almost_twice() {
        let links = |ranks| Links { ranks, bandwidth: 100.0, latency: 0.5 };
        assert_eq!(links(1).sum_seconds(800.0), 0.0);
        assert_eq!(links(2).sum_seconds(800.0), 8.0 + 1.0);
        assert_eq!(links(8).sum_seconds(800.0), 14.0 + 7.0);
    }
}
