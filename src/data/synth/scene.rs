//! Scenes behind the persons: one panorama a camera, drawn once; an image sees a window of it.

use super::canvas::{BLACK, Canvas, Rgb, WHITE, gradient, polygon};
use super::dice::Dice;
use super::figure::round_rect;
use super::film::blur;
use super::geometry::{v2, v3};
use tiny_skia::{GradientStop, Pixmap, SpreadMode};

/// Kinds of place.
pub const FAMILIES: usize = 6;

const WIDTH: u32 = 1440;
const HEIGHT: u32 = 320;
/// Pixels of the panorama a metre at the person's distance.
pub const SCALE: f32 = 118.0;

/// What a camera sees when nobody is there.
#[derive(Clone, Debug)]
pub struct Scene {
    /// RGBA, `WIDTH` x `HEIGHT`.
    pixels: Vec<u8>,
    /// Row where the ground begins.
    horizon: f32,
}

impl Scene {
    pub fn new(dice: &mut Dice, family: usize) -> Self {
        let horizon = dice.range(150.0, 205.0);
        let Some(pixmap) = Pixmap::new(WIDTH, HEIGHT) else {
            return Scene { pixels: Vec::new(), horizon };
        };
        let mut painter = Painter { canvas: Canvas::new(pixmap, v3(0.0, 0.0, 1.0)), dice, horizon };
        painter.paint(family);
        let passes = painter.dice.index(3);
        let data = painter.canvas.picture.data();
        let mut rgb: Vec<u8> = data.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        mute(&mut rgb);
        for _ in 0..passes {
            blur(&mut rgb, WIDTH as usize, HEIGHT as usize, 0.25);
        }
        let pixels = rgb.chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect();
        Scene { pixels, horizon }
    }

    /// Where, on a panorama row, somebody this much (0 to 1) towards the camera stands.
    pub fn ground_row(&self, near: f32) -> f32 {
        let low = self.horizon + 45.0;
        low + (HEIGHT as f32 - 8.0 - low) * near
    }

    /// Fills `target` with the window whose bottom-line point (`feet_x`, `feet_y` in target pixels) lies at
    /// (`column`, `row`) of the panorama, `zoom` panorama pixels a target pixel.
    pub fn window(&self, target: &mut Pixmap, feet: (f32, f32), at: (f32, f32), zoom: f32) {
        let (width, height) = (target.width() as usize, target.height() as usize);
        if self.pixels.is_empty() {
            return;
        }
        let clamp = |v: f32, limit: u32| v.clamp(0.0, limit as f32 - 1.001);
        // Column positions are the same on all rows: byte offset, 8-bit fraction.
        let columns: Vec<(usize, u32)> = (0..width)
            .map(|x| {
                let u = clamp(at.0 + (x as f32 - feet.0) * zoom, WIDTH);
                (u as usize * 4, (u.fract() * 256.0) as u32)
            })
            .collect();
        let stride = WIDTH as usize * 4;
        for (y, row) in target.data_mut().chunks_exact_mut(width * 4).enumerate().take(height) {
            let v = clamp(at.1 + (y as f32 - feet.1) * zoom, HEIGHT);
            let fy = (v.fract() * 256.0) as u32;
            let upper = &self.pixels[v as usize * stride..][..stride];
            let lower = &self.pixels[(v as usize + 1) * stride..][..stride];
            for (pixel, (offset, fx)) in row.chunks_exact_mut(4).zip(&columns) {
                let (a, b) = (&upper[*offset..offset + 8], &lower[*offset..offset + 8]);
                for c in 0..3 {
                    let top = u32::from(a[c]) * (256 - fx) + u32::from(a[c + 4]) * fx;
                    let bottom = u32::from(b[c]) * (256 - fx) + u32::from(b[c + 4]) * fx;
                    pixel[c] = ((top * (256 - fy) + bottom * fy + 32768) >> 16) as u8;
                }
                pixel[3] = 255;
            }
        }
    }

