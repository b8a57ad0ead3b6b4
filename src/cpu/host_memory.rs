//! How much memory the machine has left. Linux promises more than it has and ends processes when they use it, so that an
//! allocation that succeeds says nothing.

/// Bytes that a process could still use, swap included, and all of them; None where the system does not tell.
pub(super) fn free_and_total() -> Option<[u64; 2]> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<[u64; 2]> {
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let swap = |key| bytes(key).unwrap_or(0);
    let free = bytes("MemAvailable")?.saturating_add(swap("SwapFree"));
    Some([free, bytes("MemTotal")?.saturating_add(swap("SwapTotal"))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_left() {
        let text =
            "MemTotal:  16 kB\nMemFree:  2 kB\nMemAvailable:  8 kB\nSwapTotal:  4 kB\nSwapFree:  1 kB\n";
        assert_eq!(parse(text), Some([9 << 10, 20 << 10]));
        assert_eq!(parse("MemTotal: 16 kB\nMemAvailable: 8 kB\n"), Some([8 << 10, 16 << 10]));
        for unknown in ["", "MemTotal: 16 kB\n", "MemTotal: 16 kB\nMemAvailable: lots\n"] {
            assert_eq!(parse(unknown), None, "{unknown}");
        }
        if cfg!(target_os = "linux") {
            assert!(free_and_total().is_some_and(|[free, total]| 0 < free && free <= total));
        }
    }
}
