//! Counts what loads and stores move, and the shape of their requests.

use super::address::resolve;
use super::context::Cx;
use crate::ir::Space;
use crate::warp::Wide;

impl Cx<'_> {
    /// Traffic and shape of a warp's request. A generic request counts where its first lane goes.
    pub(super) fn count(&mut self, space: Space, addrs: &Wide, bytes: u32, write: bool) {
        let lanes = u64::from(self.mask.count_ones());
        let first = self.mask.trailing_zeros().min(31) as usize;
        let (space, _) = resolve(space, addrs[first]);
        let total = lanes * u64::from(bytes);
        let c = &mut self.core.counts;
        let traffic = match space {
            Space::Global | Space::Const => &mut c.global,
            Space::Shared => &mut c.shared,
            Space::Local => &mut c.local,
            _ => return,
        };
        if write {
            traffic.stored += total;
        } else {
            traffic.loaded += total;
        }
        match space {
            Space::Global => {
                let mut sectors: Vec<u64> = Vec::new();
                // Stack storage: a lane touches one sector, accesses are aligned and at most 16 bytes.
                let mut list = [0u64; 32];
                let mut n = 0;
                let mut sorted = true;
                for lane in self.lanes() {
                    let s = addrs[lane] / 32;
                    if n > 0 && list[n - 1] == s {
                        continue;
                    }
                    sorted &= n == 0 || list[n - 1] < s;
                    list[n] = s;
                    n += 1;
                }
                if !sorted {
                    sectors.extend(&list[..n]);
                    sectors.sort_unstable();
                    sectors.dedup();
                    n = sectors.len();
                }
                let c = &mut self.core.counts;
                c.global_sectors += n as u64;
                c.global_sectors_ideal += (n as u64).min(total.div_ceil(32));
            }
            Space::Shared => {
                let mut rows = [0u32; 32];
                let mut n = 0;
                for lane in self.lanes() {
                    rows[n] = addrs[lane] as u32;
                    n += 1;
                }
                self.count_banks(&rows[..n], bytes);
            }
            _ => {}
        }
    }

    /// Passes through the 32 banks: lanes are served 128 bytes at a time, equal words together.
    pub(super) fn count_banks(&mut self, addrs: &[u32], bytes: u32) {
        let group = (128 / bytes.max(4)) as usize;
        for phase in addrs.chunks(group.max(1)) {
            if one_pass(phase, bytes) {
                self.core.counts.shared_wavefronts += 1;
                self.core.counts.shared_wavefronts_ideal += 1;
                continue;
            }
            let mut seen = [[u32::MAX; 32]; 32];
            let mut depth = [0u8; 32];
            let mut most = 0;
            for at in phase {
                for word in at / 4..(at + bytes).div_ceil(4) {
                    let bank = (word % 32) as usize;
                    let n = depth[bank] as usize;
                    if n < 32 && !seen[bank][..n].contains(&word) {
                        seen[bank][n] = word;
                        depth[bank] += 1;
                        most = most.max(depth[bank]);
                    }
                }
            }
            self.core.counts.shared_wavefronts += u64::from(most);
            self.core.counts.shared_wavefronts_ideal += 1;
        }
    }
}

/// True if no bank is asked for two different words.
fn one_pass(phase: &[u32], bytes: u32) -> bool {
    let mut banks = [u32::MAX; 32];
    phase.iter().all(|at| {
        (at / 4..(at + bytes).div_ceil(4)).all(|word| {
            let bank = &mut banks[(word % 32) as usize];
            let free = *bank == u32::MAX || *bank == word;
            *bank = word;
            free
        })
    })
}
