//! Several runs beside each other on one page.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::chart::{Chart, Line, Unit};
use super::color::{PALETTE, hex};
use super::data::{Curves, RunSummary, Series};
use super::escape::escape;
use super::page::{figure, head, percent, short};
use super::smooth::{first_and_last, last};
use super::write_page;
use crate::error::Result;
use crate::units::{grouped, human_duration};

/// One of the runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    pub summary: RunSummary,
    pub curves: Curves,
    /// Keys and values of the configuration.
    pub settings: Vec<(String, String)>,
}

/// Writes a page with the runs' results, curves and differing settings to `path`, atomically.
///
/// # Errors
/// When a chart cannot be drawn or the file cannot be written.
pub fn write_comparison(path: &Path, runs: &[Compared]) -> Result<()> {
    write_page(path, &html(runs)?)
}

pub(super) fn html(runs: &[Compared]) -> Result<String> {
    let subtitle = format!("saip-engine {}", env!("CARGO_PKG_VERSION"));
    let mut out = head(&format!("{} runs", runs.len()), &subtitle);
    results(&mut out, runs);
    warnings(&mut out, runs);
    curves(&mut out, runs)?;
    settings(&mut out, runs);
    out.push_str("</main></body></html>\n");
    Ok(out)
}

fn color(run: usize) -> plotters::style::RGBColor {
    PALETTE[run % PALETTE.len()]
}

/// The run's name with the colour of its curves.
fn key(run: usize, title: &str) -> String {
    format!("<span class=\"key\"><i style=\"border-color:{}\"></i>{}</span>", hex(color(run)), escape(title))
}

/// A table in HTML; the cells of `rows` are HTML already.
fn table(out: &mut String, heads: &[String], rows: &[Vec<String>]) {
    out.push_str("<div class=\"scroll\"><table><thead><tr>");
    heads.iter().for_each(|h| {
        let _ = write!(out, "<th>{h}</th>");
    });
    out.push_str("</tr></thead><tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        row.iter().for_each(|cell| {
            let _ = write!(out, "<td>{cell}</td>");
        });
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// The names that any run has, in the order of the first that has them.
fn names<'a>(runs: &'a [Compared], of: impl Fn(&'a Compared) -> Vec<&'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    runs.iter().flat_map(of).filter(|name| seen.insert(*name)).collect()
}

fn results(out: &mut String, runs: &[Compared]) {
    let losses = names(runs, |r| loss_names(&r.curves));
    let probes = names(runs, |r| r.curves.probe.iter().map(|c| c.series.name.as_str()).collect());
    let lines = names(runs, |r| {
        r.curves.probe.iter().flat_map(|c| c.baselines.iter().map(|b| b.label.as_str())).collect()
    });
    let mut heads: Vec<String> = ["run", "device", "steps", "training", "images/s"].map(String::from).into();
    heads.extend(losses.iter().map(|name| format!("{} loss", escape(name))));
    for probe in &probes {
        heads.push(escape(probe));
        heads.extend(lines.iter().map(|label| format!("{}, {}", escape(probe), escape(label))));
    }
    heads.extend(["skipped steps", "alarms"].map(String::from));
    let rows: Vec<Vec<String>> = runs
        .iter()
        .enumerate()
        .map(|(i, run)| {
            let s = &run.summary;
            let mut row =
                vec![key(i, &s.title), escape(&s.device), grouped(s.steps), human_duration(s.seconds)];
            row.push(if s.images_per_second > 0.0 { short(s.images_per_second) } else { "n/a".to_owned() });
            for name in &losses {
                let series = run.curves.losses.iter().find(|l| l.name == *name);
                row.push(
                    series
                        .and_then(|l| first_and_last(&l.points))
                        .map_or(String::new(), |(_, end)| short(end)),
                );
            }
            for name in &probes {
                let curve = run.curves.probe.iter().find(|c| c.series.name == *name);
                row.push(curve.and_then(|c| last(&c.series.points)).map_or(String::new(), percent));
                for label in &lines {
                    let line = curve.and_then(|c| c.baselines.iter().find(|b| b.label == *label));
                    row.push(line.map_or(String::new(), |b| percent(b.value)));
                }
            }
            row.extend([grouped(s.skipped_steps), s.warnings.len().to_string()]);
            row
        })
        .collect();
    out.push_str("<section id=\"results\"><h2>Results</h2><p class=\"note\">Losses are means over the last steps; probes \
                  are the last ones, and beside them what nobody trained reaches on the same images.</p>\n");
    table(out, &heads, &rows);
    out.push_str("</section>\n");
}