    /// Width of the panorama, pixels.
    pub fn width(&self) -> f32 {
        WIDTH as f32
    }
}

/// Pulls colours towards one grey: streets are duller than what people wear, and haze takes contrast with distance.
fn mute(rgb: &mut [u8]) {
    const COLOR: f32 = 0.25;
    const CONTRAST: f32 = 0.55;
    const GREY: f32 = 128.0;
    for pixel in rgb.chunks_exact_mut(3) {
        let [r, g, b] = [0, 1, 2].map(|c| f32::from(pixel[c]));
        let luma = 0.299 * r + 0.587 * g + 0.114 * b;
        for (value, c) in pixel.iter_mut().zip([r, g, b]) {
            *value = (GREY + CONTRAST * (luma + COLOR * (c - luma) - GREY)).round() as u8;
        }
    }
}

struct Painter<'a> {
    canvas: Canvas,
    dice: &'a mut Dice,
    horizon: f32,
}

impl Painter<'_> {
    fn paint(&mut self, family: usize) {
        match family {
            0 => self.street(),
            1 => self.park(),
            2 => self.brick_wall(),
            3 => self.station(),
            4 => self.car_park(),
            _ => self.shops(),
        }
        self.grime();
    }

    fn tone(&mut self, color: Rgb, spread: f32) -> Rgb {
        color.shade(1.0 + spread * self.dice.normal())
    }

    fn any_color(&mut self) -> Rgb {
        Rgb(self.dice.range(0.1, 0.85), self.dice.range(0.1, 0.8), self.dice.range(0.1, 0.85))
    }

    fn box_at(&mut self, x: f32, y: f32, w: f32, h: f32, color: Rgb) {
        self.canvas.rect(v2(x, y), v2(x + w, y + h), color, 1.0, None);
    }

    fn vertical(&mut self, y0: f32, y1: f32, top: Rgb, bottom: Rgb) {
        let stops = vec![GradientStop::new(0.0, top.alpha(1.0)), GradientStop::new(1.0, bottom.alpha(1.0))];
        let path = polygon(&[v2(0.0, y0), v2(WIDTH as f32, y0), v2(WIDTH as f32, y1), v2(0.0, y1)]);
        if let (Some(path), Some(shader)) = (path, gradient(v2(0.0, y0), v2(0.0, y1), stops, SpreadMode::Pad))
        {
            self.canvas.fill_with(&path, shader, None);
        }
    }

    fn ground(&mut self, color: Rgb, joints: f32) {
        let h = self.horizon;
        self.vertical(h, HEIGHT as f32, color.shade(0.82), color.shade(1.08));
        if joints > 0.0 {
            // Paving: joints converge on a point above the horizon and close up towards it.
            let mut x = -800.0;
            while x < WIDTH as f32 + 800.0 {
                let top = 720.0 + (x - 720.0) * 0.55;
                self.canvas.line(&[v2(top, h), v2(x, HEIGHT as f32)], color.shade(0.68), 0.5, 1.1, None);
                x += joints;
            }
            let mut y = h + 4.0;
            let mut step = 5.0;
            while y < HEIGHT as f32 {
                self.canvas.line(&[v2(0.0, y), v2(WIDTH as f32, y)], color.shade(0.68), 0.5, 1.0, None);
                y += step;
                step *= 1.45;
            }
        }
        for _ in 0..60 {
            let (x, y) = (self.dice.range(0.0, WIDTH as f32), self.dice.range(h + 4.0, HEIGHT as f32));
            let (rx, dark) = (self.dice.range(3.0, 46.0), self.dice.chance(0.6));
            let shade = if dark { color.shade(0.75) } else { color.shade(1.2) };
            self.canvas.ellipse(v2(x, y), rx, rx * 0.16, shade, 0.25, None);
        }
    }

    fn windows(&mut self, x0: f32, y0: f32, x1: f32, y1: f32, wall: Rgb) {
        let (w, h) = (self.dice.range(20.0, 44.0), self.dice.range(26.0, 50.0));
        let (dx, dy) = (w * self.dice.range(1.35, 1.9), h * self.dice.range(1.3, 1.6));
        let glass = Rgb(0.25, 0.32, 0.40);
        let mut y = y0;
        while y + h < y1 {
            let mut x = x0 + 0.2 * w;
            while x + w < x1 {
                let tone = self.tone(glass, 0.35);
                self.box_at(x - 2.0, y - 2.0, w + 4.0, h + 4.0, wall.shade(1.25));
                self.box_at(x, y, w, h, tone);
                if self.dice.chance(0.5) {
                    self.box_at(x, y, w, h * 0.45, tone.shade(1.5));
                }
                self.box_at(x + w * 0.5 - 1.0, y, 2.0, h, wall.shade(1.2));
                x += dx;
            }
            y += dy;
        }
    }

    fn buildings(&mut self, palette: &[Rgb]) {
        let mut x = -20.0;
        while x < WIDTH as f32 {
            let w = self.dice.range(110.0, 280.0);
            let base = palette[self.dice.index(palette.len())];
            let wall = self.tone(base, 0.12);
            let top = self.dice.range(-60.0, 50.0);
            self.box_at(x, top, w, self.horizon - top, wall);
            self.windows(x + 6.0, top + 12.0, x + w - 6.0, self.horizon - 62.0, wall);
            // Ground floor: door or shutter.
            let door = self.dice.range(10.0, w - 46.0);
            let color = self.any_color().shade(0.6);
            self.box_at(x + door, self.horizon - 58.0, 32.0, 58.0, color);
            self.box_at(x, self.horizon - 6.0, w, 6.0, wall.shade(0.6));
            x += w;
        }
    }

    fn car(&mut self, x: f32, y: f32, size: f32) {
        let base = self.any_color();
        let color = if self.dice.chance(0.5) { base.mix(Rgb(0.6, 0.6, 0.62), 0.7) } else { base };
        let s = size;
        self.canvas.ellipse(v2(x + 1.0 * s, y + 0.01 * s), 1.05 * s, 0.07 * s, BLACK, 0.45, None);
        let cabin = [
            v2(x + 0.42 * s, y - 0.42 * s),
            v2(x + 0.70 * s, y - 0.72 * s),
            v2(x + 1.32 * s, y - 0.72 * s),
            v2(x + 1.66 * s, y - 0.42 * s),
        ];
        if let Some(path) = polygon(&cabin) {
            self.canvas.fill(&path, color.shade(0.9), 1.0, None);
        }
        let glass = [
            v2(x + 0.52 * s, y - 0.43 * s),
            v2(x + 0.74 * s, y - 0.67 * s),
            v2(x + 1.28 * s, y - 0.67 * s),
            v2(x + 1.54 * s, y - 0.43 * s),
        ];
        if let Some(path) = polygon(&glass) {
            self.canvas.fill(&path, Rgb(0.18, 0.22, 0.27), 1.0, None);
        }
        self.canvas.rect(
            v2(x + 0.98 * s, y - 0.7 * s),
            v2(x + 1.03 * s, y - 0.42 * s),
            color.shade(0.8),
            1.0,
            None,
        );
        if let Some(path) = round_rect(x, y - 0.45 * s, x + 2.0 * s, y - 0.10 * s, 0.13 * s) {
            self.canvas.fill(&path, color, 1.0, None);
        }
        self.canvas.rect(
            v2(x + 0.05 * s, y - 0.2 * s),
            v2(x + 1.95 * s, y - 0.1 * s),
            color.shade(0.65),
            1.0,
            None,
        );
        for wheel in [0.40, 1.58] {
            self.canvas.ellipse(v2(x + wheel * s, y - 0.12 * s), 0.17 * s, 0.17 * s, BLACK, 1.0, None);
            self.canvas.ellipse(
                v2(x + wheel * s, y - 0.12 * s),
                0.09 * s,
                0.09 * s,
                Rgb(0.6, 0.6, 0.62),
                1.0,
                None,
            );
        }
        self.canvas.ellipse(
            v2(x + 0.04 * s, y - 0.34 * s),
            0.05 * s,
            0.05 * s,
            Rgb(0.95, 0.9, 0.7),
            1.0,
            None,
        );
        self.canvas.ellipse(
            v2(x + 1.96 * s, y - 0.34 * s),
            0.04 * s,
            0.05 * s,
            Rgb(0.8, 0.15, 0.1),
            1.0,
            None,
        );
    }

    fn tree(&mut self, x: f32, y: f32, size: f32) {
        let bark = self.tone(Rgb(0.30, 0.22, 0.16), 0.15);
        self.canvas.line(
            &[v2(x, y), v2(x + 2.0, y - 0.5 * size), v2(x, y - size)],
            bark,
            1.0,
            0.07 * size,
            None,
        );
        let leaf = Rgb(self.dice.range(0.15, 0.42), self.dice.range(0.32, 0.5), self.dice.range(0.12, 0.22));
        for _ in 0..26 {
            let at =
                v2(x + 0.32 * size * self.dice.normal() * 0.7, y - size * (0.95 + 0.22 * self.dice.normal()));
            let r = size * self.dice.range(0.07, 0.17);
            let tone = leaf.shade(self.dice.range(0.55, 1.35));
            self.canvas.ellipse(at, r, r * 0.8, tone, 0.9, None);
        }
    }

    fn bush(&mut self, x: f32, y: f32, size: f32) {
        let leaf = Rgb(self.dice.range(0.12, 0.3), self.dice.range(0.3, 0.45), self.dice.range(0.1, 0.2));
        for _ in 0..14 {
            let at = v2(x + size * self.dice.normal() * 0.5, y - size * self.dice.range(0.1, 0.6));
            let r = size * self.dice.range(0.15, 0.32);
            let tone = leaf.shade(self.dice.range(0.6, 1.3));
            self.canvas.ellipse(at, r, r * 0.8, tone, 0.95, None);
        }
    }

    fn pole(&mut self, x: f32, y: f32, width: f32) {
        let color = self.tone(Rgb(0.38, 0.39, 0.40), 0.3);
        self.box_at(x, 0.0, width, y, color);
        self.box_at(x, 0.0, width * 0.35, y, color.shade(1.3));
        if self.dice.chance(0.5) {
            let sign = self.any_color();
            let r = self.dice.range(11.0, 20.0);
            let at = v2(x + width * 0.5, self.dice.range(20.0, 90.0));
            self.canvas.ellipse(at, r, r, sign, 1.0, None);
            self.canvas.ellipse(at, r * 0.65, r * 0.65, WHITE.shade(0.9), 1.0, None);
        }
    }

    fn street(&mut self) {
        self.vertical(0.0, self.horizon, Rgb(0.62, 0.72, 0.84), Rgb(0.85, 0.87, 0.88));
        self.buildings(&[
            Rgb(0.62, 0.55, 0.47),
            Rgb(0.50, 0.36, 0.30),
            Rgb(0.66, 0.64, 0.60),
            Rgb(0.42, 0.45, 0.50),
        ]);
        let pavement = self.tone(Rgb(0.52, 0.51, 0.50), 0.1);
        self.ground(pavement, 60.0);
        for _ in 0..7 {
            let (x, s) = (self.dice.range(-60.0, 1400.0), self.dice.range(55.0, 90.0));
            let y = self.horizon + self.dice.range(4.0, 26.0);
            self.car(x, y, s);
        }
        for _ in 0..7 {
            let (x, w) = (self.dice.range(0.0, 1440.0), self.dice.range(5.0, 11.0));
            let y = self.horizon + self.dice.range(10.0, 45.0);
            self.pole(x, y, w);
        }
    }

    fn park(&mut self) {
        self.vertical(0.0, self.horizon, Rgb(0.66, 0.78, 0.90), Rgb(0.86, 0.90, 0.90));
        for _ in 0..55 {
            let (x, s) = (self.dice.range(-20.0, 1460.0), self.dice.range(40.0, 90.0));
            let y = self.horizon + 4.0;
            self.bush(x, y, s);
        }
        let grass = Rgb(0.34, 0.46, 0.22);
        self.ground(grass, 0.0);
        for _ in 0..260 {
            let (x, y) = (self.dice.range(0.0, 1440.0), self.dice.range(self.horizon, 320.0));
            let (l, tone) = (self.dice.range(3.0, 9.0), self.dice.range(0.7, 1.35));
            self.canvas.line(&[v2(x, y), v2(x + 1.5, y - l)], grass.shade(tone), 0.7, 1.2, None);
        }
        let path = Rgb(0.66, 0.60, 0.50);
        let y = self.horizon + 55.0;
        self.canvas.rect(v2(0.0, y), v2(1440.0, y + 62.0), path, 1.0, None);
        self.canvas.rect(v2(0.0, y), v2(1440.0, y + 4.0), path.shade(0.75), 1.0, None);
        for _ in 0..12 {
            let (x, s) = (self.dice.range(0.0, 1440.0), self.dice.range(130.0, 230.0));
            let y = self.horizon + self.dice.range(8.0, 40.0);
            self.tree(x, y, s);
        }
        // A rail fence, and benches.
        let y = self.horizon + 44.0;
        let rail = Rgb(0.42, 0.34, 0.26);
        let from = self.dice.range(0.0, 700.0);
        for i in 0..14 {
            self.box_at(from + 40.0 * i as f32, y - 34.0, 5.0, 38.0, rail);
        }
        for dy in [30.0, 16.0] {
            self.box_at(from, y - dy, 530.0, 4.0, rail.shade(1.2));
        }
    }

    fn brick_wall(&mut self) {
        let hue = self.dice.index(3);
        let brick = [Rgb(0.56, 0.33, 0.26), Rgb(0.62, 0.56, 0.48), Rgb(0.48, 0.46, 0.45)][hue];
        self.vertical(0.0, self.horizon, brick.shade(0.62), brick.shade(0.7));
        let (w, h) = (26.0, 9.0);
        let mut row = 0;
        while (row as f32) * h < self.horizon {
            let mut x = if row % 2 == 0 { 0.0 } else { -w * 0.5 };
            while x < WIDTH as f32 {
                let tone = self.tone(brick, 0.09);
                self.box_at(x + 1.0, row as f32 * h + 1.0, w - 1.6, h - 1.6, tone);
                x += w;
            }
            row += 1;
        }
        for _ in 0..9 {
            let (x, y) = (self.dice.range(0.0, 1400.0), self.dice.range(5.0, 90.0));
            let (w, h) = (self.dice.range(34.0, 90.0), self.dice.range(40.0, 80.0));
            let color = self.any_color();
            self.box_at(x, y, w, h, color);
            let accent = self.any_color();
            self.box_at(x + 5.0, y + 6.0, w - 10.0, h * 0.4, accent);
            for i in 0..3 {
                self.box_at(x + 6.0, y + h * 0.6 + 7.0 * i as f32, w * 0.6, 3.0, WHITE.shade(0.85));
            }
        }
        for _ in 0..5 {
            let color = self.any_color();
            let start = v2(self.dice.range(0.0, 1400.0), self.dice.range(40.0, self.horizon - 10.0));
            let mut points = vec![start];
            for i in 1..7 {
                points.push(start + v2(14.0 * i as f32, 18.0 * self.dice.normal()));
            }
            self.canvas.line(&points, color, 0.85, 5.0, None);
        }
        let pavement = self.tone(Rgb(0.47, 0.46, 0.46), 0.1);
        self.ground(pavement, 48.0);
        for _ in 0..5 {
            let (x, y) = (self.dice.range(0.0, 1440.0), self.horizon + self.dice.range(4.0, 20.0));
            self.bin(x, y, 42.0);
        }
    }

    fn bin(&mut self, x: f32, y: f32, size: f32) {
        let base = self.any_color();
        let color = base.mix(Rgb(0.2, 0.3, 0.22), 0.6);
        if let Some(path) = polygon(&[
            v2(x, y - size),
            v2(x + 0.7 * size, y - size),
            v2(x + 0.62 * size, y),
            v2(x + 0.08 * size, y),
        ]) {
            self.canvas.fill(&path, color, 1.0, None);
        }
        self.box_at(x - 2.0, y - size - 5.0, 0.7 * size + 4.0, 6.0, color.shade(0.7));
    }

    fn station(&mut self) {
        let wall = self.tone(Rgb(0.74, 0.75, 0.72), 0.08);
        self.vertical(0.0, self.horizon, wall.shade(0.8), wall);
        let mut x = 0.0;
        while x < WIDTH as f32 {
            self.canvas.line(&[v2(x, 0.0), v2(x, self.horizon)], wall.shade(0.8), 0.7, 1.0, None);
            x += 22.0;
        }
        let mut y = 0.0;
        while y < self.horizon {
            self.canvas.line(&[v2(0.0, y), v2(1440.0, y)], wall.shade(0.8), 0.7, 1.0, None);
            y += 22.0;
        }
        let band = self.any_color();
        let y = self.horizon - 74.0;
        self.box_at(0.0, y, 1440.0, 18.0, band);
        for _ in 0..6 {
            let (x, w) = (self.dice.range(0.0, 1300.0), self.dice.range(80.0, 170.0));
            let (frame, poster, blob) = (Rgb(0.2, 0.2, 0.22), self.any_color(), self.any_color());
            self.box_at(x, 10.0, w, 92.0, frame);
            self.box_at(x + 4.0, 14.0, w - 8.0, 84.0, poster);
            self.canvas.ellipse(v2(x + 0.4 * w, 56.0), 0.22 * w, 30.0, blob, 1.0, None);
            self.box_at(x + 0.6 * w, 30.0, 0.3 * w, 6.0, WHITE.shade(0.9));
            self.box_at(x + 0.6 * w, 44.0, 0.25 * w, 4.0, WHITE.shade(0.9));
        }
        let floor = self.tone(Rgb(0.55, 0.55, 0.56), 0.1);
        self.ground(floor, 90.0);
        let y = self.horizon + 30.0;
        self.box_at(0.0, y, 1440.0, 6.0, Rgb(0.82, 0.70, 0.22));
        let count = 5;
        for i in 0..count {
            let x = (i as f32 + self.dice.unit()) * 1440.0 / count as f32;
            let w = self.dice.range(26.0, 44.0);
            let color = self.tone(Rgb(0.55, 0.57, 0.60), 0.15);
            let foot = self.horizon + 26.0;
            self.box_at(x, 0.0, w, foot, color);
            self.box_at(x, 0.0, w * 0.3, foot, color.shade(1.2));
            self.box_at(x + w * 0.8, 0.0, w * 0.2, foot, color.shade(0.7));
        }
    }

    fn car_park(&mut self) {
        self.vertical(0.0, self.horizon, Rgb(0.70, 0.73, 0.77), Rgb(0.86, 0.86, 0.85));
        let mut x = 0.0;
        while x < WIDTH as f32 {
            let (w, top) = (self.dice.range(60.0, 200.0), self.dice.range(30.0, 120.0));
            let wall = self.tone(Rgb(0.60, 0.61, 0.63), 0.14);
            self.box_at(x, top, w, self.horizon - top, wall);
            self.windows(x + 4.0, top + 8.0, x + w - 4.0, self.horizon - 8.0, wall);
            x += w * self.dice.range(0.9, 1.3);
        }
        for _ in 0..10 {
            let (x, s) = (self.dice.range(0.0, 1440.0), self.dice.range(60.0, 120.0));
            let y = self.horizon + 3.0;
            self.tree(x, y, s);
        }
        self.ground(Rgb(0.34, 0.34, 0.36), 0.0);
        let mut x = -100.0;
        while x < WIDTH as f32 + 100.0 {
            let h = self.horizon + 20.0;
            if let Some(path) = polygon(&[v2(x, h), v2(x + 5.0, h), v2(x + 52.0, 320.0), v2(x + 42.0, 320.0)])
            {
                self.canvas.fill(&path, Rgb(0.82, 0.82, 0.80), 0.9, None);
            }
            x += 150.0;
        }
        for i in 0..12 {
            let x = i as f32 * 125.0 + 20.0 * self.dice.normal();
            if self.dice.chance(0.75) {
                let (y, s) = (self.horizon + self.dice.range(12.0, 40.0), self.dice.range(58.0, 84.0));
                self.car(x, y, s);
            }
        }
    }

    fn shops(&mut self) {
        let mut x = -10.0;
        while x < WIDTH as f32 {
            let w = self.dice.range(130.0, 230.0);
            let front = self.any_color().mix(Rgb(0.4, 0.4, 0.4), 0.35);
            self.box_at(x, -10.0, w, self.horizon + 10.0, front);
            let sign = self.any_color();
            self.box_at(x + 4.0, 4.0, w - 8.0, 24.0, sign);
            let letters = 4 + self.dice.index(6);
            for i in 0..letters {
                let lw = (w - 50.0) / letters as f32;
                self.box_at(x + 24.0 + lw * i as f32, 10.0, lw * 0.6, 12.0, WHITE.shade(0.92));
            }
            // Window with warm light and goods on shelves.
            let glow = self.tone(Rgb(0.78, 0.70, 0.55), 0.2);
            let (wx, wy, ww, wh) = (x + 12.0, 40.0, w * 0.62, self.horizon - 58.0);
            self.box_at(wx, wy, ww, wh, glow);
            for shelf in 0..3 {
                let sy = wy + wh * (shelf as f32 + 1.0) / 3.2;
                self.box_at(wx, sy, ww, 3.0, front.shade(0.5));
                let mut gx = wx + 3.0;
                while gx + 12.0 < wx + ww {
                    let (gw, gh) = (self.dice.range(6.0, 14.0), self.dice.range(8.0, 24.0));
                    let color = self.any_color();
                    self.box_at(gx, sy - gh, gw, gh, color);
                    gx += gw + self.dice.range(2.0, 9.0);
                }
            }
            self.box_at(x + w * 0.72, 38.0, w * 0.22, self.horizon - 38.0, front.shade(0.45));
            self.box_at(x + w * 0.74, 44.0, w * 0.18, self.horizon - 66.0, Rgb(0.35, 0.42, 0.46));
            if self.dice.chance(0.5) {
                let a = self.any_color();
                for i in 0..8 {
                    let color = if i % 2 == 0 { a } else { WHITE.shade(0.9) };
                    let (p, q) = (x + w * i as f32 / 8.0, x + w * (i as f32 + 1.0) / 8.0);
                    if let Some(path) = polygon(&[v2(p, 28.0), v2(q, 28.0), v2(q, 52.0), v2(p, 52.0)]) {
                        self.canvas.fill(&path, color, 1.0, None);
                    }
                }
            }
            x += w;
        }
        let pavement = self.tone(Rgb(0.60, 0.57, 0.53), 0.1);
        self.ground(pavement, 36.0);
        for _ in 0..6 {
            let (x, y) = (self.dice.range(0.0, 1440.0), self.horizon + self.dice.range(8.0, 24.0));
            self.bush(x, y, 34.0);
            self.box_at(x - 16.0, y - 4.0, 32.0, 20.0, Rgb(0.45, 0.30, 0.24));
        }
    }

    /// Stains and light: no wall is evenly lit.
    fn grime(&mut self) {
        for _ in 0..50 {
            let at = v2(self.dice.range(0.0, 1440.0), self.dice.range(0.0, 320.0));
            let (rx, ry) = (self.dice.range(15.0, 120.0), self.dice.range(10.0, 70.0));
            let color = if self.dice.chance(0.6) { BLACK } else { WHITE };
            self.canvas.ellipse(at, rx, ry, color, 0.05, None);
        }
    }
}
