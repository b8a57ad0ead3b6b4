//! What a user sees while a run goes on: a bar on a terminal, plain lines elsewhere; both on standard error, because
//! standard output belongs to results.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Plain lines come no less often, however slow the steps are.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
/// Steps whose mean is shown as the present pace.
const WINDOW: usize = 32;
/// A single step that takes this many times as long as the others is no part of the pace: the first one, in which memory
/// is touched for the first time, or one in which the machine was busy otherwise.
const OUTLIER: f64 = 3.0;

/// What one step has to show.
#[derive(Clone, Copy, Debug)]
pub struct StepReport<'a> {
    /// Completed steps, this one included.
    pub step: u64,
    /// Images that this step consumed.
    pub images: usize,
    /// Name and value of the loss and its parts, the total first.
    pub losses: &'a [(&'a str, f64)],
    pub lr: f64,
}

/// The progress of a run. Dropping it leaves the terminal in order.
pub struct Progress {
    view: View,
    total: u64,
    last: Instant,
    /// Of the last steps of this process.
    pace: Pace,
}

/// How fast the last steps went.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds and images of each.
    steps: VecDeque<(f64, f64)>,
}

impl Pace {
    fn note(&mut self, seconds: f64, images: usize) {
        if self.steps.len() == WINDOW {
            self.steps.pop_front();
        }
        self.steps.push_back((seconds, images as f64));
    }

    /// Seconds per step and images per second; absent before the first step.
    fn now(&self) -> Option<(f64, f64)> {
        let slowest = self.steps.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0))?;
        let mut n = self.steps.len() as f64;
        let mut seconds: f64 = self.steps.iter().map(|s| s.0).sum();
        let mut images: f64 = self.steps.iter().map(|s| s.1).sum();
        if n > 1.0 && slowest.0 * (n - 1.0) > OUTLIER * (seconds - slowest.0) {
            (n, seconds, images) = (n - 1.0, seconds - slowest.0, images - slowest.1);
        }
        let seconds = seconds.max(1e-9);
        Some((seconds / n, images / seconds))
    }
}

enum View {
    Bar(ProgressBar),
    Lines { out: Box<dyn Write + Send>, every: u64, last: Instant },
}

impl Progress {
    /// A bar when standard error is a terminal, else a line every `every` steps or half a minute. `done` steps of
    /// `total` were made before, when a run is resumed.
    pub fn new(total: u64, done: u64, every: u64) -> Self {
        let now = Instant::now();
        if stderr().is_terminal() {
            Self::bar(total, done, ProgressDrawTarget::stderr(), now)
        } else {
            Self::lines(total, every, Box::new(stderr()), now)
        }
    }

