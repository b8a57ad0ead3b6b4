//! Weighted nearest-neighbour classification, DINO's probe of frozen features.

use rayon::prelude::*;

use super::features::{self, Features, QUERY_BLOCK};
use crate::error::{Error, Result};

/// DINO's numbers of neighbours.
pub const KS: [usize; 4] = [10, 20, 100, 200];
/// DINO's temperature.
pub const TEMPERATURE: f64 = 0.07;

/// Accuracy with `k` neighbours, between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct KnnAccuracy {
    /// Neighbours asked for; a smaller training set votes as a whole.
    pub k: usize,
    pub top1: f64,
    pub top5: f64,
}

/// Classifies every image of `test` by its neighbours in `train`; classes are the `identities`. Similarity is the
/// cosine; each of the `k` most similar images votes for its class with weight exp(similarity / temperature). Equal
/// similarities are ranked by position in `train`, equal votes by class number. One result for each of `ks`.
///
/// # Errors
/// Empty, ill-formed or non-finite features, different dimensions, a `k` of 0 or a temperature not above 0.
pub fn knn(train: &Features, test: &Features, ks: &[usize], temperature: f64) -> Result<Vec<KnnAccuracy>> {
    classify(train, test, false, ks, temperature)
}

/// Classifies every image of `set` by its neighbours among all the others; otherwise as [`knn`].
///
/// # Errors
/// As [`knn`], and for a single image.
pub fn knn_leave_one_out(set: &Features, ks: &[usize], temperature: f64) -> Result<Vec<KnnAccuracy>> {
    if set.len() == 1 {
        return Err(Error::usage("one image has no neighbours: kNN needs at least two"));
    }
    classify(set, set, true, ks, temperature)
}

/// With `same`, both sets are one, and no image is its own neighbour.
fn classify(
    train: &Features,
    test: &Features,
    same: bool,
    ks: &[usize],
    temperature: f64,
) -> Result<Vec<KnnAccuracy>> {
    features::check_pair((train, "training"), (test, "test"))?;
    if ks.contains(&0) || !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::usage(format!(
            "kNN with k = {ks:?} and temperature {temperature}: both must be above 0"
        )));
    }
    let (dim, n) = (train.dim, train.len());
    let most = ks.iter().copied().max().unwrap_or(0).min(n - usize::from(same));
    let (known, asked) = (train.normalized(), test.normalized());
    // Per test image and k: the place of its class among the classes voted for, from 0.
    let places: Vec<Vec<Option<usize>>> = asked
        .par_chunks(QUERY_BLOCK * dim)
        .enumerate()
        .flat_map_iter(|(block, rows)| {
            let mut similarities = vec![0f64; rows.len() / dim * n];
            features::pairwise(rows, &known, dim, &mut similarities, |a, b| a * b);
            let places: Vec<_> = similarities
                .chunks_exact_mut(n)
                .enumerate()
                .map(|(i, row)| {
                    if same {
                        // Behind all others, of which there are enough.
                        row[block * QUERY_BLOCK + i] = f64::NEG_INFINITY;
                    }
                    let neighbours = most_similar(row, most);
                    let class = test.identities[block * QUERY_BLOCK + i];
                    ks.iter()
                        .map(|k| vote(&neighbours[..(*k).min(most)], train, temperature, class))
                        .collect()
                })
                .collect();
            places
        })
        .collect();
    let share = |i: usize, top: usize| {
        places.iter().filter(|p| p[i].is_some_and(|place| place < top)).count() as f64 / test.len() as f64
    };
    Ok(ks
        .iter()
        .enumerate()
        .map(|(i, k)| KnnAccuracy { k: *k, top1: share(i, 1), top5: share(i, 5) })
        .collect())
}

/// The `k` largest entries, largest first, as (similarity, position).
fn most_similar(similarities: &[f64], k: usize) -> Vec<(f64, usize)> {
    let order = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut all: Vec<(f64, usize)> = similarities.iter().copied().zip(0..).collect();
    if k < all.len() {
        all.select_nth_unstable_by(k, order);
        all.truncate(k);
    }
    all.sort_unstable_by(order);
    all
}

