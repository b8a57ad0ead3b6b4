//! The parts of regions that all ranks sum, and when a plan is done with them.

use crate::error::{Error, Result};
use crate::ir::Region;
use crate::plan::{Plan, Slot, Space};
use crate::tensor::DType;
use std::fmt::Write;

/// Elements of a region, which must hold f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub region: Region,
    pub first: usize,
    pub elements: usize,
}

/// What a device joined others with.
pub struct Joined {
    pub stretches: Vec<Stretch>,
    /// Address of the copy that is summed where the sums have another type than the stretches; they take turns.
    pub copy: Option<u64>,
}

const PASS: &str = "joining devices";

impl Stretch {
    /// Those that are not empty, in the order in which they are summed.
    ///
    /// # Errors
    /// Stretches that overlap, or end beyond every memory.
    pub fn all(stretches: &[(Region, usize, usize)]) -> Result<Vec<Stretch>> {
        let all = stretches.iter().map(|&(region, first, elements)| Stretch { region, first, elements });
        let all: Vec<Stretch> = all.filter(|s| s.elements > 0).collect();
        let bytes = |s: &Stretch| s.first.checked_add(s.elements)?.checked_mul(DType::F32.bytes());
        if let Some(s) = all.iter().find(|s| bytes(s).is_none()) {
            return Err(Error::invariant(PASS, format!("{s:?} ends nowhere")));
        }
        for (i, a) in all.iter().enumerate() {
            let over = |b: &&Stretch| a.region == b.region && a.first < b.end() && b.first < a.end();
            if let Some(b) = all[..i].iter().find(over) {
                return Err(Error::invariant(PASS, format!("{a:?} and {b:?} overlap")));
            }
        }
        Ok(all)
    }

    fn end(&self) -> usize {
        self.first + self.elements
    }

    pub fn bytes(&self) -> usize {
        self.elements * DType::F32.bytes()
    }

    fn holds(&self, slot: &Slot) -> bool {
        let bytes = slot.shape.count() * slot.dtype.bytes();
        let (start, end) = (self.first * DType::F32.bytes(), self.end() * DType::F32.bytes());
        slot.space == Space::Region(self.region) && slot.offset < end && start < slot.offset + bytes
    }

    /// The step of `plan` after which nothing of the plan reads or writes the stretch; None where no step writes it. A later
    /// step that only reads needs what was there before the sum.
    pub fn last_use(&self, plan: &Plan) -> Option<usize> {
        let writes = |slots: &[Slot]| slots.iter().any(|s| self.holds(s));
        let uses = plan.steps.iter().rposition(|s| writes(&s.inputs) || writes(&s.outputs));
        uses.filter(|_| plan.steps.iter().any(|s| writes(&s.outputs)))
    }
}

/// What is summed, in words that differ where the stretches do.
pub fn described(stretches: &[Stretch], wire: DType) -> String {
    let mut list = String::new();
    let mut elements = 0usize;
    for s in stretches {
        elements = elements.saturating_add(s.elements);
        // A string takes whatever is written.
        let _ = write!(list, "{} {} {};", s.region.name(), s.first, s.elements);
    }
    let hash = crc32fast::hash(list.as_bytes());
    format!("{elements} elements in {} stretches ({hash:08x}), as {wire}", stretches.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Op, ops};
    use crate::plan::Step;
    use crate::tensor::Shape;

    fn slot(region: Region, first: usize, elements: usize) -> Slot {
        let offset = first * 4;
        Slot { space: Space::Region(region), offset, shape: Shape::from([elements]), dtype: DType::F32 }
    }

    /// A plan of steps that read and write such slots.
    fn plan(steps: Vec<[Vec<Slot>; 2]>) -> Plan {
        let op = Op::from(ops::Fill { shape: vec![1], value: 0.0, dtype: DType::F32 });
        let step = |[inputs, outputs]: [Vec<Slot>; 2]| Step {
            op: op.clone(),
            path: String::new(),
            inputs,
            outputs,
            workspace: (0, 0),
        };
        Plan {
            steps: steps.into_iter().map(step).collect(),
            regions: Vec::new(),
            buffers: Vec::new(),
            arena_bytes: 0,
            lower_bound_bytes: 0,
        }
    }

    #[test]
    fn a_stretch_is_done_with_after_its_last_use() {
        let grads = |first, elements| slot(Region::Grads, first, elements);
        let plan = plan(vec![
            [vec![], vec![grads(0, 10)]],
            [vec![], vec![grads(10, 10), slot(Region::Params, 0, 100)]],
            [vec![], vec![grads(20, 5)]],
            [vec![grads(4, 2)], vec![]],
            [vec![slot(Region::Params, 0, 5)], vec![]],
        ]);
        let last = |region, first, elements| Stretch { region, first, elements }.last_use(&plan);
        assert_eq!(last(Region::Grads, 0, 10), Some(3), "read after it was written");
        assert_eq!(last(Region::Grads, 10, 10), Some(1));
        assert_eq!(last(Region::Grads, 6, 5), Some(1), "two steps write parts of it");
        assert_eq!(last(Region::Grads, 19, 2), Some(2));
        assert_eq!(last(Region::Grads, 25, 5), None, "nobody writes it");
        assert_eq!(last(Region::MicroGrads, 0, 10), None);
        assert_eq!(last(Region::Params, 0, 100), Some(4));
        let read_only = super::tests::plan(vec![[vec![grads(0, 4)], vec![]]]);
        assert_eq!(Stretch { region: Region::Grads, first: 0, elements: 4 }.last_use(&read_only), None);
    }

    #[test]
    fn stretches_that_cannot_be_are_refused() {
        let grads = |first, elements| (Region::Grads, first, elements);
        let kept = Stretch::all(&[grads(8, 8), grads(0, 8), (Region::Params, 4, 8), grads(3, 0)]).unwrap();
        assert_eq!(kept.len(), 3, "an empty one is none");
        assert_eq!(kept[0].first, 8, "their order stays");
        for bad in [vec![grads(0, 9), grads(8, 1)], vec![grads(usize::MAX, 2)], vec![grads(0, usize::MAX)]] {
            assert!(Stretch::all(&bad).is_err(), "{bad:?}");
        }
        let words =
            |stretches: &[(Region, usize, usize)], wire| described(&Stretch::all(stretches).unwrap(), wire);
        let one = words(&[grads(0, 8), grads(8, 8)], DType::F32);
        assert!(one.starts_with("16 elements in 2 stretches (") && one.ends_with(", as f32"), "{one}");
        assert_ne!(one, words(&[grads(8, 8), grads(0, 8)], DType::F32));
        assert_ne!(one, words(&[grads(0, 8), grads(8, 8)], DType::Bf16));
    }
}
