//! Person re-identification metrics, as TransReID and fast-reid compute them: L2-normalised features ranked by
//! Euclidean distance; gallery images of the query's person from the query's camera are left out; average precision
//! over the whole ranking; a query without a match in the gallery does not count.

use rayon::prelude::*;

pub use super::features::Features;
use super::features::{self, QUERY_BLOCK};
use crate::error::{Error, Result};

/// Means over the valid queries, each between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct RetrievalMetrics {
    /// Mean average precision: per query, the sum of the precisions at its matches over their number.
    pub map: f64,
    /// Share of queries with a match at the first place of the ranking.
    pub rank1: f64,
    /// ... among the first five.
    pub rank5: f64,
    /// ... among the first ten.
    pub rank10: f64,
    /// Share of queries whose nearest image in the ranking is one by their own camera (of another person, then).
    pub own_camera: f64,
    /// The same share if rankings were drawn by lot.
    pub own_camera_chance: f64,
    /// Queries with at least one match in the gallery.
    pub valid_queries: usize,
}

/// Ranks `gallery` for every query. Equal distances are ranked by position in the gallery. The result does not depend
/// on the number of threads.
///
/// # Errors
/// Empty, ill-formed or non-finite features, different dimensions, or no valid query.
pub fn retrieval(query: &Features, gallery: &Features) -> Result<RetrievalMetrics> {
    features::check_pair((query, "query"), (gallery, "gallery"))?;
    let (dim, n) = (query.dim, gallery.len());
    let (queries, images) = (query.normalized(), gallery.normalized());
    let scores: Vec<Option<Score>> = queries
        .par_chunks(QUERY_BLOCK * dim)
        .enumerate()
        .flat_map_iter(|(block, rows)| {
            let mut distances = vec![0f64; rows.len() / dim * n];
            features::pairwise(rows, &images, dim, &mut distances, features::squared_difference);
            let scores: Vec<_> = distances
                .chunks_exact(n)
                .enumerate()
                .map(|(i, d)| score(d, query, block * QUERY_BLOCK + i, gallery))
                .collect();
            scores
        })
        .collect();
    let valid: Vec<Score> = scores.into_iter().flatten().collect();
    if valid.is_empty() {
        return Err(Error::usage(format!(
            "none of the {} queries has its person in the gallery on another camera: nothing to rank; \
             check the labels of both sets",
            query.len()
        )));
    }
    let count = valid.len() as f64;
    let mean = |of: fn(&Score) -> f64| valid.iter().map(of).sum::<f64>() / count;
    let within = |k: usize| valid.iter().filter(|s| s.first_match < k).count() as f64 / count;
    Ok(RetrievalMetrics {
        map: mean(|s| s.average_precision),
        rank1: within(1),
        rank5: within(5),
        rank10: within(10),
        own_camera: mean(|s| f64::from(u8::from(s.nearest_is_own_camera))),
        own_camera_chance: mean(|s| s.own_camera_share),
        valid_queries: valid.len(),
    })
}

struct Score {
    average_precision: f64,
    /// Place of the first match in the ranking, from 0.
    first_match: usize,
    /// Whether the first image of the ranking is by the query's camera.
    nearest_is_own_camera: bool,
    /// Share of the ranked images that are by the query's camera.
    own_camera_share: f64,
}

/// Whether the protocol hides gallery image `g` from query `q`.
fn hidden(query: &Features, q: usize, gallery: &Features, g: usize) -> bool {
    gallery.identities[g] == query.identities[q] && gallery.cameras[g] == query.cameras[q]
}

/// The score of query `q` by its distances to all gallery images; `None` without a match.
///
/// Only the places of the matches matter, and they are few: counting how many images come before each costs less than
/// sorting the whole gallery.
fn score(distances: &[f64], query: &Features, q: usize, gallery: &Features) -> Option<Score> {
    let person = query.identities[q];
    let visible = || (0..distances.len()).filter(|g| !hidden(query, q, gallery, *g));
    let order = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let mut matches: Vec<(f64, usize)> =
        visible().filter(|g| gallery.identities[*g] == person).map(|g| (distances[g], g)).collect();
    matches.sort_unstable_by(order);
    // others[i]: images of other persons between match i - 1 and match i.
    let mut others = vec![0usize; matches.len() + 1];
    for g in visible().filter(|g| gallery.identities[*g] != person) {
        let image = (distances[g], g);
        others[matches.partition_point(|m| order(m, &image).is_lt())] += 1;
    }
    let mut place = 0;
    let mut precision = 0.0;
    for (i, before) in others.iter().take(matches.len()).enumerate() {
        place += before + 1;
        precision += (i + 1) as f64 / place as f64;
    }
    let own = |g: &usize| gallery.cameras[*g] == query.cameras[q];
    let nearest = visible().min_by(|a, b| order(&(distances[*a], *a), &(distances[*b], *b)));
    (!matches.is_empty()).then(|| Score {
        average_precision: precision / matches.len() as f64,
        first_match: others[0],
        nearest_is_own_camera: nearest.as_ref().is_some_and(own),
        own_camera_share: visible().filter(own).count() as f64 / visible().count().max(1) as f64,
    })
}