fn loss_names(curves: &Curves) -> Vec<&str> {
    curves.losses.iter().filter(|l| !l.points.is_empty()).map(|l| l.name.as_str()).collect()
}

fn warnings(out: &mut String, runs: &[Compared]) {
    if runs.iter().all(|r| r.summary.warnings.is_empty()) {
        return;
    }
    out.push_str("<ul class=\"alarms\">");
    for run in runs {
        for warning in &run.summary.warnings {
            let _ = write!(out, "<li>{}: {}</li>", escape(&run.summary.title), escape(warning));
        }
    }
    out.push_str("</ul>\n");
}

fn curves(out: &mut String, runs: &[Compared]) -> Result<()> {
    let mut figures = String::new();
    for name in names(runs, |r| loss_names(&r.curves)) {
        let of = |r: &Compared| r.curves.losses.iter().find(|l| l.name == name).cloned();
        overlay(&mut figures, runs, &format!("{name} loss"), of, Unit::Number, true)?;
    }
    for name in names(runs, |r| r.curves.probe.iter().map(|c| c.series.name.as_str()).collect()) {
        let of = |r: &Compared| Some(r.curves.probe.iter().find(|c| c.series.name == name)?.series.clone());
        overlay(&mut figures, runs, &format!("frozen-feature probe, {name}"), of, Unit::Percent, false)?;
    }
    for name in names(runs, |r| r.curves.collapse.iter().map(|c| c.series.name.as_str()).collect()) {
        let of =
            |r: &Compared| Some(r.curves.collapse.iter().find(|c| c.series.name == name)?.series.clone());
        overlay(&mut figures, runs, name, of, Unit::Number, true)?;
    }
    for name in names(runs, |r| r.curves.ranks.iter().map(|s| s.name.as_str()).collect()) {
        let of = |r: &Compared| r.curves.ranks.iter().find(|s| s.name == name).cloned();
        overlay(&mut figures, runs, name, of, Unit::Number, true)?;
    }
    let exact = |of: fn(&Curves) -> &Series| move |r: &Compared| Some(of(&r.curves).clone());
    overlay(&mut figures, runs, "gradient norm", exact(|c| &c.gradient_norm), Unit::Number, true)?;
    overlay(&mut figures, runs, "learning rate", exact(|c| &c.learning_rate), Unit::Number, false)?;
    overlay(&mut figures, runs, "EMA momentum", exact(|c| &c.ema_momentum), Unit::Number, false)?;
    if !figures.is_empty() {
        let _ = write!(
            out,
            "<section id=\"curves\"><h2>Curves</h2><p class=\"note\">Over training steps, each run in its colour. \
             Pale: each step; bold: moving average; red triangles: values that were not finite.</p>\
             <div class=\"curves\">\n{figures}</div></section>\n"
        );
    }
    Ok(())
}

