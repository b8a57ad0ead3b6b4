//! The memory picture: which bytes of the arena are taken by what, from the first to the last step of the schedule.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::data::{BufferSpan, MemoryPicture};
use super::escape::escape;
use crate::units::{grouped, human_bytes};

const WIDTH: f64 = 1100.0;
/// The frame of the arena picture.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 1084.0;
const HEIGHT: f64 = 400.0;
/// Height of one row of the region bars.
const ROW: f64 = 22.0;
const MAX_REGIONS: usize = 12;
const MAX_LABEL_CHARS: usize = 80;
/// Buffers get a rectangle of their own, largest first, until their text has this many bytes; the rest is drawn as
/// merged cells.
const RECTANGLE_BUDGET: usize = 800_000;
/// Edges below this many pixels are drawn as merged cells: nobody could point at them.
const SMALLEST_EDGE: f64 = 0.6;
/// Edge of a merged cell in pixels.
const CELL: f64 = 4.0;

/// What a buffer is for, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Forward,
    Backward,
    Optimizer,
    Workspace,
    Other,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Forward, Kind::Backward, Kind::Optimizer, Kind::Workspace, Kind::Other];

    fn of(label: &str) -> Kind {
        let word = label.split([':', '/', '.', '_', ' ', '(']).find(|w| !w.is_empty()).unwrap_or_default();
        match word.to_ascii_lowercase().as_str() {
            "forward" | "fwd" | "activation" | "act" => Kind::Forward,
            "backward" | "bwd" | "grad" | "gradient" | "gradients" | "d" => Kind::Backward,
            "optimizer" | "optim" | "opt" | "adamw" | "ema" | "update" => Kind::Optimizer,
            "workspace" | "scratch" | "ws" | "temp" | "tmp" => Kind::Workspace,
            _ => Kind::Other,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Kind::Forward => "kf",
            Kind::Backward => "kb",
            Kind::Optimizer => "ko",
            Kind::Workspace => "kw",
            Kind::Other => "kx",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Forward => "forward",
            Kind::Backward => "backward",
            Kind::Optimizer => "optimizer",
            Kind::Workspace => "workspace",
            Kind::Other => "other",
        }
    }
}

const STYLE: &str = "\
.saip-mem{--ink:#24292f;--soft:#5f6974;--line:#d5dae0;--paper:#fff;font:12px system-ui,sans-serif}\
@media(prefers-color-scheme:dark){.saip-mem{--ink:#e6edf3;--soft:#9aa4af;--line:#343b44;--paper:#14181d}}\
.saip-mem text{fill:var(--soft)}.saip-mem .strong{fill:var(--ink);font-weight:600}\
.saip-mem .paper{fill:var(--paper)}.saip-mem .frame{fill:none;stroke:var(--line)}\
.saip-mem .grid{stroke:var(--line);stroke-width:.6}\
.saip-mem .buf{stroke:var(--paper);stroke-width:.5}.saip-mem .bar{fill:#5b7fa6}\
.saip-mem .kf{fill:#3b82d6}.saip-mem .kb{fill:#e07b39}.saip-mem .ko{fill:#2fa37c}\
.saip-mem .kw{fill:#9a6bd0}.saip-mem .kx{fill:#8b949e}\
.saip-mem .live{fill:none;stroke:var(--ink);stroke-width:1.4}\
.saip-mem .bound{stroke:#d93f3f;stroke-width:1.6;stroke-dasharray:7 4}\
.saip-mem .arena{stroke:var(--ink);stroke-width:1.2}";

/// Draws planned memory as a standalone SVG that may also be put into an HTML page: region sizes as bars, then the
/// arena with schedule steps to the right and offsets upwards, one rectangle per buffer (its name and size on
/// hover), the sum of live bytes, and the lower bound. Stays below 1.5 MB for any number of buffers.
pub fn memory_svg(picture: &MemoryPicture) -> String {
    let regions = shown_regions(&picture.regions);
    let frame_top = 26.0 + regions.len() as f64 * ROW + if regions.is_empty() { 24.0 } else { 58.0 };
    let total_height = frame_top + HEIGHT + 66.0;
    let mut svg = format!(
        "<svg class=\"saip-mem\" viewBox=\"0 0 {WIDTH} {total_height}\" width=\"{WIDTH}\" \
         height=\"{total_height}\" role=\"img\" aria-label=\"Planned memory\" \
         xmlns=\"http://www.w3.org/2000/svg\"><style>{STYLE}</style>\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n"
    );
    region_bars(&mut svg, &regions);
    let frame = Frame::new(picture, frame_top);
    headline(&mut svg, picture, &frame);
    axes(&mut svg, &frame);
    buffers(&mut svg, picture, &frame);
    bounds(&mut svg, picture, &frame);
    legend(&mut svg, picture, total_height - 16.0);
    svg.push_str("</svg>\n");
    svg
}

