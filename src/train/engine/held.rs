//! What an engine holds: read, written, shared between ranks, compared.

use super::Engine;
use super::feed::read_values;
use super::state::{EngineState, NamedTensor};
use crate::backend::{HostSlice, HostSliceMut};
use crate::error::{Error, Result};
use crate::ir::Region;
use crate::nn::{ParamRegistry, ParamSpec};
use crate::step::{IoSlot, StepPoint, TARGET};
use crate::tensor::DType;

impl Engine {
    /// The flat buffers that a checkpoint holds, as `(prefix of names, region)`.
    const STATE_REGIONS: [(&'static str, Region); 6] = [
        ("student.", Region::Params),
        ("expert.", Region::Expert),
        ("student.", Region::Buffers),
        ("expert.", Region::ExpertBuffers),
        ("moment1.", Region::Moment1),
        ("moment2.", Region::Moment2),
    ];

    pub(super) fn registry(&self, region: Region) -> &ParamRegistry {
        match region {
            Region::Expert => &self.registries.expert,
            Region::Buffers => &self.registries.student_buffers,
            Region::ExpertBuffers => &self.registries.expert_buffers,
            _ => &self.registries.student,
        }
    }

    /// Whether the backend has memory for the region: an encoder may have no running statistics.
    pub(super) fn has(&self, region: Region) -> bool {
        !self.registry(region).is_empty()
    }

    /// The regions that a checkpoint of this model holds.
    fn state_regions(&self) -> impl Iterator<Item = (&'static str, Region)> + use<> {
        let present = Self::STATE_REGIONS.map(|(prefix, region)| (prefix, region, self.has(region)));
        present.into_iter().filter(|r| r.2).map(|(prefix, region, _)| (prefix, region))
    }

    /// Everything that a resumed run needs, as named tensors.
    pub fn state(&self) -> Result<EngineState> {
        let mut state = EngineState::default();
        for (prefix, region) in self.state_regions() {
            let registry = self.registry(region);
            let mut values = vec![0.0; registry.len()];
            self.backend.read(region, 0, HostSliceMut::F32(&mut values))?;
            for p in registry {
                state.tensors.push((
                    format!("{prefix}{}", p.name),
                    p.shape.clone(),
                    state.buffers.len(),
                    p.offset,
                ));
            }
            state.buffers.push(values);
        }
        for slot in &self.state {
            let mut values = vec![0.0; slot.shape.count()];
            self.backend.read(slot.region, slot.offset, HostSliceMut::F32(&mut values))?;
            state.tensors.push((
                format!("state.{}", slot.name),
                slot.shape.dims().to_vec(),
                state.buffers.len(),
                0,
            ));
            state.buffers.push(values);
        }
        Ok(state)
    }

    /// Name, shape and values of every parameter-shaped tensor of a region.
    pub fn read_region(&self, region: Region) -> Result<Vec<NamedTensor>> {
        let registry = self.registry(region);
        if registry.is_empty() {
            return Ok(Vec::new());
        }
        let mut values = vec![0.0; registry.len()];
        self.backend.read(region, 0, HostSliceMut::F64(&mut values))?;
        let named =
            |p: &ParamSpec| (p.name.clone(), p.shape.clone(), values[p.offset..p.offset + p.len].to_vec());
        Ok(registry.iter().map(named).collect())
    }

    /// The gradients that moved parameters in a step at `point`, as [`Engine::read_region`] has them: what is held has none.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn read_gradients(&self, point: &StepPoint) -> Result<Vec<NamedTensor>> {
        let mut all = self.read_region(Region::Grads)?;
        all.retain(|(name, ..)| point.late_t > 0 || !self.late.contains(name));
        Ok(all)
    }

