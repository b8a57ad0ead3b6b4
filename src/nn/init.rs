//! Initial values. Every parameter draws from a stream of its own, keyed by the seed and its name, so that its values
//! depend neither on the order of the registry nor on which objectives are switched on.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};

use super::params::{Init, ParamRegistry, ParamSpec};
use crate::error::{Error, Result};

/// Where timm's `trunc_normal_` cuts, in absolute units.
const TRUNCATION: f64 = 2.0;

/// The flat buffer of initial values, `registry.len()` long; gaps are 0.
///
/// # Errors
/// [`Error::Invariant`] for a truncated normal so wide that redrawing would hardly end.
pub fn initialise(registry: &ParamRegistry, seed: u64) -> Result<Vec<f32>> {
    let mut values = vec![0.0; registry.len()];
    for spec in registry {
        fill(&mut values[spec.offset..spec.offset + spec.len], spec, seed)?;
    }
    Ok(values)
}

/// Copies into `to` every parameter that `from` has under the same name and shape: how an expert that averages its
/// student starts. Returns how many were copied. Both slices are whole flat buffers.
///
/// # Errors
/// [`Error::Invariant`] when a buffer is not as long as its registry.
pub fn copy_shared(
    from: (&ParamRegistry, &[f32]),
    to: (&ParamRegistry, &mut [f32]),
    takes: impl Fn(&str) -> bool,
) -> Result<usize> {
    let ((from, source), (to, target)) = (from, to);
    if source.len() != from.len() || target.len() != to.len() {
        return Err(Error::invariant(
            "copying parameters",
            format!(
                "buffers of {} and {} elements for registries of {} and {}",
                source.len(),
                target.len(),
                from.len(),
                to.len()
            ),
        ));
    }
    let mut copied = 0;
    for t in to.iter().filter(|t| takes(&t.name)) {
        if let Some(s) = from.get(&t.name).filter(|s| s.shape == t.shape) {
            target[t.offset..t.offset + t.len].copy_from_slice(&source[s.offset..s.offset + s.len]);
            copied += 1;
        }
    }
    Ok(copied)
}

fn fill(values: &mut [f32], spec: &ParamSpec, seed: u64) -> Result<()> {
    let mut rng = stream(seed, &spec.name);
    match spec.init {
        Init::Zeros => values.fill(0.0),
        Init::Ones => values.fill(1.0),
        Init::Normal { std } => values.iter_mut().for_each(|v| *v = normal(&mut rng, std) as f32),
        Init::TruncNormal { std } => {
            if !(0.0..=2.0 * TRUNCATION).contains(&std) {
                return Err(Error::invariant(
                    "initialisation",
                    format!("`{}`: no truncated normal with deviation {std}", spec.name),
                ));
            }
            for v in values {
                let mut x = normal(&mut rng, std);
                while x.abs() > TRUNCATION {
                    x = normal(&mut rng, std);
                }
                *v = x as f32;
            }
        }
        Init::Uniform { bound } => {
            for v in values {
                let unit: f64 = StandardUniform.sample(&mut rng);
                *v = (bound * (2.0 * unit - 1.0)) as f32;
            }
        }
    }
    Ok(())
}

fn normal(rng: &mut ChaCha8Rng, std: f64) -> f64 {
    let x: f64 = StandardNormal.sample(rng);
    std * x
}

/// ChaCha8 keyed by the seed and a 128-bit FNV-1a hash of the name.
fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let hash = name.bytes().fold(BASIS, |h, b| (h ^ u128::from(b)).wrapping_mul(PRIME));
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(x: &[f32]) -> (f64, f64) {
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (mean, (x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    #[test]
    fn values_follow_their_distribution() {
        let n = 20_000;
        let mut r = ParamRegistry::new();
        r.register("t", &[n], Init::TruncNormal { std: 1.5 }).unwrap();
        r.register("n", &[n], Init::Normal { std: 0.02 }).unwrap();
        r.register("u", &[n], Init::Uniform { bound: 0.25 }).unwrap();
        r.register("one", &[3], Init::Ones).unwrap();
        let v = initialise(&r, 7).unwrap();
        let part = |name: &str| r.get(name).map(|s| &v[s.offset..s.offset + s.len]).unwrap();
        let largest = part("t").iter().fold(0.0f32, |a, x| a.max(x.abs()));
        assert!(largest <= 2.0 && largest > 1.95, "{largest}");
        let (mean, std) = moments(part("n"));
        assert!(mean.abs() < 6e-4 && (std - 0.02).abs() < 5e-4, "{mean} {std}");
        let (mean, std) = moments(part("u"));
        assert!(mean.abs() < 5e-3 && (std - 0.25 / 3f64.sqrt()).abs() < 3e-3, "{mean} {std}");
        assert!(part("u").iter().all(|x| x.abs() <= 0.25));
        assert_eq!(part("one"), [1.0; 3]);
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let (mut a, mut b) = (ParamRegistry::new(), ParamRegistry::new());
        a.linear("x", 4, 4).unwrap();
        a.linear("y", 4, 4).unwrap();
        b.linear("y", 4, 4).unwrap();
        let (va, vb, other) =
            (initialise(&a, 1).unwrap(), initialise(&b, 1).unwrap(), initialise(&b, 2).unwrap());
        let at = a.get("y.weight").unwrap().offset;
        assert_eq!(va[at..at + 16], vb[..16]);
        assert_ne!(va[..16], vb[..16]);
        assert_ne!(vb[..16], other[..16]);
    }

    #[test]
    fn shared_parameters_are_copied() {
        let (mut a, mut b) = (ParamRegistry::new(), ParamRegistry::new());
        a.linear("x", 2, 2).unwrap();
        a.linear("y", 2, 2).unwrap();
        b.linear("y", 2, 2).unwrap();
        b.linear("x", 2, 3).unwrap();
        let va = initialise(&a, 1).unwrap();
        let mut vb = vec![0.0; b.len()];
        assert_eq!(copy_shared((&a, &va), (&b, &mut vb), |_| true).unwrap(), 3);
        assert_eq!(vb[..4], va[a.get("y.weight").unwrap().offset..][..4]);
        assert_eq!(vb[b.get("x.weight").unwrap().offset..][..6], [0.0; 6]);
        assert!(copy_shared((&a, &va[1..]), (&b, &mut vb), |_| true).is_err());
    }
}
