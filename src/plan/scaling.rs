//! What several devices make of a plan: when its gradients are ready, how long they travel, and what of that is not hidden.

use super::layout::{Plan, Slot, Space, Step};
use crate::ir::Region;
use crate::tensor::DType;

/// A device, by its data sheet: no step is faster than this allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    pub name: &'static str,
    /// Bytes of device memory a second.
    pub bandwidth: f64,
    /// Operations a second of matrix products in bf16, dense, and in f32.
    pub bf16: f64,
    pub f32: f64,
}

/// The devices that are known. Sources: NVIDIA's data sheets of H100 SXM, H200 SXM (2024) and RTX A6000 (2021).
pub const MACHINES: [Machine; 3] = [
    Machine { name: "h200", bandwidth: 4.8e12, bf16: 989e12, f32: 67e12 },
    Machine { name: "h100", bandwidth: 3.35e12, bf16: 989e12, f32: 67e12 },
    Machine { name: "a6000", bandwidth: 768e9, bf16: 154.8e12, f32: 38.7e12 },
];

impl Machine {
    /// The least time of a step of a plan, seconds: its operands moved once, its products at full rate (roofline; Williams,
    /// Waterman and Patterson 2009).
    fn floor(&self, step: &Step) -> f64 {
        let bytes: usize =
            step.inputs.iter().chain(&step.outputs).map(|s| s.shape.count() * s.dtype.bytes()).sum();
        let (inputs, outputs) = (shapes(&step.inputs), shapes(&step.outputs));
        let flops = step.op.matrix_flops(&inputs, &outputs) as f64;
        let narrow = step.inputs.first().is_some_and(|s| s.dtype == DType::Bf16);
        let rate = if narrow { self.bf16 } else { self.f32 };
        (bytes as f64 / self.bandwidth).max(flops / rate)
    }

    /// The least time of a whole plan, seconds.
    pub fn seconds(&self, plan: &Plan) -> f64 {
        plan.steps.iter().map(|step| self.floor(step)).sum()
    }
}

fn shapes(slots: &[Slot]) -> Vec<&crate::tensor::Shape> {
    slots.iter().map(|s| &s.shape).collect()
}

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
