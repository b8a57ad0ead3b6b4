//! Curves over steps as inline SVG.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::color::{ALARM, GRID, INK};
use super::escape::escape;
use super::smooth::{Point, is_drawable, robust_range, segments, smoothed, smoothed_log, thinned};
use crate::error::{Error, Result};

/// plotters places on whole pixels: drawing at four times the size keeps curves smooth.
const SCALE: i32 = 4;
const WIDTH: i32 = 560;
const HEIGHT: i32 = 210;
/// Room for the labels, in display pixels.
const LEFT: i32 = 50;
const BOTTOM: i32 = 24;
const FONT: i32 = 12;
/// plotters divides a font's size by this before it writes the SVG attribute.
const PLOTTERS_FONT_FACTOR: f64 = 1.24;

/// How values are written on the axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Number,
    /// Fractions of one, shown as percent.
    Percent,
    /// Steps, shown with k and M.
    Step,
}

pub(super) struct Line<'a> {
    pub points: &'a [Point],
    pub color: RGBColor,
    /// Noisy per-step values: drawn pale under their moving average.
    pub smooth: bool,
    /// Dashed horizontal line to compare with.
    pub baseline: Option<f64>,
}

pub(super) struct Chart<'a> {
    /// Read out by screen readers.
    pub label: &'a str,
    pub lines: Vec<Line<'a>>,
    pub unit: Unit,
    /// Logarithmic values where they span more than a decade and a half.
    pub allow_log: bool,
}

