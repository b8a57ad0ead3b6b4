//! What of the environment changes the numbers that NCCL gives.

/// The settings that decide how sums are formed, each with the value by which they repeat from run to run: the default on Hopper
/// with NVLink, sums formed by the switches (NVLS), does not. No field of a communicator's configuration sets them.
const PINNED: [(&str, &str); 2] = [("NCCL_ALGO", "Ring"), ("NCCL_NVLS_ENABLE", "0")];
/// All that must be the same on all ranks: where they differ, ranks wait for each other for ever.
const SHARED: [&str; 3] = ["NCCL_ALGO", "NCCL_NVLS_ENABLE", "NCCL_PROTO"];

/// The part of [`PINNED`] that `is_set` does not know.
fn missing(is_set: impl Fn(&str) -> bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    PINNED.into_iter().filter(move |(name, _)| !is_set(name))
}

/// Sets what the user has not, so that sums repeat from run to run. NCCL reads its settings when it is first called.
///
/// # Safety
/// No other thread may run: it could be reading the environment.
pub unsafe fn pin_nccl() {
    for (name, value) in missing(|name| std::env::var_os(name).is_some()) {
        // SAFETY: nobody reads the environment meanwhile, as the caller promises.
        unsafe { std::env::set_var(name, value) };
    }
}

/// The settings that all ranks must have alike, as `NAME=value` or `NAME unset`.
pub(super) fn settings() -> String {
    let told = |name: &str| match std::env::var_os(name) {
        Some(value) => format!("{name}={}", value.to_string_lossy()),
        None => format!("{name} unset"),
    };
    SHARED.map(told).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_has_set_stays() {
        let all: Vec<_> = missing(|_| false).collect();
        assert_eq!(all, PINNED);
        let one: Vec<_> = missing(|name| name == "NCCL_ALGO").collect();
        assert_eq!(one, [("NCCL_NVLS_ENABLE", "0")]);
        assert_eq!(missing(|_| true).count(), 0);
        // Whatever is pinned is compared.
        assert!(PINNED.iter().all(|(name, _)| SHARED.contains(name)));
    }
}