/// Largest first; what does not fit is summed up.
fn shown_regions(regions: &[(String, u64)]) -> Vec<(String, u64)> {
    let mut sorted = regions.to_vec();
    sorted.sort_by_key(|r| std::cmp::Reverse(r.1));
    if sorted.len() > MAX_REGIONS {
        let rest = sorted.split_off(MAX_REGIONS - 1);
        let bytes = rest.iter().fold(0u64, |sum, r| sum.saturating_add(r.1));
        sorted.push((format!("{} more", rest.len()), bytes));
    }
    sorted
}

fn region_bars(svg: &mut String, regions: &[(String, u64)]) {
    let Some(largest) = regions.iter().map(|r| r.1).max().map(|m| m.max(1) as f64) else { return };
    let total = regions.iter().fold(0u64, |sum, r| sum.saturating_add(r.1));
    let _ = writeln!(
        svg,
        "<text class=\"strong\" x=\"8\" y=\"18\" font-size=\"14\">Device memory {}</text>",
        human_bytes(total)
    );
    let (bar_left, bar_right) = (190.0, 930.0);
    for (i, (name, bytes)) in regions.iter().enumerate() {
        let y = 28.0 + i as f64 * ROW;
        let width = (*bytes as f64 / largest * (bar_right - bar_left)).max(1.0);
        let share = *bytes as f64 / total.max(1) as f64 * 100.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"bar\" x=\"{bar_left}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>\
             <text class=\"strong\" x=\"{:.1}\" y=\"{:.1}\">{}<tspan font-weight=\"400\" dx=\"6\">{share:.1} %</tspan>\
             </text>",
            bar_left - 8.0,
            y + 12.0,
            short_label(name, 28),
            bar_left + width + 8.0,
            y + 12.0,
            human_bytes(*bytes),
        );
    }
}

/// Escaped and cut to `limit` characters.
fn short_label(label: &str, limit: usize) -> String {
    let mut text: String = label.chars().take(limit).collect();
    if label.chars().nth(limit).is_some() {
        text.pop();
        text.push('…');
    }
    escape(&text)
}

/// Maps steps and bytes to pixels.
struct Frame {
    top: f64,
    /// Steps of the schedule, at least one.
    steps: f64,
    /// Bytes at the upper edge, at least one.
    bytes: f64,
}

impl Frame {
    fn new(picture: &MemoryPicture, top: f64) -> Self {
        let ends =
            picture.buffers.iter().map(|b| (b.end_step.max(b.start_step), b.offset.saturating_add(b.bytes)));
        let (last, highest) = ends.fold((0, 0), |(a, b), (c, d)| (a.max(c), b.max(d)));
        let bytes = highest.max(picture.arena_bytes).max(picture.lower_bound_bytes).max(1);
        // A little air above the arena's line for its label.
        Frame { top, steps: last as f64 + 1.0, bytes: bytes as f64 * 1.06 }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + step / self.steps * (RIGHT - LEFT)
    }

    fn y(&self, bytes: f64) -> f64 {
        self.top + HEIGHT * (1.0 - bytes / self.bytes)
    }

    /// Left, top, width and height in pixels.
    fn rectangle(&self, buffer: &BufferSpan) -> [f64; 4] {
        let (start, end) = (buffer.start_step as f64, buffer.end_step.max(buffer.start_step) as f64 + 1.0);
        let (x, y) = (self.x(start), self.y(buffer.offset.saturating_add(buffer.bytes) as f64));
        [x, y, self.x(end) - x, self.y(buffer.offset as f64) - y]
    }
}

