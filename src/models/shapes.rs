//! How a kind of encoder is told by the names and shapes of a file's tensors.

/// The tensors of a file.
pub trait Tensors {
    /// The shape of the tensor of this name, if there is one.
    fn dims(&self, name: &str) -> Option<&[usize]>;
}

/// Questions about the tensors of a file.
#[derive(Clone, Copy)]
pub struct Shapes<'a>(pub &'a dyn Tensors);

impl Shapes<'_> {
    pub fn has(&self, name: &str) -> bool {
        self.0.dims(name).is_some()
    }

    /// The shape of a tensor of rank `N` without a dimension of 0.
    pub fn of<const N: usize>(&self, name: &str) -> Option<[usize; N]> {
        let dims: [usize; N] = self.0.dims(name)?.try_into().ok()?;
        (!dims.contains(&0)).then_some(dims)
    }

    /// How many of the numbered names exist, from `first` on without a gap.
    pub fn count(&self, first: usize, name: impl Fn(usize) -> String) -> usize {
        (first..).take_while(|i| self.has(&name(*i))).count()
    }
}

/// The four values of an encoder's stages.
///
/// # Errors
/// In words, when there are more or fewer.
pub(super) fn four(of: &[usize]) -> Result<[usize; 4], String> {
    of.try_into().map_err(|_| format!("its encoder has {} stages, expected 4", of.len()))
}
