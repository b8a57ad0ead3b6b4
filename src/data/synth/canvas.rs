//! Drawing on a picture and, where labels are wanted, on a label map along the same paths.

use super::geometry::{V2, V3, v2, v3};
use super::labels::{Part, Segment};
use tiny_skia::{
    Color, FillRule, GradientStop, LinearGradient, Paint, Path, PathBuilder, Pixmap, Point, Shader,
    SpreadMode, Stroke, Transform,
};

/// A colour, each channel in `0..=1`, without transparency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rgb(pub f32, pub f32, pub f32);

impl Rgb {
    pub fn shade(self, k: f32) -> Rgb {
        Rgb(self.0 * k, self.1 * k, self.2 * k)
    }
    pub fn mix(self, to: Rgb, t: f32) -> Rgb {
        Rgb(self.0 + (to.0 - self.0) * t, self.1 + (to.1 - self.1) * t, self.2 + (to.2 - self.2) * t)
    }
    pub fn alpha(self, alpha: f32) -> Color {
        let channel = |v: f32| v.clamp(0.0, 1.0);
        Color::from_rgba(channel(self.0), channel(self.1), channel(self.2), channel(alpha))
            .unwrap_or(Color::BLACK)
    }
}

pub const BLACK: Rgb = Rgb(0.02, 0.02, 0.03);
pub const WHITE: Rgb = Rgb(1.0, 1.0, 1.0);

/// What a shape is: its label in the part map, and the body segment for keypoint visibility.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub Part, pub Segment);

/// How cloth is coloured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weave {
    Plain,
    /// Bands across the limb or the body.
    Across,
    /// Bands along it.
    Along,
    Check,
    Dots,
    /// The second colour from this fraction of the frame downwards.
    Split(f32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fabric {
    pub color: Rgb,
    pub second: Rgb,
    pub weave: Weave,
    /// Period of the pattern, metres.
    pub period: f32,
}

impl Fabric {
    pub const fn plain(color: Rgb) -> Self {
        Fabric { color, second: color, weave: Weave::Plain, period: 0.1 }
    }
}

/// The axis of a roughly cylindrical shape in the picture: shading runs across it, patterns follow it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub from: V2,
    pub to: V2,
    pub half_width: f32,
    /// Pixels a metre.
    pub scale: f32,
}

/// Share of the light that comes from everywhere.
const AMBIENT: f32 = 0.62;
/// Share that comes from the camera's light direction.
const DIRECT: f32 = 0.55;

pub struct Canvas {
    pub picture: Pixmap,
    labels: Option<Pixmap>,
    pub light: V3,
}

impl Canvas {
    pub fn new(picture: Pixmap, light: V3) -> Self {
        Canvas { picture, labels: None, light }
    }

    /// From here on, tagged shapes are recorded in the label map; what was drawn before is background.
    pub fn start_labels(&mut self) {
        self.labels = Pixmap::new(self.picture.width(), self.picture.height());
    }

    /// The label map: (part, segment) codes of each pixel, row by row. Empty when labels were not asked for.
    pub fn label_codes(&self) -> Vec<(u8, u8)> {
        self.labels
            .as_ref()
            .map_or_else(Vec::new, |map| map.pixels().iter().map(|p| (p.red(), p.green())).collect())
    }

    pub fn fill_with(&mut self, path: &Path, shader: Shader<'_>, tag: Option<Tag>) {
        let paint = Paint { shader, ..Paint::default() };
        self.picture.fill_path(path, &paint, FillRule::Winding, Transform::identity(), None);
        if let (Some(map), Some(Tag(part, segment))) = (self.labels.as_mut(), tag) {
            // Without antialiasing: a blend of two labels would be a third.
            let shader = Shader::SolidColor(Color::from_rgba8(part as u8, segment as u8, 0, 255));
            let paint = Paint { shader, anti_alias: false, ..Paint::default() };
            map.fill_path(path, &paint, FillRule::Winding, Transform::identity(), None);
        }
    }

    pub fn fill(&mut self, path: &Path, color: Rgb, alpha: f32, tag: Option<Tag>) {
        self.fill_with(path, Shader::SolidColor(color.alpha(alpha)), tag);
    }

