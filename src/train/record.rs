//! What a run records: a line of `metrics.jsonl` and points of TensorBoard's charts, and how it ended.

use super::folder::RunFolder;
use super::metrics::MetricsLog;
use super::tensorboard::EventWriter;
use crate::error::Result;
use crate::metrics::reference::Reference;
use serde_json::{Map, Value, json};

/// The tags of the probe's mean average precision and of its share of right first places.
pub(super) const PROBE_MAP: &str = "probe/map";
pub(super) const PROBE_RANK1: &str = "probe/rank1";
/// Share of queries whose nearest image is one by their own camera.
pub(super) const PROBE_OWN_CAMERA: &str = "probe/own_camera";

/// How several ranks got on in a step: tag, and name of the curve.
pub(super) const EXPOSED: (&str, &str) = ("dist/exposed_ms", "communication that nothing hides, ms");
pub(super) const SPREAD: (&str, &str) = ("dist/spread_ms", "slowest rank behind the fastest, ms");
pub(super) const SLOWEST: (&str, &str) = ("dist/slowest_rank", "slowest rank");

/// The tag of a reference line, recorded once with the first probe; `metric` is the probe's.
pub(super) fn reference_tag(reference: Reference, metric: &str) -> String {
    format!("reference/{}/{}", reference.tag(), metric.trim_start_matches("probe/"))
}

/// The logs of a run.
pub(super) struct Recorder {
    metrics: MetricsLog,
    events: EventWriter,
}

impl Recorder {
    /// The logs in `folder`: new ones, or those of a run that goes on after step `resumed`, without what was logged behind it.
    ///
    /// # Errors
    /// Files that cannot be written, or a log that cannot be read.
    pub fn open(folder: &RunFolder, resumed: Option<u64>) -> Result<Self> {
        let (metrics, events) = match resumed {
            Some(step) => {
                (MetricsLog::resume(folder.metrics(), step)?, EventWriter::resume(folder.path(), step + 1)?)
            }
            None => (MetricsLog::append_to(folder.metrics())?, EventWriter::create(folder.path())?),
        };
        Ok(Recorder { metrics, events })
    }

    /// One line of `metrics.jsonl` and one point of every TensorBoard chart.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn record(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        for (tag, value) in values {
            // JSON has no NaN; null says that the value was not finite.
            line.insert(tag.clone(), if value.is_finite() { json!(value) } else { Value::Null });
            self.events.scalar(tag, step, *value as f32)?;
        }
        self.metrics.write(&line)?;
        self.events.flush()
    }

    /// Returns when the lines are on disk.
    ///
    /// # Errors
    /// A disk that does not take them.
    pub fn sync(&mut self) -> Result<()> {
        self.metrics.sync()
    }
}