impl Chart<'_> {
    /// The chart, or `None` when there is not one value to draw.
    pub fn svg(&self) -> Result<Option<String>> {
        let drawable = || self.lines.iter().flat_map(|l| l.points).filter(|p| is_drawable(p));
        if drawable().next().is_none() {
            return Ok(None);
        }
        let (x0, x1) = extent(self.lines.iter().flat_map(|l| l.points).map(|p| p.0));
        let x = Axis::new(x0, x1, 0.0, 6, Unit::Step);
        let y = self.y_axis();
        let mut svg = String::new();
        self.draw(&mut svg, x, y).map_err(|message| Error::Invariant { pass: "drawing a chart", message })?;
        // The size becomes the style sheet's business; the view box stays.
        let body = svg.find('>').map_or("", |end| &svg[end + 1..]);
        let (w, h) = (WIDTH * SCALE, HEIGHT * SCALE);
        Ok(Some(format!(
            "<svg class=\"chart\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{}\" \
             xmlns=\"http://www.w3.org/2000/svg\">{body}",
            escape(self.label)
        )))
    }

    fn y_axis(&self) -> Axis {
        let baselines = self.lines.iter().filter_map(|l| l.baseline).filter(|b| is_drawable(&(0.0, *b)));
        let all = self.lines.iter().flat_map(|l| l.points).filter(|p| is_drawable(p)).map(|p| p.1);
        let (low, high) = extent(all.chain(baselines.clone()));
        if self.allow_log && low > 0.0 && high / low > 30.0 {
            return Axis::logarithmic(low, high);
        }
        let robust = self.lines.iter().filter_map(|line| {
            // Without smoothing every point is the message; with it a lone spike must not flatten the curve.
            if line.smooth { robust_range(line.points) } else { None }
        });
        let exact = self.lines.iter().filter(|l| !l.smooth).flat_map(|l| l.points);
        let (low, high) = extent(
            robust
                .flat_map(|(a, b)| [a, b])
                .chain(exact.filter(|p| is_drawable(p)).map(|p| p.1))
                .chain(baselines),
        );
        Axis::new(low, high, 0.06, 5, self.unit)
    }

    fn draw(&self, svg: &mut String, x: Axis, y: Axis) -> Result<(), String> {
        let message = |e: &dyn std::fmt::Display| e.to_string();
        let size = ((WIDTH * SCALE) as u32, (HEIGHT * SCALE) as u32);
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        let (y_low, y_high, log) = (y.low, y.high, y.log);
        let mut chart = ChartBuilder::on(&root)
            .margin_top(8 * SCALE)
            .margin_right(14 * SCALE)
            .x_label_area_size(BOTTOM * SCALE)
            .y_label_area_size(LEFT * SCALE)
            .build_cartesian_2d(x, y)
            .map_err(|e| message(&e))?;
        let font = ("system-ui, sans-serif", (FONT * SCALE) as f64 * PLOTTERS_FONT_FACTOR);
        chart
            .configure_mesh()
            .bold_line_style(GRID.stroke_width(SCALE as u32))
            .light_line_style(TRANSPARENT)
            .axis_style(INK.stroke_width(SCALE as u32))
            .set_all_tick_mark_size(4 * SCALE)
            .label_style(font.into_font().color(&INK))
            .draw()
            .map_err(|e| message(&e))?;
        let clip = |p: Point| (p.0, p.1.clamp(y_low, y_high));
        for line in &self.lines {
            if let Some(value) = line.baseline.filter(|b| b.is_finite()) {
                let ends = [clip((x0_of(&chart), value)), clip((x1_of(&chart), value))];
                let style = line.color.stroke_width(3 * SCALE as u32 / 2);
                chart
                    .draw_series(DashedLineSeries::new(ends, 6 * SCALE, 5 * SCALE, style))
                    .map_err(|e| message(&e))?;
            }
            let average = if log { smoothed_log } else { smoothed };
            let averaged = if line.smooth { Some(average(line.points)) } else { None };
            let pale = line.color.mix(0.3).stroke_width(SCALE as u32);
            let bold = line.color.stroke_width(2 * SCALE as u32);
            let layers = [Some((line.points, if line.smooth { pale } else { bold })), {
                averaged.as_deref().map(|points| (points, bold))
            }];
            for (points, style) in layers.into_iter().flatten() {
                for run in segments(points) {
                    let run: Vec<Point> = thinned(&run).into_iter().map(clip).collect();
                    // Few points are measurements worth seeing one by one; a lone one would be invisible as a line.
                    if run.len() == 1 || (!line.smooth && line.points.len() <= 40) {
                        let dots = run.iter().map(|&p| Circle::new(p, 3 * SCALE, style.filled()));
                        chart.draw_series(dots).map_err(|e| message(&e))?;
                    }
                    chart.draw_series([PathElement::new(run, style)]).map_err(|e| message(&e))?;
                }
            }
            let lost = line.points.iter().filter(|p| !is_drawable(p) && p.0.is_finite()).take(200);
            let marks = lost.map(|p| TriangleMarker::new((p.0, y_low), 5 * SCALE, ALARM.filled()));
            chart.draw_series(marks).map_err(|e| message(&e))?;
        }
        drop(chart);
        root.present().map_err(|e| message(&e))
    }
}

type Context<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

fn x0_of(chart: &Context) -> f64 {
    chart.x_range().start
}

fn x1_of(chart: &Context) -> f64 {
    chart.x_range().end
}

/// Lowest and highest finite value; (0, 1) when there is none.
fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut out: Option<(f64, f64)> = None;
    for v in values.filter(|v| is_drawable(&(*v, *v))) {
        out = Some(out.map_or((v, v), |(low, high)| (low.min(v), high.max(v))));
    }
    out.unwrap_or((0.0, 1.0))
}

/// A value axis with its ticks decided up front: plotters' own search for ticks does not end for every range.
#[derive(Clone, Debug)]
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    /// Distance of the ticks, which decides how many digits a label needs.
    step: f64,
    log: bool,
    unit: Unit,
}

