//! Head, face, hair and hats, as shapes on two ellipsoids (skull and jaw).

use super::canvas::{BLACK, Cap, Fabric, Frame, Rgb, Tag, gradient, open_path, polygon, tube};
use super::figure::{Figure, Ring};
use super::geometry::{V2, V3, v2, v3};
use super::identity::{AgeGroup, Eyewear, Hair, Hat};
use super::labels::{Part, Segment};
use std::f32::consts::PI;
use tiny_skia::{GradientStop, Path, SpreadMode};

/// Samples of a circle on an ellipsoid; at a head of 30 pixels a finer polygon looks no rounder.
const SAMPLES: usize = 28;

/// Offset from the head's centre and half axes, in head heights.
const SKULL: (V3, V3) = (v3(0.0, 0.080, -0.030), v3(0.340, 0.425, 0.410));
const JAW: (V3, V3) = (v3(0.0, -0.180, 0.070), v3(0.268, 0.325, 0.310));

/// Points of the face, in head heights from the head's centre.
pub const NOSE: V3 = v3(0.0, -0.130, 0.455);
pub const EYES: [V3; 2] = [v3(0.140, 0.0, 0.335), v3(-0.140, 0.0, 0.335)];
pub const EARS: [V3; 2] = [v3(0.335, -0.050, 0.010), v3(-0.335, -0.050, 0.010)];