    pub fn stroke(&mut self, path: &Path, color: Rgb, alpha: f32, width: f32, tag: Option<Tag>) {
        let stroke = Stroke { width, line_cap: tiny_skia::LineCap::Round, ..Stroke::default() };
        let paint = Paint { shader: Shader::SolidColor(color.alpha(alpha)), ..Paint::default() };
        self.picture.stroke_path(path, &paint, &stroke, Transform::identity(), None);
        if let (Some(map), Some(Tag(part, segment))) = (self.labels.as_mut(), tag) {
            let shader = Shader::SolidColor(Color::from_rgba8(part as u8, segment as u8, 0, 255));
            let paint = Paint { shader, anti_alias: false, ..Paint::default() };
            map.stroke_path(path, &paint, &stroke, Transform::identity(), None);
        }
    }

    /// Lays a picture of the same size over this one; what it covers by more than half takes the tag.
    pub fn overlay(&mut self, layer: &Pixmap, tag: Option<Tag>) {
        let paint = tiny_skia::PixmapPaint::default();
        self.picture.draw_pixmap(0, 0, layer.as_ref(), &paint, Transform::identity(), None);
        let (Some(map), Some(Tag(part, segment))) = (self.labels.as_mut(), tag) else { return };
        let code = Color::from_rgba8(part as u8, segment as u8, 0, 255).premultiply().to_color_u8();
        for (label, over) in map.pixels_mut().iter_mut().zip(layer.pixels()) {
            if over.alpha() > 127 {
                *label = code;
            }
        }
    }

    pub fn line(&mut self, points: &[V2], color: Rgb, alpha: f32, width: f32, tag: Option<Tag>) {
        if let Some(path) = open_path(points) {
            self.stroke(&path, color, alpha, width, tag);
        }
    }

    pub fn ellipse(&mut self, at: V2, rx: f32, ry: f32, color: Rgb, alpha: f32, tag: Option<Tag>) {
        let rect = tiny_skia::Rect::from_ltrb(at.x - rx, at.y - ry, at.x + rx, at.y + ry);
        if let Some(path) = rect.and_then(PathBuilder::from_oval) {
            self.fill(&path, color, alpha, tag);
        }
    }

    /// An ellipse that fades from `alpha` in the middle to nothing at the rim.
    pub fn glow(&mut self, at: V2, rx: f32, ry: f32, color: Rgb, alpha: f32) {
        let stops = vec![
            GradientStop::new(0.0, color.alpha(alpha)),
            GradientStop::new(0.45, color.alpha(0.7 * alpha)),
            GradientStop::new(1.0, color.alpha(0.0)),
        ];
        // A unit circle, scaled: gradients know no ellipses.
        let place = Transform::from_row(rx, 0.0, 0.0, ry, at.x, at.y);
        let origin = Point::from_xy(0.0, 0.0);
        let shader = tiny_skia::RadialGradient::new(origin, 0.0, origin, 1.0, stops, SpreadMode::Pad, place);
        let rect = tiny_skia::Rect::from_ltrb(at.x - rx, at.y - ry, at.x + rx, at.y + ry);
        if let (Some(shader), Some(path)) = (shader, rect.and_then(PathBuilder::from_oval)) {
            self.fill_with(&path, shader, None);
        }
    }

    pub fn rect(&mut self, low: V2, high: V2, color: Rgb, alpha: f32, tag: Option<Tag>) {
        if let Some(rect) = tiny_skia::Rect::from_ltrb(low.x, low.y, high.x, high.y) {
            self.fill(&PathBuilder::from_rect(rect), color, alpha, tag);
        }
    }

    /// Light on a cylinder with axis `along` at `t` in -1..=1 across it (towards `across`).
    fn lambert(&self, across: V2, t: f32) -> f32 {
        let normal = v3(across.x * t, -across.y * t, (1.0 - t * t).max(0.0).sqrt());
        AMBIENT + DIRECT * normal.dot(self.light).max(0.0) - 0.10 * t * t
    }