    /// Name, shape and values of what the micro step that bucket `bucket` ran last derived beside losses and gradients.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn read_targets(&self, bucket: usize) -> Result<Vec<NamedTensor>> {
        let outputs = &self.buckets[bucket].outputs;
        let read = |slot: &IoSlot| {
            let values = read_values(&*self.backend, outputs, &slot.name)?.unwrap_or_default();
            Ok((slot.name.clone(), slot.shape.dims().to_vec(), values))
        };
        outputs.iter().filter(|slot| slot.name.starts_with(TARGET)).map(read).collect()
    }

    /// Name, shape and values of the state besides parameters and moments.
    pub fn read_state(&self) -> Result<Vec<NamedTensor>> {
        let read = |slot: &IoSlot| {
            let mut values = vec![0.0; slot.shape.count()];
            self.backend.read(slot.region, slot.offset, HostSliceMut::F64(&mut values))?;
            Ok((slot.name.clone(), slot.shape.dims().to_vec(), values))
        };
        self.state.iter().map(read).collect()
    }

    /// Names and shapes of [`Engine::state`].
    pub fn expected_state(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        for (prefix, region) in self.state_regions() {
            all.extend(
                self.registry(region).iter().map(|p| (format!("{prefix}{}", p.name), p.shape.clone())),
            );
        }
        all.extend(self.state.iter().map(|s| (format!("state.{}", s.name), s.shape.dims().to_vec())));
        all
    }

    /// Writes the state back, tensor by tensor, as `read` gives them.
    pub fn load(&mut self, mut read: impl FnMut(&str, &mut [f32]) -> Result<()>) -> Result<()> {
        for (prefix, region) in self.state_regions() {
            let registry = self.registry(region);
            let mut values = vec![0.0; registry.len()];
            for p in registry {
                read(&format!("{prefix}{}", p.name), &mut values[p.offset..p.offset + p.len])?;
            }
            self.write_state((region, 0), HostSlice::F32(&values))?;
        }
        for slot in &self.state {
            let mut values = vec![0.0; slot.shape.count()];
            read(&format!("state.{}", slot.name), &mut values)?;
            self.backend.write(slot.region, slot.offset, HostSlice::F32(&values))?;
        }
        Ok(())
    }

    /// Writes back what [`Engine::state`] gave.
    pub(super) fn load_state(&mut self, state: &EngineState) -> Result<()> {
        let mut tensors = state.iter();
        self.load(|name, out| match tensors.next() {
            Some((at, _, values)) if at == name && values.len() == out.len() => {
                out.copy_from_slice(values);
                Ok(())
            }
            _ => Err(Error::invariant("restoring the state", format!("`{name}` is out of order"))),
        })
    }

    /// Gives all ranks the state of rank 0; nothing where there is one.
    ///
    /// # Errors
    /// Those of the backend; those of the link between the ranks.
    pub fn share_state(&mut self) -> Result<()> {
        let Some(shared) = &mut self.shared else { return Ok(()) };
        shared.forget();
        let ranks = shared.ranks.clone();
        for (region, offset, len) in self.stretches_of_state() {
            let bytes = ranks.from_first(self.read_bytes(region, offset, len)?)?;
            self.write_bytes((region, offset, len), &bytes)?;
        }
        Ok(())
    }

    /// A checksum of everything that all ranks must have alike (CRC-32C).
    ///
    /// # Errors
    /// Those of the backend.
    pub fn checksum(&self) -> Result<u32> {
        let mut sum = 0;
        for (region, offset, len) in self.stretches_of_state() {
            sum = crc32c::crc32c_append(sum, &self.read_bytes(region, offset, len)?);
        }
        Ok(sum)
    }

    /// All of the state: region, first element, elements.
    fn stretches_of_state(&self) -> Vec<(Region, usize, usize)> {
        let whole = self.state_regions().map(|(_, region)| (region, 0, self.registry(region).len()));
        let slots = self.state.iter().map(|slot| (slot.region, slot.offset, slot.shape.count()));
        whole.chain(slots).collect()
    }

    fn read_bytes(&self, region: Region, offset: usize, len: usize) -> Result<Vec<u8>> {
        if self.backend.dtype() == DType::F64 {
            let mut values = vec![0.0f64; len];
            self.backend.read(region, offset, HostSliceMut::F64(&mut values))?;
            return Ok(values.iter().flat_map(|x| x.to_le_bytes()).collect());
        }
        let mut values = vec![0.0f32; len];
        self.backend.read(region, offset, HostSliceMut::F32(&mut values))?;
        Ok(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn write_bytes(&mut self, at: (Region, usize, usize), bytes: &[u8]) -> Result<()> {
        let double = self.backend.dtype() == DType::F64;
        if bytes.len() != at.2 * if double { 8 } else { 4 } {
            let message = format!("{} bytes came for {} values", bytes.len(), at.2);
            return Err(Error::invariant("sharing the state", message));
        }
        if double {
            let values: Vec<f64> = bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect();
            return self.write_state((at.0, at.1), HostSlice::F64(&values));
        }
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        self.write_state((at.0, at.1), HostSlice::F32(&values))
    }

    /// Writes into a flat buffer, and into its copy in the type that the step computes in.
    pub(super) fn write_state(
        &mut self,
        (region, offset): (Region, usize),
        values: HostSlice<'_>,
    ) -> Result<()> {
        if let Some(shared) = &mut self.shared {
            shared.forget();
        }
        self.backend.write(region, offset, values)?;
        let (copy, dtype) = (region.in_compute_type(), self.backend.dtype());
        if copy != region && dtype != dtype.accumulator() {
            self.backend.write(copy, offset, values)?;
        }
        Ok(())
    }
}
