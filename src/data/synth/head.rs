//! Head, face, hair and hats, as shapes on two ellipsoids (skull and jaw).

use super::canvas::{BLACK, Rgb, Tag, gradient, polygon};
use super::figure::Figure;
use super::geometry::{V2, V3, v2, v3};
use super::identity::{AgeGroup, Eyewear, Hair, Hat};
use super::labels::{Part, Segment};
use std::f32::consts::PI;
use tiny_skia::{GradientStop, Path, SpreadMode};

/// Samples of a circle on an ellipsoid; at a head of 30 pixels a finer polygon looks no rounder.
const SAMPLES: usize = 28;

/// Offset from the head's centre and half axes, in head heights.
pub const SKULL: (V3, V3) = (v3(0.0, 0.080, -0.030), v3(0.340, 0.425, 0.410));
const JAW: (V3, V3) = (v3(0.0, -0.180, 0.070), v3(0.268, 0.325, 0.310));

/// Points of the face, in head heights from the head's centre.
pub const NOSE: V3 = v3(0.0, -0.130, 0.455);
pub const EYES: [V3; 2] = [v3(0.140, 0.0, 0.335), v3(-0.140, 0.0, 0.335)];
pub const EARS: [V3; 2] = [v3(0.335, -0.050, 0.010), v3(-0.335, -0.050, 0.010)];

/// An ellipsoid seen by the camera.
pub struct Ball {
    pub center: V3,
    pub at: V2,
    pub scale: f32,
    /// Half axes in the camera frame, metres.
    pub axes: [V3; 3],
    /// Direction to the viewer in the unit sphere's own coordinates.
    viewer: V3,
}

impl Ball {
    /// The picture point of a point of the unit sphere.
    pub fn point(&self, s: V3) -> V2 {
        let q = self.axes[0] * s.x + self.axes[1] * s.y + self.axes[2] * s.z;
        self.at + v2(q.x, -q.y) * self.scale
    }

    pub fn visible(&self, s: V3) -> bool {
        s.dot(self.viewer) > 0.0
    }

    fn silhouette(&self) -> [V3; SAMPLES] {
        circle(self.viewer, 0.0)
    }

    fn disk(&self) -> Option<Path> {
        polygon(&self.silhouette().map(|s| self.point(s)))
    }

    /// The visible part of the spherical cap `s . pole > cut`.
    pub fn cap(&self, pole: V3, cut: f32) -> Option<Path> {
        let rim = circle(pole, cut);
        let inside = |s: V3| s.dot(pole) > cut;
        let shown: Vec<V3> = run(&rim, |s| self.visible(s));
        let edge = self.silhouette();
        let arc: Vec<V3> = run(&edge, inside);
        let mut points: Vec<V2> = shown.iter().map(|s| self.point(*s)).collect();
        if shown.is_empty() || arc.is_empty() {
            // The rim is hidden, or lies wholly on the near side.
            if arc.len() == SAMPLES {
                return self.disk();
            }
            return if inside(self.viewer) { polygon(&points) } else { None };
        }
        if shown.len() == SAMPLES {
            return self.disk();
        }
        let mut arc: Vec<V2> = arc.iter().map(|s| self.point(*s)).collect();
        let end = points[points.len() - 1];
        if (arc[0] - end).length() > (arc[arc.len() - 1] - end).length() {
            arc.reverse();
        }
        points.extend(arc);
        polygon(&points)
    }
}

/// A circle of the unit sphere: `s . pole = cut`.
pub fn circle(pole: V3, cut: f32) -> [V3; SAMPLES] {
    let pole = pole.unit();
    let helper = if pole.x.abs() < 0.8 { v3(1.0, 0.0, 0.0) } else { v3(0.0, 1.0, 0.0) };
    let a = pole.cross(helper).unit();
    let b = pole.cross(a);
    let radius = (1.0 - cut * cut).max(0.0).sqrt();
    std::array::from_fn(|i| {
        let (s, c) = (2.0 * PI * i as f32 / SAMPLES as f32).sin_cos();
        pole * cut + a * (radius * c) + b * (radius * s)
    })
}

/// The longest cyclic run of points that satisfy `keep`, in order.
pub fn run(points: &[V3; SAMPLES], keep: impl Fn(V3) -> bool) -> Vec<V3> {
    let flags = points.map(&keep);
    if flags.iter().all(|flag| *flag) {
        return points.to_vec();
    }
    let start = (0..SAMPLES).find(|i| flags[*i] && !flags[(i + SAMPLES - 1) % SAMPLES]);
    let Some(start) = start else { return Vec::new() };
    (0..SAMPLES).map(|i| (start + i) % SAMPLES).take_while(|i| flags[*i]).map(|i| points[i]).collect()
}