    /// Fills a roughly cylindrical shape: the fabric's pattern, then light and shade across the frame.
    pub fn cloth(&mut self, path: &Path, frame: &Frame, fabric: &Fabric, tag: Tag) {
        let along = (frame.to - frame.from).unit();
        let across = along.perp();
        let middle = frame.from.lerp(frame.to, 0.5);
        let (start, end) = (middle - across * frame.half_width, middle + across * frame.half_width);
        let shades = [-1.0f32, -0.6, 0.0, 0.6, 1.0].map(|t| (0.5 + 0.5 * t, self.lambert(across, t)));
        if fabric.weave == Weave::Plain {
            let stops = shades.map(|(at, k)| GradientStop::new(at, fabric.color.shade(k).alpha(1.0)));
            if let Some(shader) = gradient(start, end, stops.to_vec(), SpreadMode::Pad) {
                self.fill_with(path, shader, Some(tag));
            }
            return;
        }
        self.weave(path, frame, fabric, tag);
        // A shade over a pattern can only darken, so the pattern is laid down at full light.
        let stops = shades.map(|(at, k)| GradientStop::new(at, BLACK.alpha((1.12 - k).max(0.0))));
        if let Some(shader) = gradient(start, end, stops.to_vec(), SpreadMode::Pad) {
            self.fill_with(path, shader, None);
        }
    }

    fn weave(&mut self, path: &Path, frame: &Frame, fabric: &Fabric, tag: Tag) {
        let along = (frame.to - frame.from).unit();
        let across = along.perp();
        // Finer than this a pattern would only alias.
        let period = (fabric.period * frame.scale).max(3.0);
        let (one, two) = (fabric.color, fabric.second);
        let middle = frame.from.lerp(frame.to, 0.5);
        let bands = |direction: V2, on: f32, off: f32, share: f32| {
            let stops = vec![
                GradientStop::new(0.0, one.alpha(on)),
                GradientStop::new(share, one.alpha(on)),
                GradientStop::new(share, two.alpha(off)),
                GradientStop::new(1.0, two.alpha(off)),
            ];
            gradient(middle, middle + direction * period, stops, SpreadMode::Repeat)
        };
        match fabric.weave {
            Weave::Plain => self.fill(path, one, 1.0, Some(tag)),
            Weave::Across => self.layer(path, bands(along, 1.0, 1.0, 0.55), one, tag),
            Weave::Along => self.layer(path, bands(across, 1.0, 1.0, 0.6), one, tag),
            Weave::Check => {
                self.layer(path, bands(along, 1.0, 1.0, 0.5), one, tag);
                self.layer(path, bands(across, 0.0, 0.55, 0.5), one, tag);
            }
            Weave::Dots => {
                // Two crossed families of bands leave dots where both are thin.
                self.fill(path, one, 1.0, Some(tag));
                self.dots(path, frame, two, period);
            }
            Weave::Split(at) => {
                let stops = vec![
                    GradientStop::new(at, one.alpha(1.0)),
                    GradientStop::new((at + 0.02).min(1.0), two.alpha(1.0)),
                ];
                self.layer(path, gradient(frame.from, frame.to, stops, SpreadMode::Pad), one, tag);
            }
        }
    }

    fn layer(&mut self, path: &Path, shader: Option<Shader<'static>>, fallback: Rgb, tag: Tag) {
        self.fill_with(path, shader.unwrap_or(Shader::SolidColor(fallback.alpha(1.0))), Some(tag));
    }

    fn dots(&mut self, path: &Path, frame: &Frame, color: Rgb, period: f32) {
        const TILE: u32 = 12;
        let Some(mut tile) = Pixmap::new(TILE, TILE) else { return };
        let side = TILE as f32;
        let paint = Paint { shader: Shader::SolidColor(color.alpha(1.0)), ..Paint::default() };
        if let Some(dot) = PathBuilder::from_circle(side / 2.0, side / 2.0, side * 0.27) {
            tile.fill_path(&dot, &paint, FillRule::Winding, Transform::identity(), None);
        }
        let along = (frame.to - frame.from).unit();
        let k = period / side;
        let place = Transform::from_row(
            along.y * k,
            -along.x * k,
            along.x * k,
            along.y * k,
            frame.from.x,
            frame.from.y,
        );
        let shader = tiny_skia::Pattern::new(
            tile.as_ref(),
            SpreadMode::Repeat,
            tiny_skia::FilterQuality::Bilinear,
            1.0,
            place,
        );
        self.fill_with(path, shader, None);
    }
}

pub fn gradient(from: V2, to: V2, stops: Vec<GradientStop>, mode: SpreadMode) -> Option<Shader<'static>> {
    let point = |v: V2| Point::from_xy(v.x, v.y);
    LinearGradient::new(point(from), point(to), stops, mode, Transform::identity())
}