impl Axis {
    /// Covers `low..high` widened by the fraction `margin` on either side, with about `count` ticks at 1, 2 or 5
    /// times a power of ten.
    fn new(low: f64, high: f64, margin: f64, count: usize, unit: Unit) -> Self {
        let size = low.abs().max(high.abs());
        let span = high - low;
        let pad = if span > size * 1e-6 {
            span * margin
        } else if size > 0.0 {
            size * 0.05
        } else {
            1.0
        };
        // Steps have no margin, but one step alone still needs an axis.
        let (mut start, mut end) = (low - pad, high + pad);
        if low >= 0.0 && (start < 0.0 || low < 0.15 * high) && margin > 0.0 {
            start = 0.0;
        }
        if unit == Unit::Percent {
            end = end.min(1.0).max(high);
        }
        if end - start <= size * 1e-12 {
            end = start + size.max(1.0);
        }
        let rough = (end - start) / count as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|s| *s >= 0.75 * rough)
            .unwrap_or(rough);
        let first = (start / step - 1e-9).ceil();
        let ticks = (0..=2 * count)
            .map(|i| (first + i as f64) * step)
            .filter(|t| *t <= end + step * 1e-9)
            // Adding a tiny step to a large number can repeat it.
            .fold(Vec::new(), |mut ticks: Vec<f64>, t| {
                if ticks.last().is_none_or(|last| t > *last) {
                    ticks.push(t);
                }
                ticks
            });
        Axis { low: start, high: end, ticks, step, log: false, unit }
    }

    /// Ticks at powers of ten, and at 2 and 5 times those when there is room. `low` and `high` are positive.
    fn logarithmic(low: f64, high: f64) -> Self {
        let (a, b) = (low.log10(), high.log10());
        let (start, end) = (a - 0.05 * (b - a), b + 0.05 * (b - a));
        let (first, last) = (start.ceil() as i32, end.floor() as i32);
        let every = ((last - first) / 6 + 1) as usize;
        let multiples: &[f64] = if last - first < 3 { &[0.2, 0.5, 1.0, 2.0, 5.0] } else { &[1.0] };
        let mut ticks: Vec<f64> = (first..=last)
            .step_by(every)
            .flat_map(|e| multiples.iter().map(move |m| m * 10f64.powi(e)))
            .filter(|t| (start..=end).contains(&t.log10()))
            .collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup_by(|a, b| (*a / *b - 1.0).abs() < 1e-9);
        Axis {
            low: 10f64.powf(start),
            high: 10f64.powf(end),
            ticks,
            step: 0.0,
            log: true,
            unit: Unit::Number,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let f = |v: f64| if self.log { v.log10() } else { v };
        let t = (f(*value) - f(self.low)) / (f(self.high) - f(self.low));
        (limit.0 as f64 + t * (limit.1 - limit.0) as f64).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let v = *value;
        let size = self.low.abs().max(self.high.abs());
        if v.abs() < self.step * 1e-6 {
            return if self.unit == Unit::Percent { "0%".to_owned() } else { "0".to_owned() };
        }
        if self.log {
            return number(v, v.abs(), v.abs());
        }
        match self.unit {
            Unit::Step if v >= 1000.0 => {
                let text = crate::units::human_count(v.round() as u64);
                let (digits, unit) = text.split_once(' ').unwrap_or((&text, ""));
                let digits = if digits.contains('.') {
                    digits.trim_end_matches('0').trim_end_matches('.')
                } else {
                    digits
                };
                format!("{digits}{unit}")
            }
            Unit::Percent => format!("{}%", number(v * 100.0, self.step * 100.0, size * 100.0)),
            Unit::Step | Unit::Number => number(v, self.step, size),
        }
    }
}