/// An ellipsoid seen by the camera.
pub struct Ball {
    center: V3,
    at: V2,
    scale: f32,
    /// Half axes in the camera frame, metres.
    axes: [V3; 3],
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
    fn cap(&self, pole: V3, cut: f32) -> Option<Path> {
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
fn circle(pole: V3, cut: f32) -> [V3; SAMPLES] {
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
fn run(points: &[V3; SAMPLES], keep: impl Fn(V3) -> bool) -> Vec<V3> {
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

    fn ball(&self, (offset, half): (V3, V3), grow: f32) -> Ball {
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
        if turned < 0.75 {
            if let Some(path) = polygon(&[bridge, tip, base]) {
                self.canvas.fill(&path, skin.shade(0.98), 1.0, Some(Tag(Part::Face, Segment::Face)));
            }
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

    fn hair_cap(&mut self) {
        let who = self.who;
        // (tilt of the hairline backwards, cut, volume)
        let (tilt, cut, volume) = match who.attributes.hair {
            Hair::Bald => return,
            Hair::Buzz => (0.74, 0.0, 1.015),
            Hair::Short => (0.72, -0.04, who.hair_volume),
            Hair::Curly => (0.80, -0.14, who.hair_volume),
            Hair::Bob | Hair::Long => (0.80, -0.20, who.hair_volume),
            Hair::Bun | Hair::Ponytail => (0.74, -0.10, 1.035),
        };
        let ball = self.ball(SKULL, volume);
        let pole = v3(0.0, f32::cos(tilt), -f32::sin(tilt));
        let tag = Tag(Part::Hair, Segment::Head);
        if let Some(path) = ball.cap(pole, cut) {
            let alpha = if who.attributes.hair == Hair::Buzz { 0.82 } else { 1.0 };
            self.canvas.fill(&path, who.hair, alpha, Some(tag));
            self.gloss(&ball, pole);
        }
        if who.attributes.hair == Hair::Curly && self.near {
            for rim in [circle(pole, cut + 0.1), circle(pole, 0.55)] {
                for s in rim.iter().step_by(2).filter(|s| ball.visible(**s)) {
                    let radius = 0.10 * who.body.head * ball.scale;
                    self.canvas.ellipse(
                        ball.point(*s),
                        radius,
                        radius,
                        who.hair.shade(1.0 + 0.15 * s.x),
                        1.0,
                        Some(tag),
                    );
                }
            }
        }
    }

    /// Strands: lighter and darker arcs from the crown.
    fn gloss(&mut self, ball: &Ball, pole: V3) {
        if !self.near {
            return;
        }
        let width = 0.08 * self.who.body.head * ball.scale;
        for (i, cut) in [0.35f32, 0.62, 0.85].iter().enumerate() {
            let rim = circle(pole, *cut);
            let shown: Vec<V2> = run(&rim, |s| ball.visible(s)).iter().map(|s| ball.point(*s)).collect();
            if let Some(path) = open_path(&shown) {
                let color = if i == 1 {
                    self.who.hair.shade(1.6).mix(Rgb(1.0, 1.0, 1.0), 0.10)
                } else {
                    self.who.hair.shade(0.7)
                };
                self.canvas.stroke(&path, color, 0.16, width, None);
            }
        }
    }

    fn bun(&mut self) {
        let at = self.view.see(self.head_point(v3(0.0, 0.42, -0.40)));
        let radius = 0.19 * self.who.body.head * at.scale;
        self.canvas.ellipse(
            at.at,
            radius,
            radius,
            self.who.hair.shade(0.85),
            1.0,
            Some(Tag(Part::Hair, Segment::Head)),
        );
        self.canvas.ellipse(
            at.at - v2(0.3, 0.3) * radius,
            radius * 0.5,
            radius * 0.4,
            self.who.hair.shade(1.35),
            0.5,
            None,
        );
    }

    /// Hair that hangs behind: drawn before the trunk from the front, after the head from behind.
    pub fn back_hair(&mut self) {
        let who = self.who;
        let tag = Tag(Part::Hair, Segment::Head);
        let size = who.body.head;
        let h = self.height();
        let fall = |f: &Self, below: f32, behind: f32| {
            // Hair hangs from the head straight down, behind the neck and over the back.
            f.head_point(v3(0.0, 0.35, -0.22 - behind)) + v3(0.0, -below, 0.0)
        };
        match who.attributes.hair {
            Hair::Bob | Hair::Long => {
                let turn = self.bones.head_turn;
                let ring = |f: &Self, below: f32, half: f32, deep: f32| Ring {
                    center: fall(f, below, -0.12 + 0.10 * (below / who.hair_length)),
                    side: turn.apply(v3(half * size, 0.0, 0.0)),
                    front: turn.apply(v3(0.0, 0.0, deep * size)),
                };
                let l = who.hair_length;
                let rings = [
                    ring(self, -0.014 * h, 0.12, 0.10),
                    ring(self, 0.002 * h, 0.25, 0.21),
                    ring(self, 0.03 * h, 0.34, 0.29),
                    ring(self, 0.45 * l, 0.355, 0.27),
                    ring(self, 0.7 * l, 0.36, 0.23),
                    ring(self, 0.88 * l, 0.31, 0.19),
                    ring(self, l, 0.17, 0.11),
                ];
                self.draw_loft(&rings, &Fabric::plain(who.hair.shade(0.92)), tag);
                for angle in [-0.9f32, -0.45, 0.0, 0.5, 0.95] {
                    let points: Vec<(V2, bool)> = rings.iter().map(|r| self.surface(r, PI + angle)).collect();
                    if self.near && points.iter().all(|p| p.1) {
                        let line: Vec<V2> = points.iter().map(|p| p.0).collect();
                        let color = if angle.abs() < 0.6 { who.hair.shade(1.4) } else { who.hair.shade(0.6) };
                        self.canvas.line(&line, color, 0.35, 0.012 * self.view.scale, None);
                    }
                }
            }
            Hair::Ponytail => {
                let root = self.head_point(v3(0.0, 0.22, -0.42));
                let swing = self.bones.trunk_turn.apply(v3(0.0, 0.0, -0.05));
                let l = who.hair_length;
                let beads = [
                    (root, 0.07 * size),
                    (root + swing + v3(0.0, -0.12 * l, 0.0), 0.15 * size),
                    (root + swing * 1.1 + v3(0.0, -0.55 * l, 0.0), 0.14 * size),
                    (root + swing * 0.5 + v3(0.0, -l, 0.0), 0.04 * size),
                ];
                self.limb(&beads, (Cap::Round, Cap::Round), &Fabric::plain(who.hair), tag);
            }
            _ => {}
        }
    }

    /// Long hair in front of the ears.
    fn locks(&mut self) {
        let who = self.who;
        if !matches!(who.attributes.hair, Hair::Bob | Hair::Long) {
            return;
        }
        let size = who.body.head;
        let length =
            if who.attributes.hair == Hair::Bob { who.hair_length } else { who.hair_length.min(0.42) };
        for out in [-1.0f32, 1.0] {
            if self.turned_to_camera(v3(out, 0.0, 0.25)) < -0.45 {
                continue;
            }
            let top = self.head_point(v3(0.26 * out, 0.36, 0.10));
            let side = self.head_point(v3(0.365 * out, 0.02, 0.02));
            let end = self.head_point(v3(0.37 * out, 0.5, -0.02)) + v3(0.0, -length, 0.0);
            let beads = [
                (top, 0.10 * size),
                (side, 0.115 * size),
                (side.lerp(end, 0.55), 0.12 * size),
                (end, 0.05 * size),
            ];
            self.limb(
                &beads,
                (Cap::Round, Cap::Round),
                &Fabric::plain(who.hair),
                Tag(Part::Hair, Segment::Head),
            );
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

    pub fn hat(&mut self) {
        let who = self.who;
        let tag = Tag(Part::Hat, Segment::Head);
        let grow = match who.attributes.hair {
            Hair::Bald | Hair::Buzz => 1.08,
            _ => 1.13,
        };
        let ball = self.ball(SKULL, grow);
        let size = who.body.head;
        let (pole, cut) = match who.attributes.hat {
            Hat::None => return,
            Hat::Cap => (v3(0.0, 0.985, -0.17), 0.30),
            Hat::Beanie => (v3(0.0, 0.90, -0.44), 0.14),
            Hat::SunHat => (v3(0.0, 1.0, -0.05), 0.34),
        };
        let pole = pole.unit();
        let brim_first = self.head_facing() < 0.15;
        if who.attributes.hat == Hat::SunHat {
            let ring = Ring {
                center: ball.center + self.bones.head_turn.apply(v3(0.0, 0.14 * size, 0.0)),
                side: self.bones.head_turn.apply(v3(0.62 * size, 0.0, 0.0)),
                front: self.bones.head_turn.apply(v3(0.0, 0.0, 0.68 * size)),
            };
            let points: Vec<V2> = (0..24)
                .map(|i| {
                    let (s, c) = (2.0 * PI * i as f32 / 24.0).sin_cos();
                    self.view
                        .see(
                            ring.center
                                + ring.side * s
                                + ring.front * c
                                + v3(0.0, -0.06 * size * c.abs(), 0.0),
                        )
                        .at
                })
                .collect();
            if let Some(path) = polygon(&points) {
                self.canvas.stroke(&path, who.hat.shade(0.7), 1.0, 0.03 * self.view.scale, Some(tag));
                self.canvas.fill(&path, who.hat.shade(0.85), 1.0, Some(tag));
            }
        }
        if who.attributes.hat == Hat::Cap && brim_first {
            self.brim(&ball, tag);
        }
        if let Some(path) = ball.cap(pole, cut) {
            let radius = ball.axes[0].length() * ball.scale;
            let light = v2(self.canvas.light.x, -self.canvas.light.y).unit();
            let frame = Frame {
                from: ball.at - light.perp() * radius,
                to: ball.at + light.perp() * radius,
                half_width: radius,
                scale: ball.scale,
            };
            self.canvas.cloth(&path, &frame, &Fabric::plain(who.hat), tag);
        }
        let rim: Vec<V2> =
            run(&circle(pole, cut + 0.08), |s| ball.visible(s)).iter().map(|s| ball.point(*s)).collect();
        if let Some(path) = open_path(&rim) {
            let width = if who.attributes.hat == Hat::Cap { 0.05 } else { 0.14 };
            self.canvas.stroke(&path, who.hat.shade(0.68), 0.9, width * size * ball.scale, None);
        }
        if who.attributes.hat == Hat::Cap && !brim_first {
            self.brim(&ball, tag);
        }
    }

    fn brim(&mut self, ball: &Ball, tag: Tag) {
        let edge: [V3; 5] = [
            v3(0.36, 0.225, 0.20),
            v3(0.27, 0.20, 0.56),
            v3(0.0, 0.19, 0.66),
            v3(-0.27, 0.20, 0.56),
            v3(-0.36, 0.225, 0.20),
        ];
        let outer: Vec<V2> = edge.iter().map(|p| self.view.see(self.head_point(*p)).at).collect();
        let inner: Vec<V2> = [v3(-0.25, 0.27, 0.30), v3(0.0, 0.28, 0.38), v3(0.25, 0.27, 0.30)]
            .iter()
            .map(|p| self.view.see(self.head_point(*p)).at)
            .collect();
        if let Some(path) = super::canvas::outline(&outer, &inner) {
            self.canvas.fill(&path, self.who.hat.shade(0.62), 1.0, Some(tag));
            self.canvas.stroke(
                &path,
                self.who.hat.shade(0.62),
                1.0,
                0.05 * self.who.body.head * ball.scale,
                Some(tag),
            );
        }
        // The brim's shadow on the forehead.
        let shadow: Vec<(V2, f32)> =
            outer.iter().map(|p| (*p + v2(0.0, 0.045 * self.who.body.head * ball.scale), 0.6)).collect();
        if self.near && self.head_facing() > 0.3 {
            if let Some(path) = tube(&shadow[1..4], Cap::Round, Cap::Round) {
                self.canvas.fill(&path, BLACK, 0.35, None);
            }
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