/// The place of `class` among the classes of the neighbours by their votes; `None` where none has it.
fn vote(neighbours: &[(f64, usize)], train: &Features, temperature: f64, class: i64) -> Option<usize> {
    let mut votes = std::collections::BTreeMap::<i64, f64>::new();
    // Relative to the most similar: the same votes up to a factor, and no temperature makes them overflow.
    let top = neighbours.first()?.0;
    for (similarity, position) in neighbours {
        *votes.entry(train.identities[*position]).or_default() += ((similarity - top) / temperature).exp();
    }
    let own = *votes.get(&class)?;
    Some(votes.iter().filter(|(c, v)| **v > own || (**v == own && **c < class)).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::{Purpose, stream};
    use rand::RngExt;

    fn set(angles: &[(f32, i64)]) -> Features {
        Features {
            values: angles
                .iter()
                .flat_map(|(a, _)| [a.to_radians().cos() * 3.0, a.to_radians().sin() * 3.0])
                .collect(),
            dim: 2,
            identities: angles.iter().map(|a| a.1).collect(),
            cameras: vec![0; angles.len()],
        }
    }

    #[test]
    fn near_votes_weigh_more_than_many() {
        // One very near neighbour of class 1 against two of class 2 further off.
        let train = set(&[(50.0, 2), (2.0, 1), (60.0, 2), (170.0, 3)]);
        let test = set(&[(0.0, 1)]);
        let top1 = |k, temperature| knn(&train, &test, &[k], temperature).unwrap()[0].top1;
        assert_eq!((top1(1, 0.07), top1(3, 0.07)), (1.0, 1.0));
        // cos 2, 50, 60 degrees: at T = 10 the votes are nearly equal and two beat one.
        assert_eq!(top1(3, 10.0), 0.0);
        let of = |class| knn(&train, &set(&[(0.0, class)]), &[3, 100], 0.07).unwrap();
        assert_eq!((of(2)[0].top1, of(2)[0].top5), (0.0, 1.0));
        assert_eq!((of(3)[0].top5, of(3)[1].top5), (0.0, 1.0), "class 3 is the fourth neighbour");
        assert_eq!(of(9)[1].top5, 0.0);
    }

    #[test]
    fn agrees_with_votes_counted_over_a_full_sort() {
        let mut rng = stream(3, 0, 0, Purpose::Synth);
        let mut random = |n: usize| Features {
            values: (0..n * 7).map(|_| rng.random_range(-1f32..1.0)).collect(),
            dim: 7,
            identities: (0..n).map(|_| rng.random_range(0..12)).collect(),
            cameras: vec![0; n],
        };
        let (train, test) = (random(150), random(60));
        let got = knn(&train, &test, &KS, TEMPERATURE).unwrap();
        for (result, k) in got.iter().zip(KS) {
            let mut right = [0usize; 2];
            for t in 0..test.len() {
                let cosine = |g: usize| {
                    let dot = |a: &[f32], b: &[f32]| {
                        a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>()
                    };
                    let (a, b) = (test.row(t), train.row(g));
                    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
                };
                let mut all: Vec<(f64, i64)> = (0..150).map(|g| (cosine(g), train.identities[g])).collect();
                all.sort_by(|a, b| b.0.total_cmp(&a.0));
                let mut votes = [(0f64, 0i64); 12];
                votes.iter_mut().enumerate().for_each(|(c, v)| v.1 = c as i64);
                all.iter().take(k).for_each(|(s, c)| votes[*c as usize].0 += (s / 0.07).exp());
                votes.sort_by(|a, b| b.0.total_cmp(&a.0));
                let voted: Vec<i64> = votes.iter().filter(|v| v.0 > 0.0).map(|v| v.1).collect();
                right[0] += usize::from(voted[0] == test.identities[t]);
                right[1] += usize::from(voted.iter().take(5).any(|c| *c == test.identities[t]));
            }
            assert_eq!(result.k, k);
            assert!((result.top1 - right[0] as f64 / 60.0).abs() < 1e-12, "{result:?} {right:?}");
            assert!((result.top5 - right[1] as f64 / 60.0).abs() < 1e-12, "{result:?} {right:?}");
        }
        assert!(got[0].top5 > got[0].top1);
    }

    #[test]
    fn no_image_is_its_own_neighbour() {
        // Each is nearest to itself; of the others, the nearest is of the same class for the first three alone.
        let all = set(&[(0.0, 1), (2.0, 1), (5.0, 1), (8.0, 2)]);
        let top1 = |k| knn_leave_one_out(&all, &[k], 0.07).unwrap()[0].top1;
        assert_eq!(top1(1), 0.75);
        assert_eq!(top1(200), 0.75, "all the others vote");
        assert_eq!(knn(&all, &all, &[1], 0.07).unwrap()[0].top1, 1.0);
        assert!(knn_leave_one_out(&set(&[(0.0, 1)]), &[1], 0.07).is_err());
    }

    #[test]
    fn bad_settings_are_refused() {
        let set = set(&[(0.0, 1)]);
        assert!(knn(&set, &set, &[0], 0.07).is_err());
        assert!(knn(&set, &set, &[1], 0.0).is_err());
        assert!(knn(&set, &set, &[1], f64::NAN).is_err());
    }
}