/// A closed polygon.
pub fn polygon(points: &[V2]) -> Option<Path> {
    let mut builder = PathBuilder::with_capacity(points.len() + 2, points.len() + 2);
    for (index, p) in points.iter().enumerate() {
        if index == 0 { builder.move_to(p.x, p.y) } else { builder.line_to(p.x, p.y) }
    }
    builder.close();
    builder.finish()
}

/// An open smooth curve through the points.
pub fn open_path(points: &[V2]) -> Option<Path> {
    let first = points.first()?;
    let mut builder = PathBuilder::new();
    builder.move_to(first.x, first.y);
    curve(&mut builder, points);
    builder.finish()
}

/// A closed outline: a smooth curve down `left`, then a smooth curve along `right`.
pub fn outline(left: &[V2], right: &[V2]) -> Option<Path> {
    let (first, next) = (left.first()?, right.first()?);
    let mut builder =
        PathBuilder::with_capacity(left.len() + right.len() + 2, 3 * (left.len() + right.len()) + 2);
    builder.move_to(first.x, first.y);
    curve(&mut builder, left);
    builder.line_to(next.x, next.y);
    curve(&mut builder, right);
    builder.close();
    builder.finish()
}

/// Catmull-Rom through the points, as cubics; the builder stands at the first.
fn curve(builder: &mut PathBuilder, points: &[V2]) {
    for i in 1..points.len() {
        let (p0, p1, p2) = (points[i.saturating_sub(2)], points[i - 1], points[i]);
        let p3 = points[(i + 1).min(points.len() - 1)];
        let (c1, c2) = (p1 + (p2 - p0) * (1.0 / 6.0), p2 - (p3 - p1) * (1.0 / 6.0));
        builder.cubic_to(c1.x, c1.y, c2.x, c2.y, p2.x, p2.y);
    }
}

/// How a tube ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    Round,
    Flat,
}

/// The outline of a limb through `points` (centre, radius), at least two of them.
pub fn tube(points: &[(V2, f32)], start: Cap, end: Cap) -> Option<Path> {
    let n = points.len();
    if n < 2 {
        return None;
    }
    let (mut left, mut right) = (Vec::with_capacity(n + 5), Vec::with_capacity(n + 5));
    let direction = |i: usize| {
        let (a, b) = (points[i.saturating_sub(1)].0, points[(i + 1).min(n - 1)].0);
        (b - a).unit()
    };
    if start == Cap::Round {
        round(&mut left, points[0], -direction(0), -1.0);
        left.reverse();
    }
    for (i, (at, radius)) in points.iter().enumerate() {
        let across = direction(i).perp() * *radius;
        left.push(*at + across);
        right.push(*at - across);
    }
    right.reverse();
    if end == Cap::Round {
        let mut tip = Vec::with_capacity(5);
        round(&mut tip, points[n - 1], direction(n - 1), 1.0);
        left.extend(tip);
    }
    outline(&left, &right)
}

/// Points of the half circle that closes a tube, from the left side (`side` 1) or to it (`side` -1).
fn round(out: &mut Vec<V2>, (at, radius): (V2, f32), direction: V2, side: f32) {
    let across = direction.perp() * side;
    for angle in [0.45f32, 0.95, 1.57, 2.19, 2.69] {
        out.push(at + across * (radius * angle.cos()) + direction * (radius * angle.sin()));
    }
}

/// A rectangle turned to the direction `along`, centred at `at`, with rounded look by a bulge at the lower end.
pub fn slab(at: V2, along: V2, half_width: f32, half_length: f32, taper: f32) -> Option<Path> {
    let (a, b) = (along * half_length, along.perp() * half_width);
    let corner = 0.75;
    polygon(&[
        at - a + b * (taper * corner),
        at - a * corner + b * taper,
        at + a * corner + b,
        at + a + b * corner,
        at + a - b * corner,
        at + a * corner - b,
        at - a * corner - b * taper,
        at - a - b * (taper * corner),
    ])
}

/// The middle of two points.
pub fn middle(a: V2, b: V2) -> V2 {
    v2(0.5 * (a.x + b.x), 0.5 * (a.y + b.y))
}
