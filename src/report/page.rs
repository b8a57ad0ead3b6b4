//! The page: verdict tiles, curves, pictures, memory, configuration.

use std::fmt::Write as _;

use plotters::style::RGBColor;

use super::chart::{Chart, Line, Unit};
use super::color::{PALETTE, hex};
use super::data::{Baseline, Curve, Curves, MemoryPicture, Pictures, RunSummary, Series};
use super::escape::escape;
use super::smooth::{first_and_last, last};
use super::{memory_svg, pictures};
use crate::error::Result;
use crate::units::{grouped, human_count, human_duration};

/// The whole report as one HTML document.
pub(super) fn html(
    summary: &RunSummary,
    curves: &Curves,
    pictures: Option<&Pictures>,
    memory: Option<&MemoryPicture>,
) -> Result<String> {
    let curve_section = curves_section(curves)?;
    let picture_sections = pictures.map(pictures::sections).transpose()?.unwrap_or_default();
    let mut out = head(&summary.title, &subtitle(summary));
    tiles(&mut out, summary, curves);
    alarms(&mut out, &summary.warnings);
    out.push_str(&curve_section);
    out.push_str(&picture_sections);
    if let Some(memory) = memory {
        let _ = writeln!(
            out,
            "<section id=\"memory\"><h2>Memory</h2><p class=\"note\">Each rectangle is a buffer of the arena: from \
             the first to the last step that needs it, at its offset. The line is the sum of live bytes; no \
             placement can need less than its highest point. Rest the pointer on a buffer for its name.</p>\
             <div class=\"scroll\">{}</div></section>",
            memory_svg(memory)
        );
    }
    let _ = writeln!(
        out,
        "<section id=\"config\"><details open><summary><h2>Configuration</h2></summary><pre>{}</pre></details>\
         </section>\n</main></body></html>",
        escape(summary.config_toml.trim_end())
    );
    Ok(out)
}

/// Says who wrote a page, so that it may be written again.
pub(super) const GENERATOR: &str = "<meta name=\"generator\" content=\"saip-engine report\">";

/// Everything down to the heading.
pub(super) fn head(title: &str, subtitle: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">{GENERATOR}\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title>\n<style>\n{}</style></head>\n<body><main>\n<header><h1>{title}</h1>\
         <p class=\"sub\">{}</p></header>\n",
        include_str!("style.css"),
        escape(subtitle),
    )
}

fn subtitle(summary: &RunSummary) -> String {
    let parts = [
        summary.device.clone(),
        format!("{} of training", human_duration(summary.seconds)),
        format!("saip-engine {}", env!("CARGO_PKG_VERSION")),
    ];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" · ")
}

/// What a tile says about the run. The sign says it to readers who do not see the colour.
#[derive(Clone, Copy)]
enum Verdict {
    Neutral,
    Good,
    Warn,
    Bad,
}

impl Verdict {
    fn class_and_sign(self) -> (&'static str, &'static str) {
        match self {
            Verdict::Neutral => ("", ""),
            Verdict::Good => ("good", "✓"),
            Verdict::Warn => ("warn", "!"),
            Verdict::Bad => ("bad", "✗"),
        }
    }
}

fn tile(out: &mut String, verdict: Verdict, name: &str, value: &str, more: &str) {
    let (class, sign) = verdict.class_and_sign();
    let _ = writeln!(
        out,
        "<div class=\"tile {class}\"><div class=\"name\"><span>{}</span><span class=\"sign\">{sign}</span></div>\
         <div class=\"value\">{}</div><div class=\"more\">{}</div></div>",
        escape(name),
        escape(value),
        escape(more)
    );
}