fn headline(svg: &mut String, picture: &MemoryPicture, frame: &Frame) {
    let (arena, bound) = (picture.arena_bytes, picture.lower_bound_bytes);
    let excess = match (arena.checked_sub(bound), bound) {
        (Some(0), _) => ", which the arena meets".to_owned(),
        (Some(more), 1..) => format!(" (arena +{:.2} %)", more as f64 / bound as f64 * 100.0),
        _ => String::new(),
    };
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{:.1}\" font-size=\"14\"><tspan class=\"strong\">Arena {}</tspan><tspan dx=\"10\" \
         font-size=\"12\">lower bound {}{excess}; {} buffers over {} schedule steps</tspan></text>",
        frame.top - 14.0,
        human_bytes(arena),
        human_bytes(bound),
        grouped(picture.buffers.len() as u64),
        grouped(frame.steps as u64),
    );
}

fn axes(svg: &mut String, frame: &Frame) {
    // Powers of two: bytes in binary units then have short labels.
    let byte_step = (frame.bytes / 4.5).log2().ceil().exp2();
    for i in 0..=(frame.bytes / byte_step) as u64 {
        let value = i as f64 * byte_step;
        let y = frame.y(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            whole_bytes(value as u64)
        );
    }
    let rough = frame.steps / 8.0;
    let power = 10f64.powf(rough.log10().floor()).max(1.0);
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    for i in 0..=(frame.steps / step) as u64 {
        let value = i as f64 * step;
        let (x, y) = (frame.x(value), frame.top + HEIGHT);
        // The label of the axis stands at its right end.
        if x > RIGHT - 100.0 {
            break;
        }
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y + 5.0,
            y + 19.0,
            grouped(value as u64)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">schedule step</text>\
         <rect class=\"frame\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{}\" height=\"{HEIGHT}\"/>",
        frame.top + HEIGHT + 19.0,
        frame.top,
        RIGHT - LEFT
    );
}

/// `1.00 GiB` as `1 GiB`: ticks are round.
fn whole_bytes(bytes: u64) -> String {
    let text = human_bytes(bytes);
    let (digits, unit) = text.split_once(' ').unwrap_or((&text, ""));
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits} {unit}")
}

/// Rectangles of their own for the largest buffers, merged cells below them for all others.
fn buffers(svg: &mut String, picture: &MemoryPicture, frame: &Frame) {
    let mut order: Vec<(&BufferSpan, [f64; 4])> =
        picture.buffers.iter().filter(|b| b.bytes > 0).map(|b| (b, frame.rectangle(b))).collect();
    order.sort_by(|a, b| (b.1[2] * b.1[3]).total_cmp(&(a.1[2] * a.1[3])));
    let mut cells = Cells::default();
    let mut rectangles = String::new();
    for (buffer, [x, y, w, h]) in order {
        let kind = Kind::of(&buffer.label);
        if w < SMALLEST_EDGE || h < SMALLEST_EDGE || rectangles.len() > RECTANGLE_BUDGET {
            cells.mark(kind, frame, [x, y, w, h]);
            continue;
        }
        let _ = writeln!(
            rectangles,
            "<rect class=\"buf {}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{w:.2}\" height=\"{h:.2}\"><title>{}\n{} at \
             {}, steps {}-{}</title></rect>",
            kind.class(),
            short_label(&buffer.label, MAX_LABEL_CHARS),
            human_bytes(buffer.bytes),
            buffer.offset,
            buffer.start_step,
            buffer.end_step
        );
    }
    cells.draw(svg, frame);
    svg.push_str(&rectangles);
}

/// Buffers too small to point at, merged on a coarse grid: the first kind to reach a cell (the largest buffer's)
/// keeps it, and runs of cells along a row become one piece of a path.
#[derive(Default)]
struct Cells(BTreeMap<(u16, u16), Kind>);

impl Cells {
    fn mark(&mut self, kind: Kind, frame: &Frame, [x, y, w, h]: [f64; 4]) {
        let columns = ((RIGHT - LEFT) / CELL) as u16;
        let rows = (HEIGHT / CELL) as u16;
        let cell = |pixels: f64, count: u16| ((pixels / CELL).max(0.0) as u16).min(count - 1);
        for row in cell(y - frame.top, rows)..=cell(y + h - frame.top - 1e-6, rows) {
            for column in cell(x - LEFT, columns)..=cell(x + w - LEFT - 1e-6, columns) {
                self.0.entry((row, column)).or_insert(kind);
            }
        }
    }