/// `v` with the digits that tell it from its neighbours at distance `step`; scientific where the axis' largest value,
/// `size`, calls for it.
fn number(v: f64, step: f64, size: f64) -> String {
    let place = (step.log10() + 1e-9).floor();
    if !(1e-3..1e6).contains(&size) {
        let digits = (v.abs().log10().floor() - place).clamp(0.0, 7.0) as usize;
        return format!("{v:.digits$e}");
    }
    let digits = (-place).clamp(0.0, 7.0) as usize;
    format!("{v:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[Point], smooth: bool, baseline: Option<f64>) -> Option<String> {
        let line = Line { points, color: ALARM, smooth, baseline };
        Chart { label: "a <b>", lines: vec![line], unit: Unit::Number, allow_log: true }.svg().unwrap()
    }

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|t| axis.format_ext(t)).collect()
    }

    #[test]
    fn nothing_to_draw_is_no_chart() {
        assert!(chart(&[], true, None).is_none());
        assert!(chart(&[(0.0, f64::NAN), (f64::NAN, 1.0), (1.0, f64::INFINITY)], true, Some(1.0)).is_none());
    }

    #[test]
    fn odd_series_draw() {
        let series: [&[Point]; 7] = [
            &[(5.0, 1.0)],
            &[(0.0, 0.0), (0.0, 0.0)],
            &[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
            &[(0.0, 1e-300), (1.0, 2e-300)],
            &[(0.0, 1e29), (1.0, -1e29)],
            &[(0.0, 1e15), (1.0, 1e15 + 0.25)],
            &[(1e16, 1.0), (1e16 + 2.0, 5e8)],
        ];
        for points in series {
            for smooth in [false, true] {
                let svg = chart(points, smooth, Some(f64::NAN)).unwrap();
                assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{points:?}");
                assert!(svg.len() < 40_000, "{points:?}: {} bytes", svg.len());
            }
        }
    }

    #[test]
    fn a_lost_value_is_marked() {
        let marked = chart(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)], false, None).unwrap();
        let whole = chart(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)], false, None).unwrap();
        assert_eq!(marked.matches("<polygon").count(), whole.matches("<polygon").count() + 1);
    }

    #[test]
    fn everything_stays_inside_the_frame() {
        let mut points: Vec<Point> = (0..3000).map(|i| (i as f64, (i as f64 * 0.1).sin())).collect();
        points[1500].1 = 1e6;
        let svg = chart(&points, true, Some(0.5)).unwrap();
        let mut seen = 0;
        for list in svg.split("points=\"").skip(1).filter_map(|s| s.split('"').next()) {
            for pair in list.split_whitespace() {
                let (x, y) = pair.split_once(',').unwrap();
                assert!((0..=WIDTH * SCALE).contains(&x.parse().unwrap()), "{pair}");
                assert!((0..=HEIGHT * SCALE).contains(&y.parse().unwrap()), "{pair}");
                seen += 1;
            }
        }
        assert!(seen > 1000);
    }

    #[test]
    fn ticks_are_few_and_tell_values_apart() {
        assert_eq!(labels(&Axis::new(0.0, 2.5e-4, 0.06, 5, Unit::Number)).last().unwrap(), "2.5e-4");
        assert_eq!(labels(&Axis::new(0.996, 1.0, 0.06, 5, Unit::Number))[0], "0.996");
        assert_eq!(labels(&Axis::new(0.0, 30_000.0, 0.0, 6, Unit::Step)).last().unwrap(), "30k");
        assert_eq!(labels(&Axis::new(0.1, 0.42, 0.06, 5, Unit::Percent)), ["10%", "20%", "30%", "40%"]);
        for (low, high) in [(0.0, 0.0), (7.0, 7.0), (-3.0, 1e9), (1e-12, 1e-11), (-0.2, -0.1)] {
            let axis = Axis::new(low, high, 0.06, 5, Unit::Number);
            let mut names = labels(&axis);
            assert!((1..=12).contains(&names.len()), "{low} {high}: {names:?}");
            names.dedup();
            assert_eq!(names.len(), axis.ticks.len(), "{names:?}");
            assert!(axis.low < axis.high);
        }
        assert_eq!(labels(&Axis::logarithmic(0.01, 100.0)), ["0.01", "0.1", "1", "10", "100"]);
    }
}