fn tiles(out: &mut String, summary: &RunSummary, curves: &Curves) {
    out.push_str("<div class=\"tiles\">\n");
    let seen = format!("{} images seen", human_count(summary.images_seen));
    tile(out, Verdict::Neutral, "steps", &grouped(summary.steps), &seen);
    let speed = summary.images_per_second;
    let rate = match speed {
        s if !s.is_finite() => "n/a".to_owned(),
        s if s < 100.0 => format!("{s:.1}"),
        s => grouped(s.round() as u64),
    };
    tile(out, Verdict::Neutral, "images/s", &rate, &format!("{} in all", human_duration(summary.seconds)));
    for series in &curves.losses {
        loss_tile(out, series);
    }
    for curve in &curves.probe {
        probe_tile(out, curve);
    }
    let (skipped, steps) = (summary.skipped_steps, summary.steps.max(1));
    let verdict = match skipped {
        0 => Verdict::Good,
        s if s * 100 <= steps => Verdict::Warn,
        _ => Verdict::Bad,
    };
    let share = match skipped {
        0 => "every update was applied".to_owned(),
        s => format!("{:.2} % of all, not finite", s as f64 / steps as f64 * 100.0),
    };
    tile(out, verdict, "skipped steps", &grouped(skipped), &share);
    let (verdict, more) = match summary.warnings.len() {
        0 => (Verdict::Good, "nothing to report"),
        _ => (Verdict::Bad, "listed below"),
    };
    tile(out, verdict, "alarms", &summary.warnings.len().to_string(), more);
    out.push_str("</div>\n");
    if let Some(text) = curves.probe.first().and_then(meaning) {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&text));
    }
}

/// What the last value of a probe means beside its reference lines, in one sentence.
pub(super) fn meaning(probe: &Curve) -> Option<String> {
    let value = last(&probe.series.points)?;
    let mut lines = probe.baselines.iter().filter(|b| b.value.is_finite() && b.value > 0.0);
    let start = lines.next()?;
    let best = lines.max_by(|a, b| a.value.total_cmp(&b.value))?;
    let [over, grown] = [value / best.value, value / start.value];
    let what = match (over, grown) {
        (_, g) if g < 1.1 => "nothing that finds persons again was learned",
        (o, _) if o < 1.0 => "what was learned is worth less than what needs no learning",
        (o, _) if o < 1.5 => "what was learned is worth a little more than what needs no learning",
        _ => "what was learned tells persons apart where colours and pixels alone do not",
    };
    Some(format!(
        "Persons are found again with {} {}, {over:.1} times the best line that needs no learning ({}, {}) and {grown:.1} \
         times that of {}: {what}.",
        probe.series.name,
        percent(value),
        best.label,
        percent(best.value),
        start.label
    ))
}

fn loss_tile(out: &mut String, series: &Series) {
    let name =
        if series.name.contains("loss") { series.name.clone() } else { format!("{} loss", series.name) };
    let Some((start, end)) = first_and_last(&series.points) else {
        if !series.points.is_empty() {
            tile(out, Verdict::Bad, &name, "not finite", "at every step");
        }
        return;
    };
    let verdict = if end < start { Verdict::Good } else { Verdict::Warn };
    let change =
        if start == 0.0 { String::new() } else { format!(" ({:+.0} %)", (end / start - 1.0) * 100.0) };
    tile(out, verdict, &name, &short(end), &format!("from {}{change}", short(start)));
}

fn probe_tile(out: &mut String, curve: &Curve) {
    let Some(value) = last(&curve.series.points) else { return };
    let mut baselines = curve.baselines.iter().filter(|b| b.value.is_finite());
    let first = baselines.next();
    let others: Vec<&Baseline> = baselines.collect();
    let (verdict, mut more) = match first {
        Some(b) if b.value > 0.0 => {
            let ratio = value / b.value;
            // What nobody trained is not to be taken for learning either.
            let verdict = match ratio {
                r if r < 1.0 => Verdict::Bad,
                r if r >= 1.1 && others.iter().all(|b| value > b.value) => Verdict::Good,
                _ => Verdict::Warn,
            };
            (verdict, format!("{ratio:.2}x {} ({})", b.label, percent(b.value)))
        }
        Some(b) => (Verdict::Neutral, format!("{} {}", b.label, percent(b.value))),
        None => (Verdict::Neutral, String::new()),
    };
    if !others.is_empty() {
        let list: Vec<String> = others.iter().map(|b| format!("{} {}", b.label, percent(b.value))).collect();
        more = format!("{more}; {}", list.join(", "));
    }
    tile(out, verdict, &format!("probe {}", curve.series.name), &percent(value), &more);
}

pub(super) fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// Four significant digits.
pub(super) fn short(v: f64) -> String {
    match v.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{v:.2e}"),
        a if a >= 100.0 => format!("{v:.1}"),
        a if a >= 10.0 => format!("{v:.2}"),
        a if a >= 1.0 => format!("{v:.3}"),
        _ => format!("{v:.4}"),
    }
}

fn alarms(out: &mut String, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    out.push_str("<ul class=\"alarms\">");
    for warning in warnings {
        let _ = write!(out, "<li>{}</li>", escape(warning));
    }
    out.push_str("</ul>\n");
}