impl Figure<'_> {
    /// A point given in head heights in the head's frame, in the person frame.
    pub fn head_point(&self, p: V3) -> V3 {
        self.bones.head + self.bones.head_turn.apply(p * self.who.body.head)
    }

    pub fn ball(&self, (offset, half): (V3, V3), grow: f32) -> Ball {
        let size = self.who.body.head;
        let center = self.head_point(offset);
        let seen = self.view.see(center);
        let axis = |v: V3| self.view.turn(self.bones.head_turn.apply(v * (size * grow)));
        let axes = [axis(v3(half.x, 0.0, 0.0)), axis(v3(0.0, half.y, 0.0)), axis(v3(0.0, 0.0, half.z))];
        let towards = |a: V3| a.z / a.dot(a).max(1e-9);
        // The normal at s is the sum of s_i axis_i / |axis_i|^2: its depth is linear in s.
        let viewer = v3(towards(axes[0]), towards(axes[1]), towards(axes[2])).unit();
        Ball { center, at: seen.at, scale: seen.scale, axes, viewer }
    }

    pub fn head(&mut self) {
        let who = self.who;
        let a = &who.attributes;
        let skin = Tag(Part::Face, Segment::Face);
        let feminine = who.body.feminine;
        let skull = self.ball(SKULL, 1.0);
        let jaw_shape = (JAW.0, v3(JAW.1.x * (1.03 - 0.10 * feminine), JAW.1.y, JAW.1.z));
        let jaw = self.ball(jaw_shape, 1.0);
        let back = self.head_facing() < -0.1;
        let skin = if back { Tag(Part::Face, Segment::Head) } else { skin };
        if self.near && a.hair == Hair::Bun && !back {
            self.bun();
        }
        self.skin_ball(&jaw, skin);
        self.skin_ball(&skull, skin);
        if !self.near {
            self.hair_cap();
            return;
        }
        if a.beard {
            let pole = v3(0.0, -0.78, 0.62).unit();
            if let Some(path) = jaw.cap(pole, 0.32) {
                self.canvas.fill(&path, who.hair.mix(who.skin, 0.25), 0.85, None);
            }
        }
        if self.head_facing() > -0.35 {
            self.face(&skull, &jaw);
        }
        self.hair_cap();
        self.ears(&skull);
        if back && a.hair == Hair::Bun {
            self.bun();
        }
        self.locks();
        self.eyewear(&skull);
    }

    /// 1 when the face looks at the camera.
    pub fn head_facing(&self) -> f32 {
        self.view.turn(self.bones.head_turn.apply(v3(0.0, 0.0, 1.0))).z
    }

    fn skin_ball(&mut self, ball: &Ball, tag: Tag) {
        if let Some(path) = ball.disk() {
            let radius = ball.axes[0].length().max(ball.axes[2].length()) * ball.scale * 0.85;
            let light = v2(self.canvas.light.x, -self.canvas.light.y).unit() * radius;
            let stops = vec![
                GradientStop::new(0.0, self.who.skin.shade(0.74).alpha(1.0)),
                GradientStop::new(0.45, self.who.skin.shade(0.97).alpha(1.0)),
                GradientStop::new(1.0, self.who.skin.shade(1.10).alpha(1.0)),
            ];
            if let Some(shader) = gradient(ball.at - light, ball.at + light, stops, SpreadMode::Pad) {
                self.canvas.fill_with(&path, shader, Some(tag));
            }
        }
    }

    /// How far a point of the face is turned to the camera: 1 straight on, 0 at the rim.
    pub fn turned_to_camera(&self, direction: V3) -> f32 {
        self.view.turn(self.bones.head_turn.apply(direction.unit())).z
    }

    fn face(&mut self, skull: &Ball, jaw: &Ball) {
        let who = self.who;
        let size = who.body.head * skull.scale;
        let skin = who.skin;
        let child = who.attributes.age == AgeGroup::Child;
        let eye_size = if child { 1.25 } else { 1.0 };
        let up =
            (self.view.see(self.head_point(v3(0.0, 0.5, 0.0))).at - self.view.see(self.bones.head).at).unit();
        let across = up.perp();
        let brow = who.hair.mix(BLACK, 0.25);
        let lash = if who.body.feminine > 0.5 { 0.95 } else { 0.6 };
        for (side, eye) in EYES.iter().enumerate() {
            let out = if side == 0 { 1.0 } else { -1.0 };
            let turned = self.turned_to_camera(v3(0.42 * out, 0.0, 0.9));
            if turned < 0.12 {
                continue;
            }
            let at = self.view.see(self.head_point(*eye)).at;
            let rx = 0.070 * size * eye_size * turned.sqrt();
            self.canvas.ellipse(
                at - up * (0.01 * size),
                rx * 1.25,
                0.052 * size,
                skin.shade(0.72),
                0.55,
                None,
            );
            self.canvas.ellipse(at, rx * 0.95, 0.032 * size * eye_size, Rgb(0.93, 0.92, 0.90), 0.9, None);
            let iris = 0.032 * size * eye_size;
            self.canvas.ellipse(at, iris * turned.sqrt(), iris, Rgb(0.13, 0.10, 0.08), 1.0, None);
            let lid = [at - across * rx, at + up * (0.036 * size * eye_size), at + across * rx];
            self.canvas.line(&lid, BLACK, lash, 0.020 * size, None);
            let lift = at + up * (0.105 * size);
            let arch = [lift - across * (1.25 * rx), lift + up * (0.025 * size), lift + across * (1.25 * rx)];
            self.canvas.line(
                &arch,
                brow,
                0.9,
                if who.body.feminine > 0.5 { 0.024 } else { 0.036 } * size,
                None,
            );
        }
        // Nose: in profile a bump beyond the silhouette, from the front a shaded side and nostrils.
        let turned = self.turned_to_camera(v3(0.0, 0.0, 1.0));
        let see = |f: &Self, p: V3| f.view.see(f.head_point(p)).at;
        let bridge = see(self, v3(0.0, 0.03, 0.375));
        let tip = see(self, NOSE);
        let base = see(self, v3(0.0, -0.175, 0.370));
        if turned < 0.75
            && let Some(path) = polygon(&[bridge, tip, base])
        {
            self.canvas.fill(&path, skin.shade(0.98), 1.0, Some(Tag(Part::Face, Segment::Face)));
        }
        let dark = v2(-self.canvas.light.x, 0.0).unit() * (0.035 * size);
        self.canvas.line(&[bridge + dark, tip + dark], skin.shade(0.72), 0.45, 0.035 * size, None);
        self.canvas.line(
            &[tip - across * (0.045 * size), base, tip + across * (0.045 * size)],
            skin.shade(0.6),
            0.7,
            0.026 * size,
            None,
        );
        if turned > 0.05 {
            let mouth = see(self, v3(0.0, -0.285, 0.375));
            let half = 0.105 * size * turned.max(0.25);
            let lips = if who.body.feminine > 0.5 { Rgb(0.70, 0.30, 0.32) } else { Rgb(0.60, 0.34, 0.31) };
            let lips = lips.mix(skin.shade(0.6), 0.4);
            let curve = [mouth - across * half, mouth - up * (0.014 * size), mouth + across * half];
            self.canvas.line(&curve, lips, 0.95, 0.042 * size, None);
            self.canvas.line(&curve, lips.shade(0.5), 0.7, 0.014 * size, None);
            let chin = see(self, v3(0.0, -0.37, 0.35));
            self.canvas.ellipse(chin, half * 0.6, 0.02 * size, skin.shade(0.75), 0.35, None);
        }
        if let Some(path) = jaw.cap(v3(0.0, -0.95, -0.1).unit(), 0.80) {
            self.canvas.fill(&path, skin.shade(0.6), 0.35, None);
        }
        for out in [-1.0f32, 1.0] {
            let cheek = v3(0.72 * out, -0.25, 0.66).unit();
            if skull.visible(cheek) {
                let warm = Rgb(0.85, 0.42, 0.38).mix(skin, 0.4);
                self.canvas.ellipse(skull.point(cheek), 0.075 * size, 0.06 * size, warm, 0.28, None);
            }
        }
    }

    fn ears(&mut self, skull: &Ball) {
        let a = &self.who.attributes;
        if matches!(a.hair, Hair::Bob | Hair::Long) || a.hat == Hat::Beanie {
            return;
        }
        let size = self.who.body.head * skull.scale;
        for (side, ear) in EARS.iter().enumerate() {
            let out = if side == 0 { 1.0 } else { -1.0 };
            let turned = self.turned_to_camera(v3(out, 0.0, -0.25));
            if turned < -0.30 {
                continue;
            }
            let at = self.view.see(self.head_point(*ear)).at;
            let rx = (0.025 + 0.055 * turned.abs()) * size;
            self.canvas.ellipse(
                at,
                rx,
                0.105 * size,
                self.who.skin.shade(0.88),
                1.0,
                Some(Tag(Part::Face, Segment::Head)),
            );
            self.canvas.ellipse(at, rx * 0.5, 0.06 * size, self.who.skin.shade(0.66), 0.7, None);
        }
    }

    fn eyewear(&mut self, skull: &Ball) {
        let who = self.who;
        let sun = match who.attributes.eyewear {
            Eyewear::None => return,
            Eyewear::Glasses => false,
            Eyewear::Sunglasses => true,
        };
        let size = who.body.head * skull.scale;
        let tag = Some(Tag(if sun { Part::Sunglasses } else { Part::Face }, Segment::Face));
        for (side, eye) in EYES.iter().enumerate() {
            let out = if side == 0 { 1.0 } else { -1.0 };
            let turned = self.turned_to_camera(v3(0.42 * out, 0.0, 0.9));
            let temple = self.turned_to_camera(v3(out, 0.0, 0.1));
            let at = self.view.see(self.head_point(*eye + v3(0.0, 0.0, 0.03))).at;
            if temple > 0.1 {
                let ear = self.view.see(self.head_point(EARS[side] + v3(0.0, 0.08, 0.0))).at;
                self.canvas.line(&[at, ear], BLACK, 0.85, 0.028 * size, None);
            }
            if turned < 0.1 {
                continue;
            }
            let (rx, ry) = (0.115 * size * turned.max(0.3), 0.080 * size);
            if sun {
                self.canvas.ellipse(at, rx, ry, BLACK, 0.95, tag);
                self.canvas.ellipse(
                    at - v2(0.3 * rx, 0.35 * ry),
                    rx * 0.3,
                    ry * 0.25,
                    Rgb(0.6, 0.65, 0.7),
                    0.6,
                    None,
                );
            } else if let Some(path) = tiny_skia::Rect::from_ltrb(at.x - rx, at.y - ry, at.x + rx, at.y + ry)
                .and_then(tiny_skia::PathBuilder::from_oval)
            {
                self.canvas.fill(&path, Rgb(0.9, 0.95, 1.0), 0.18, None);
                self.canvas.stroke(&path, BLACK, 0.9, 0.028 * size, None);
            }
        }
        let turned = self.turned_to_camera(v3(0.0, 0.0, 1.0));
        if turned > 0.2 {
            let bridge = EYES.map(|eye| self.view.see(self.head_point(v3(0.3 * eye.x, 0.02, 0.39))).at);
            self.canvas.line(&bridge, BLACK, 0.9, 0.030 * size, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(path: Option<Path>) -> f32 {
        let Some(path) = path else { return 0.0 };
        let points = path.points();
        let next = points.iter().cycle().skip(1);
        0.5 * points.iter().zip(next).map(|(p, q)| p.x * q.y - p.y * q.x).sum::<f32>().abs()
    }

    #[test]
    fn a_cap_and_its_complement_make_the_disk() {
        let mut compared = 0;
        for step in 0..60 {
            let angle = step as f32 * 0.37;
            let viewer = v3(angle.cos(), (1.7 * angle).sin(), angle.sin()).unit();
            let side = viewer.cross(v3(0.3, 0.9, 0.1)).unit();
            let axes = [side, viewer.cross(side), viewer];
            // Columns of the rotation that turns `viewer` to the camera.
            let column = |f: fn(V3) -> f32| v3(f(axes[0]), -f(axes[1]), f(axes[2]));
            let ball = Ball {
                center: v3(0.0, 0.0, 0.0),
                at: v2(0.0, 0.0),
                scale: 100.0,
                axes: [column(|v| v.x), column(|v| v.y), column(|v| v.z)],
                viewer,
            };
            let (pole, cut) = (v3(0.0, 0.75, -0.66).unit(), -0.05);
            let (one, other) = (ball.cap(pole, cut), ball.cap(-pole, -cut));
            let disk = area(ball.disk());
            assert!((disk - 31416.0).abs() < 500.0, "{disk}");
            let sum = area(one) + area(other);
            assert!((sum - disk).abs() < 0.06 * disk, "step {step}: {sum} of {disk}");
            compared += 1;
        }
        assert_eq!(compared, 60);
    }
}