/// The `k` gallery images nearest to query `row`, nearest first, as (position in the gallery, Euclidean distance of
/// the normalised features); fewer where the gallery holds fewer. Images that the metrics leave out are left out here.
///
/// # Errors
/// As [`retrieval`], or a `row` beyond the queries.
pub fn nearest(query: &Features, row: usize, gallery: &Features, k: usize) -> Result<Vec<(usize, f32)>> {
    features::check_pair((query, "query"), (gallery, "gallery"))?;
    if row >= query.len() {
        return Err(Error::usage(format!("there is no query {row}: there are {}", query.len())));
    }
    let mut vector = query.row(row).to_vec();
    features::normalize(&mut vector);
    let mut distances = vec![0f64; gallery.len()];
    features::pairwise(
        &vector,
        &gallery.normalized(),
        query.dim,
        &mut distances,
        features::squared_difference,
    );
    let mut ranked: Vec<(usize, f64)> =
        distances.into_iter().enumerate().filter(|(g, _)| !hidden(query, row, gallery, *g)).collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    ranked.truncate(k);
    Ok(ranked.into_iter().map(|(g, d)| (g, d.sqrt() as f32)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::{Purpose, stream};
    use rand::RngExt;

    fn features(rows: &[(&[f32], i64, i64)]) -> Features {
        Features {
            values: rows.iter().flat_map(|r| r.0.iter().copied()).collect(),
            dim: rows[0].0.len(),
            identities: rows.iter().map(|r| r.1).collect(),
            cameras: rows.iter().map(|r| r.2).collect(),
        }
    }

    #[test]
    fn a_ranking_worked_by_hand() {
        // Angles to the query: hidden 0, distractor 10, match 20, other 30, match 40 degrees; lengths must not matter.
        let at = |degrees: f32, length: f32| {
            [length * degrees.to_radians().cos(), length * degrees.to_radians().sin()]
        };
        let query = features(&[(&at(0.0, 2.0), 7, 1), (&at(0.0, 1.0), 9, 1)]);
        let gallery = features(&[
            (&at(40.0, 0.1), 7, 2),
            (&at(30.0, 9.0), 8, 1),
            (&at(20.0, 5.0), 7, 3),
            (&at(10.0, 1.0), 0, 1),
            (&at(0.0, 1.0), 7, 1),
        ]);
        // The matches are at places 2 and 4: AP = (1/2 + 2/4) / 2. Query 9 has no match and does not count.
        let metrics = retrieval(&query, &gallery).unwrap();
        assert_eq!(metrics.valid_queries, 1);
        assert!((metrics.map - 0.5).abs() < 1e-12);
        assert_eq!((metrics.rank1, metrics.rank5, metrics.rank10), (0.0, 1.0, 1.0));
        // The distractor in front is by the query's camera, as two of the four ranked images are.
        assert_eq!((metrics.own_camera, metrics.own_camera_chance), (1.0, 0.5));
        let near = nearest(&query, 0, &gallery, 3).unwrap();
        assert_eq!(near.iter().map(|n| n.0).collect::<Vec<_>>(), [3, 2, 1]);
        assert!((near[0].1 - 2.0 * 5f32.to_radians().sin()).abs() < 1e-6);
    }

    /// The definition, word by word: sort everything, walk down the ranking.
    fn by_definition(query: &Features, gallery: &Features) -> Option<[f64; 5]> {
        let unit = |v: &[f32]| {
            let norm = v.iter().map(|x| (*x as f64) * (*x as f64)).sum::<f64>().sqrt().max(1e-12);
            v.iter().map(|x| (*x as f64 / norm) as f32).collect::<Vec<f32>>()
        };
        let mut sums = [0f64; 4];
        let mut valid = 0f64;
        for q in 0..query.len() {
            let a = unit(query.row(q));
            let mut ranking = Vec::new();
            for g in 0..gallery.len() {
                if gallery.identities[g] == query.identities[q] && gallery.cameras[g] == query.cameras[q] {
                    continue;
                }
                let b = unit(gallery.row(g));
                let d: f64 = a.iter().zip(&b).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum();
                ranking.push((d, g));
            }
            ranking.sort_by(|x, y| x.0.partial_cmp(&y.0).unwrap().then(x.1.cmp(&y.1)));
            let hits: Vec<bool> =
                ranking.iter().map(|(_, g)| gallery.identities[*g] == query.identities[q]).collect();
            let relevant = hits.iter().filter(|h| **h).count();
            if relevant == 0 {
                continue;
            }
            valid += 1.0;
            let (mut seen, mut ap) = (0.0, 0.0);
            for (place, hit) in hits.iter().enumerate() {
                if *hit {
                    seen += 1.0;
                    ap += seen / (place as f64 + 1.0);
                }
            }
            sums[0] += ap / relevant as f64;
            for (sum, k) in sums[1..].iter_mut().zip([1, 5, 10]) {
                *sum += f64::from(u8::from(hits.iter().take(k).any(|h| *h)));
            }
        }
        (valid > 0.0).then(|| [sums[0] / valid, sums[1] / valid, sums[2] / valid, sums[3] / valid, valid])
    }

    /// Every vector is one of a few, so that many tie exactly. Identity 0 stands for distractors.
    fn random(seed: u64, n: usize, dim: usize, persons: i64) -> Features {
        let mut rng = stream(99, 0, dim as u64, Purpose::Synth);
        let few: Vec<f32> = (0..12 * dim).map(|_| rng.random_range(-1f32..1.0)).collect();
        let mut rng = stream(seed, 0, n as u64, Purpose::Synth);
        let mut pick = || {
            let at = rng.random_range(0..12) * dim;
            few[at..at + dim].to_vec()
        };
        Features {
            values: (0..n).flat_map(|_| pick()).collect(),
            dim,
            identities: (0..n).map(|_| rng.random_range(0..persons)).collect(),
            cameras: (0..n).map(|_| rng.random_range(1..4)).collect(),
        }
    }

    #[test]
    fn agrees_with_the_definition_on_ties_distractors_and_lone_persons() {
        let mut uneven = 0;
        for seed in 0..40 {
            let dim = [2, 3, 5, 17, 40][seed as usize % 5];
            let mut query = random(seed, 21, dim, 9);
            query.identities.iter_mut().for_each(|p| *p += 1);
            let gallery = random(seed + 1000, 70, dim, 8);
            let want = by_definition(&query, &gallery).unwrap();
            let got = retrieval(&query, &gallery).unwrap();
            for (a, b) in
                [got.map, got.rank1, got.rank5, got.rank10, got.valid_queries as f64].iter().zip(want)
            {
                assert!((a - b).abs() < 1e-9, "seed {seed}: {got:?} against {want:?}");
            }
            uneven += usize::from(got.valid_queries < query.len());
            // The same set on both sides: every image finds the others of its person, never itself.
            let own = retrieval(&gallery, &gallery).unwrap();
            assert!((own.map - by_definition(&gallery, &gallery).unwrap()[0]).abs() < 1e-9);
        }
        assert!(uneven > 5, "queries without a match were to occur");
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let (query, gallery) = (random(5, 100, 19, 30), random(6, 300, 19, 30));
        let with = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| retrieval(&query, &gallery)).unwrap()
        };
        assert_eq!(with(1), with(5));
    }

    #[test]
    fn unusable_features_are_named() {
        let good = features(&[(&[1.0, 0.0], 1, 1), (&[0.0, 1.0], 1, 2)]);
        let says = |q: &Features, g: &Features, what: &str| {
            let error = retrieval(q, g).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(&good, &features(&[(&[1.0, f32::NAN], 4, 1)]), "gallery feature of image 0 (identity 4)");
        says(&features(&[(&[1.0, f32::INFINITY], 4, 1)]), &good, "query feature");
        says(&features(&[(&[1.0], 4, 1)]), &good, "dimension 1");
        says(&Features::default(), &good, "empty");
        says(&Features { values: vec![0.0; 3], ..good.clone() }, &good, "do not fit");
        says(&features(&[(&[1.0, 0.0], 4, 1)]), &good, "none of the 1 queries");
        assert!(nearest(&good, 2, &good, 1).is_err());
        // A zero vector is an odd feature, not an error.
        assert!(retrieval(&good, &features(&[(&[0.0, 0.0], 1, 3)])).is_ok());
    }
}