    fn draw(&self, svg: &mut String, frame: &Frame) {
        for kind in Kind::ALL {
            let mut cells = self.0.iter().filter(|(_, k)| **k == kind).map(|(at, _)| *at).peekable();
            if cells.peek().is_none() {
                continue;
            }
            let _ = write!(svg, "<path class=\"{}\" opacity=\".75\" d=\"", kind.class());
            while let Some((row, first)) = cells.next() {
                let mut length = 1u16;
                while cells.next_if_eq(&(row, first + length)).is_some() {
                    length += 1;
                }
                let (x, y) = (LEFT + f64::from(first) * CELL, frame.top + f64::from(row) * CELL);
                let w = f64::from(length) * CELL;
                let _ = write!(svg, "M{x} {y:.0}h{w}v{CELL}h-{w}z");
            }
            svg.push_str("\"/>\n");
        }
    }
}

/// The sum of live bytes over time, the lower bound (its highest point) and the arena's size.
fn bounds(svg: &mut String, picture: &MemoryPicture, frame: &Frame) {
    let live = live_bytes(&picture.buffers);
    if !live.is_empty() {
        let _ = write!(svg, "<path class=\"live\" d=\"M{LEFT} {:.1}", frame.y(0.0));
        // At most one value per pixel column, the highest.
        let mut columns: BTreeMap<i64, u128> = BTreeMap::new();
        for (step, bytes) in live {
            let column = columns.entry(frame.x(step as f64).round() as i64).or_default();
            *column = (*column).max(bytes);
        }
        for (x, bytes) in columns {
            // Overlapping spans would sum to more than the frame shows.
            let _ = write!(svg, "H{x}V{:.1}", frame.y(bytes as f64).max(frame.top));
        }
        let _ = writeln!(svg, "H{RIGHT}\"/>");
    }
    let mut line = |class: &str, bytes: u64, label: String, above: bool| {
        let y = frame.y(bytes as f64);
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"strong\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            RIGHT - 6.0,
            if above { y - 5.0 } else { y + 15.0 }
        );
    };
    let (arena, bound) = (picture.arena_bytes, picture.lower_bound_bytes);
    if arena == bound {
        line("bound", bound, format!("arena = lower bound {}", human_bytes(bound)), true);
    } else {
        line("arena", arena, format!("arena {}", human_bytes(arena)), arena > bound);
        line("bound", bound, format!("lower bound {}", human_bytes(bound)), bound > arena);
    }
}

/// Sum of live bytes from each step on at which it changes.
fn live_bytes(buffers: &[BufferSpan]) -> Vec<(usize, u128)> {
    let mut changes: BTreeMap<usize, i128> = BTreeMap::new();
    for buffer in buffers {
        let end = buffer.end_step.max(buffer.start_step);
        *changes.entry(buffer.start_step).or_default() += i128::from(buffer.bytes);
        *changes.entry(end.saturating_add(1)).or_default() -= i128::from(buffer.bytes);
    }
    let mut sum = 0i128;
    changes
        .into_iter()
        .map(|(step, change)| {
            sum += change;
            (step, sum.max(0) as u128)
        })
        .collect()
}

fn legend(svg: &mut String, picture: &MemoryPicture, y: f64) {
    let mut x = LEFT;
    for kind in Kind::ALL {
        let (mut count, mut bytes) = (0u64, 0u64);
        for buffer in picture.buffers.iter().filter(|b| Kind::of(&b.label) == kind) {
            count += 1;
            bytes = bytes.saturating_add(buffer.bytes);
        }
        if count == 0 {
            continue;
        }
        let text = format!("{} ({}, sum {})", kind.name(), grouped(count), human_bytes(bytes));
        let _ = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2\"/><text x=\"{:.1}\" \
             y=\"{y:.1}\">{text}</text>",
            kind.class(),
            y - 10.0,
            x + 17.0
        );
        x += 34.0 + text.len() as f64 * 6.8;
    }
    let _ = writeln!(
        svg,
        "<path class=\"live\" d=\"M{x:.1} {:.1}h16\"/><text x=\"{:.1}\" y=\"{y:.1}\">live bytes</text>",
        y - 4.0,
        x + 21.0
    );
}

#[cfg(test)]
mod tests;
