//! What a step says of itself.

/// What one micro step has to say. Losses of objectives that are switched off are absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    pub total: f64,
    pub parts: Vec<(String, f64)>,
    /// What the objective's monitor watches; empty where it watches nothing.
    pub statistics: Vec<f64>,
}

impl Losses {
    /// With `self` the mean of `n` micro steps, that of these and one more.
    pub fn with(&self, next: &Losses, n: u64) -> Losses {
        if n == 0 {
            return next.clone();
        }
        let w = 1.0 / (n as f64 + 1.0);
        let blend = |a: f64, b: f64| a + (b - a) * w;
        Losses {
            total: blend(self.total, next.total),
            parts: self.parts.iter().zip(&next.parts).map(|(a, b)| (a.0.clone(), blend(a.1, b.1))).collect(),
            statistics: self.statistics.iter().zip(&next.statistics).map(|(a, b)| blend(*a, *b)).collect(),
        }
    }
}

/// What the update found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Health {
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    pub clip_factor: f64,
    /// False when loss or gradient was not finite: then nothing was updated.
    pub finite: bool,
}