fn curves_section(curves: &Curves) -> Result<String> {
    let mut figures = String::new();
    for (series, color) in curves.losses.iter().zip(PALETTE.into_iter().cycle()) {
        single(&mut figures, series, None, color, Style::Noisy)?;
    }
    for curve in &curves.probe {
        probe(&mut figures, curve)?;
    }
    for curve in &curves.collapse {
        single(&mut figures, &curve.series, Some(curve), PALETTE[3], Style::Noisy)?;
    }
    single(&mut figures, &curves.gradient_norm, None, PALETTE[4], Style::NoisyLog)?;
    for series in &curves.ranks {
        single(&mut figures, series, None, PALETTE[2], Style::Noisy)?;
    }
    single(&mut figures, &curves.learning_rate, None, PALETTE[5], Style::Exact)?;
    single(&mut figures, &curves.ema_momentum, None, PALETTE[5], Style::Exact)?;
    if figures.is_empty() {
        return Ok(String::new());
    }
    Ok(format!(
        "<section id=\"curves\"><h2>Curves</h2><p class=\"note\">Over training steps. Pale: each step; bold: moving \
         average; dashed: the value to compare with; red triangles: values that were not finite.</p>\
         <div class=\"curves\">\n{figures}</div></section>\n"
    ))
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Noisy,
    NoisyLog,
    Exact,
}

fn single(
    out: &mut String,
    series: &Series,
    curve: Option<&Curve>,
    color: RGBColor,
    style: Style,
) -> Result<()> {
    let baseline = curve.and_then(|c| c.baselines.first());
    let line = Line {
        points: &series.points,
        color,
        smooth: style != Style::Exact && series.points.len() > 1,
        baseline: baseline.map(|b| b.value),
    };
    let chart = Chart {
        label: &series.name,
        lines: vec![line],
        unit: Unit::Number,
        allow_log: style == Style::NoisyLog,
    };
    let now = match (first_and_last(&series.points), last(&series.points)) {
        (Some((_, mean)), _) if style != Style::Exact => short(mean),
        (_, Some(exact)) => short(exact),
        _ => String::new(),
    };
    let key = baseline.map_or(String::new(), |b| {
        format!(
            "<span class=\"key\"><i class=\"dash\" style=\"border-color:{}\"></i>{} {}</span>",
            hex(color),
            escape(&b.label),
            short(b.value)
        )
    });
    figure(
        out,
        &series.points,
        chart,
        &format!("{} <span class=\"now\">{now}</span>{key}", escape(&series.name)),
    )
}

/// A retrieval metric, and dashed in colours of their own the values to compare it with.
fn probe(out: &mut String, curve: &Curve) -> Result<()> {
    let name = format!("frozen-feature probe, {}", curve.series.name);
    let mut colors = PALETTE.into_iter().cycle();
    let mut line = |points, baseline| Line {
        points,
        color: colors.next().unwrap_or(PALETTE[0]),
        smooth: false,
        baseline,
    };
    let own = line(&curve.series.points[..], None);
    let lines: Vec<Line> =
        std::iter::once(own).chain(curve.baselines.iter().map(|b| line(&[], Some(b.value)))).collect();
    let now = last(&curve.series.points).map_or(String::new(), percent);
    let mut caption = format!(
        "{} <span class=\"key\"><i style=\"border-color:{}\"></i><span class=\"now\">{now}</span></span>",
        escape(&name),
        hex(lines[0].color)
    );
    for (baseline, line) in curve.baselines.iter().zip(&lines[1..]) {
        let _ = write!(
            caption,
            "<span class=\"key\"><i class=\"dash\" style=\"border-color:{}\"></i>{} {}</span>",
            hex(line.color),
            escape(&baseline.label),
            percent(baseline.value)
        );
    }
    let chart = Chart { label: &name, lines, unit: Unit::Percent, allow_log: false };
    figure(out, &curve.series.points, chart, &caption)
}

/// One chart with its caption (HTML). An empty series leaves no trace; one without a finite value says so.
pub(super) fn figure(out: &mut String, points: &[(f64, f64)], chart: Chart, caption: &str) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    let body = chart.svg()?.unwrap_or_else(|| "<p class=\"note\">no finite value</p>".to_owned());
    let _ = writeln!(out, "<figure class=\"curve\"><h3>{caption}</h3>{body}</figure>");
    Ok(())
}