    fn bar(total: u64, done: u64, target: ProgressDrawTarget, now: Instant) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), target);
        // Speed and remaining time are our own: indicatif's would count the steps before a resume.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        bar.set_position(done);
        Progress { view: View::Bar(bar), total, last: now, pace: Pace::default() }
    }

    fn lines(total: u64, every: u64, out: Box<dyn Write + Send>, now: Instant) -> Self {
        let view = View::Lines { out, every: every.max(1), last: now };
        Progress { view, total, last: now, pace: Pace::default() }
    }

    /// Notes a completed step.
    pub fn step(&mut self, report: &StepReport<'_>) {
        self.step_at(report, Instant::now());
    }

    fn step_at(&mut self, report: &StepReport<'_>, now: Instant) {
        self.pace.note(now.saturating_duration_since(self.last).as_secs_f64(), report.images);
        self.last = now;
        let message = self.message(report);
        let total = self.total;
        match &mut self.view {
            View::Bar(bar) => {
                bar.set_position(report.step);
                bar.set_message(message);
            }
            View::Lines { out, every, last } => {
                let due = report.step.is_multiple_of(*every) || report.step == total;
                if due || now.saturating_duration_since(*last) >= PLAIN_INTERVAL {
                    *last = now;
                    // A closed standard error must not end a run of days.
                    let _ = writeln!(out, "step {}/{total} {message}", report.step);
                }
            }
        }
    }

    fn message(&self, report: &StepReport<'_>) -> String {
        let mut text = String::new();
        for (name, value) in report.losses {
            let _ = write!(text, "{name} {value:.4} ");
        }
        let _ = write!(text, "lr {:.2e}", report.lr);
        if let Some((seconds, speed)) = self.pace.now() {
            let left = self.total.saturating_sub(report.step) as f64 * seconds;
            let _ = write!(text, "  {speed:.1} images/s  {} left", duration(left));
        }
        text
    }

    /// The time since the last step is not training time: a checkpoint, a probe.
    pub fn resume_clock(&mut self) {
        self.last = Instant::now();
    }

    /// Prints a line without disturbing the bar.
    pub fn println(&mut self, line: &str) {
        match &mut self.view {
            // A bar without a terminal swallows lines.
            View::Bar(bar) if bar.is_hidden() => eprintln!("{line}"),
            View::Bar(bar) => bar.println(line),
            View::Lines { out, .. } => {
                let _ = writeln!(out, "{line}");
            }
        }
    }

    /// Ends the display; the bar stays as it is.
    pub fn finish(&mut self) {
        if let View::Bar(bar) = &self.view {
            bar.abandon();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `42s`, `3m07s`, `5h02m`, `4d03h`.
fn duration(seconds: f64) -> String {
    let s = seconds.round().max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86400, s % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const LOSSES: &[(&str, f64)] = &[("loss", 3.5), ("csm", 2.25)];

    fn report(step: u64) -> StepReport<'static> {
        StepReport { step, images: 32, losses: LOSSES, lr: 1.5e-3 }
    }

    fn lines_of(total: u64, every: u64, steps: std::ops::RangeInclusive<u64>, each: Duration) -> Vec<String> {
        let (out, mut now) = (Shared::default(), Instant::now());
        let mut progress = Progress::lines(total, every, Box::new(out.clone()), now);
        for step in steps {
            now += each;
            progress.step_at(&report(step), now);
        }
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        text.lines().map(String::from).collect()
    }

    #[test]
    fn plain_lines_come_every_so_often_and_at_the_end() {
        let lines = lines_of(25, 10, 1..=25, Duration::from_secs(2));
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert_eq!(lines[1], "step 20/25 loss 3.5000 csm 2.2500 lr 1.50e-3  16.0 images/s  10s left");
        assert!(lines[2].starts_with("step 25/25") && lines[2].ends_with(" 0s left"));
    }

    #[test]
    fn slow_steps_show_by_time() {
        let lines = lines_of(100, 1000, 1..=4, Duration::from_secs(16));
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("step 2/100"));
    }

    /// The start-up, or a process that was stopped for a while, is forgotten at the next step; a lasting change is not.
    #[test]
    fn the_pace_settles_within_a_few_steps() {
        let mut pace = Pace::default();
        assert_eq!(pace.now(), None);
        let mut after = |seconds: f64| {
            pace.note(seconds, 8);
            pace.now().unwrap()
        };
        assert_eq!(after(40.0), (40.0, 0.2));
        for _ in 0..20 {
            assert_eq!(after(0.5), (0.5, 16.0));
        }
        assert_eq!(after(3600.0).0, (40.0 + 0.5 * 20.0) / 21.0, "one outlier at most is left out");
        for _ in 0..11 {
            after(0.5);
        }
        assert_eq!(after(0.5), (0.5, 16.0), "the first step has left the window");
        // Sizes that take turns are all counted, and twice as slow is twice as slow.
        for _ in 0..WINDOW / 2 {
            after(1.0);
            after(2.0);
        }
        assert_eq!(after(1.0).0, 1.5);
    }

    #[test]
    fn after_a_resume_the_remaining_time_counts_only_own_steps() {
        let lines = lines_of(1000, 901, 901..=901, Duration::from_secs(1));
        assert!(lines[0].ends_with("1m39s left"), "{lines:?}");
    }

    #[test]
    fn the_bar_starts_where_the_run_was_resumed() {
        let mut now = Instant::now();
        let mut progress = Progress::bar(100, 50, ProgressDrawTarget::hidden(), now);
        let View::Bar(bar) = &progress.view else { panic!("a bar") };
        let bar = bar.clone();
        assert_eq!((bar.position(), bar.length()), (50, Some(100)));
        now += Duration::from_secs(1);
        progress.step_at(&report(51), now);
        assert_eq!(bar.position(), 51);
        assert_eq!(bar.message(), "loss 3.5000 csm 2.2500 lr 1.50e-3  32.0 images/s  49s left");
        drop(progress);
        assert!(bar.is_finished());
    }

    #[test]
    fn durations_are_short() {
        let all = [0.4, 59.0, 187.0, 18_130.0, 356_400.0].map(duration);
        assert_eq!(all, ["0s", "59s", "3m07s", "5h02m", "4d03h"]);
    }
}