/// One chart with the same curve of every run that has it.
fn overlay(
    out: &mut String,
    runs: &[Compared],
    name: &str,
    of: impl Fn(&Compared) -> Option<Series>,
    unit: Unit,
    noisy: bool,
) -> Result<()> {
    let found: Vec<(usize, Series)> = runs
        .iter()
        .enumerate()
        .filter_map(|(i, r)| Some((i, of(r).filter(|s| !s.points.is_empty())?)))
        .collect();
    let lines = found.iter().map(|(i, series)| Line {
        points: &series.points,
        color: color(*i),
        smooth: noisy && series.points.len() > 1,
        baseline: None,
    });
    let chart = Chart { label: name, lines: lines.collect(), unit, allow_log: false };
    let mut caption = escape(name);
    for (i, series) in &found {
        let now = match (noisy, first_and_last(&series.points)) {
            (true, Some((_, mean))) => Some(mean),
            _ => last(&series.points),
        };
        let shown = if unit == Unit::Percent { percent } else { short };
        let _ = write!(
            caption,
            "{} <span class=\"now\">{}</span>",
            key(*i, &runs[*i].summary.title),
            now.map_or(String::new(), shown)
        );
    }
    let points: Vec<_> = found.iter().flat_map(|(_, s)| s.points.iter().copied()).collect();
    figure(out, &points, chart, &caption)
}

fn settings(out: &mut String, runs: &[Compared]) {
    let value = |run: &Compared, key: &str| {
        run.settings.iter().find(|(k, _)| k == key).map_or(String::new(), |(_, v)| v.clone())
    };
    let keys = names(runs, |r| r.settings.iter().map(|(k, _)| k.as_str()).collect());
    let rows: Vec<Vec<String>> = keys
        .into_iter()
        .map(|key| (key, runs.iter().map(|r| value(r, key)).collect::<Vec<_>>()))
        .filter(|(_, values)| values.iter().any(|v| *v != values[0]))
        .map(|(key, values)| {
            std::iter::once(key).chain(values.iter().map(String::as_str)).map(escape).collect()
        })
        .collect();
    out.push_str("<section id=\"settings\"><h2>Settings that differ</h2>\n");
    if rows.is_empty() {
        out.push_str("<p class=\"note\">None: the runs have one configuration.</p>");
    } else {
        let runs = runs.iter().enumerate().map(|(i, r)| key(i, &r.summary.title));
        let heads: Vec<String> = std::iter::once("key".to_owned()).chain(runs).collect();
        table(out, &heads, &rows);
    }
    out.push_str("</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Baseline, Curve};

    fn run(title: &str, rate: &str, map: f64) -> Compared {
        let series = |name: &str, values: [f64; 2]| Series {
            name: name.to_owned(),
            points: vec![(0.0, values[0]), (10.0, values[1])],
        };
        let baselines = vec![Baseline { label: "raw pixels".to_owned(), value: 0.205 }];
        Compared {
            summary: RunSummary { title: title.to_owned(), steps: 10, ..Default::default() },
            curves: Curves {
                losses: vec![series("total", [9.0, 3.0])],
                probe: vec![Curve { series: series("mAP", [0.1, map]), baselines }],
                ..Default::default()
            },
            settings: vec![
                ("optim.base_lr".to_owned(), rate.to_owned()),
                ("same".to_owned(), "1".to_owned()),
            ],
        }
    }

    #[test]
    fn runs_are_laid_over_each_other() {
        let page = html(&[run("<a>", "0.1", 0.31), run("b", "0.2", 0.42)]).unwrap();
        assert!(page.contains("&lt;a&gt;") && !page.contains("<a>"));
        assert!(page.contains("31.0 %") && page.contains("42.0 %") && page.contains("20.5 %"));
        assert!(page.contains("optim.base_lr") && !page.contains(">same<"));
        assert_eq!(page.matches("<figure").count(), 2, "one chart a curve, not one a run");
        for colour in [hex(color(0)), hex(color(1))] {
            assert!(page.matches(&colour).count() > 4, "{colour}");
        }
        let page = html(&[run("a", "0.1", 0.31), run("b", "0.1", 0.31)]).unwrap();
        assert!(page.contains("one configuration"));
    }
}
