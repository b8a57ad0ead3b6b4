//! A dressed, posed person on a canvas: the order of the layers, the trunk, and shapes wrapped around it.
//! `head`, `limbs` and `carried` draw the rest.

use super::canvas::{BLACK, Canvas, Fabric, Frame, Rgb, Tag, Weave, middle, outline, polygon};
use super::geometry::{V2, V3, View, v2, v3};
use super::identity::{Hair, Identity, Lower, Upper};
use super::labels::{Part, Segment};
use super::pose::{Pose, Skeleton, WAIST};
use std::f32::consts::{FRAC_PI_2, PI};
use tiny_skia::{Path, PathBuilder};

pub struct Figure<'a> {
    pub who: &'a Identity,
    pub pose: &'a Pose,
    pub bones: &'a Skeleton,
    pub view: &'a View,
    pub canvas: &'a mut Canvas,
    /// Draw what only shows from near: face, folds, seams.
    pub near: bool,
}

/// An ellipse around an axis of the body, in the person frame.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    pub center: V3,
    pub side: V3,
    pub front: V3,
}

#[derive(Clone, Copy)]
enum Layer {
    Arm(usize),
    Thigh(usize),
    BackHair,
    Hat,
    Backpack,
    ShoulderBag,
}

/// Outline of the trunk as fractions of the height, masculine and feminine: (level from the hip joints, 0, to the
/// base of the neck, 1; half width; half depth; how far the middle lies forward).
const TRUNK: [(f32, [f32; 2], [f32; 2], f32); 10] = [
    (-0.17, [0.086, 0.091], [0.058, 0.062], -0.004),
    (0.00, [0.093, 0.099], [0.063, 0.068], -0.007),
    (0.18, [0.089, 0.091], [0.059, 0.059], 0.000),
    (WAIST, [0.083, 0.073], [0.055, 0.050], 0.003),
    (0.58, [0.091, 0.079], [0.062, 0.057], 0.004),
    (0.76, [0.100, 0.086], [0.066, 0.070], 0.004),
    (0.89, [0.106, 0.093], [0.058, 0.056], 0.000),
    (0.955, [0.095, 0.082], [0.047, 0.044], -0.004),
    (1.005, [0.060, 0.052], [0.039, 0.035], -0.004),
    (1.06, [0.037, 0.032], [0.036, 0.031], -0.002),
];

/// A shape lofted through rings: outline, axis, and its points for decoration.
pub struct Loft {
    pub path: Path,
    pub frame: Frame,
}

impl Figure<'_> {
    pub fn draw(mut self) {
        let facing = self.facing();
        let a = &self.who.attributes;
        let mut layers = Vec::with_capacity(8);
        for side in 0..2 {
            let depth = |p: V3| self.view.see(p).depth;
            let b = self.bones;
            let trunk = depth(b.waist.lerp(b.neck, 0.6));
            let arm =
                0.25 * depth(b.shoulder[side]) + 0.4 * depth(b.elbow[side]) + 0.35 * depth(b.wrist[side]);
            layers.push((arm - trunk + 0.02, Layer::Arm(side)));
            // The thigh of somebody who sits facing the camera covers the trunk.
            let thigh = depth(b.knee[side]) - depth(b.hip[side]);
            if thigh > 0.22 {
                layers.push((0.5 * thigh - 0.09, Layer::Thigh(side)));
            }
        }
        if matches!(a.hair, Hair::Bob | Hair::Long | Hair::Ponytail | Hair::Bun) {
            layers.push((-0.25 * facing + 0.01, Layer::BackHair));
        }
        // Over hair that falls behind, under an arm raised before the face.
        layers.push(((-0.25 * facing).max(0.0) + 0.011, Layer::Hat));
        if a.backpack {
            layers.push((-0.22 * facing - 0.005, Layer::Backpack));
        }
        if a.shoulder_bag {
            let side = if self.who.carry_side == 0 { 1.0 } else { -1.0 };
            layers.push((self.view.turn(v3(side * 0.2, 0.0, 0.03)).z, Layer::ShoulderBag));
        }
        layers.sort_by(|p, q| p.0.total_cmp(&q.0));
        for (_, layer) in layers.iter().filter(|layer| layer.0 < 0.0) {
            self.layer(*layer);
        }
        self.pelvis_and_legs();
        self.trunk();
        self.head();
        for (_, layer) in layers.iter().filter(|layer| layer.0 >= 0.0) {
            self.layer(*layer);
        }
        self.open_umbrella();
    }

    fn layer(&mut self, layer: Layer) {
        match layer {
            Layer::Arm(side) => self.arm(side),
            Layer::Thigh(side) => self.leg(side),
            Layer::BackHair => self.back_hair(),
            Layer::Hat => self.hat(),
            Layer::Backpack => self.backpack(),
            Layer::ShoulderBag => self.shoulder_bag(),
        }
    }

    /// 1 when the chest faces the camera, -1 when the back does.
    pub fn facing(&self) -> f32 {
        self.view.turn(self.bones.trunk_turn.apply(v3(0.0, 0.0, 1.0))).z
    }

    pub fn height(&self) -> f32 {
        self.who.body.height
    }

    /// A point on the axis of the trunk, from the hip joints (0) to the base of the neck (1).
    pub fn spine(&self, level: f32) -> V3 {
        let b = self.bones;
        if level < WAIST {
            b.pelvis + (b.waist - b.pelvis) * (level / WAIST)
        } else {
            b.waist + (b.neck - b.waist) * ((level - WAIST) / (1.0 - WAIST))
        }
    }

    /// The trunk's ring at a level, widened by `pad` metres.
    pub fn trunk_ring(&self, level: f32, pad: f32) -> Ring {
        let body = &self.who.body;
        let next = TRUNK.iter().position(|row| row.0 >= level).unwrap_or(TRUNK.len() - 1).max(1);
        let (low, high) = (&TRUNK[next - 1], &TRUNK[next]);
        let t = ((level - low.0) / (high.0 - low.0)).clamp(0.0, 1.0);
        let at = |p: f32, q: f32| p + (q - p) * t;
        let sexed = |v: &[f32; 2]| v[0] + (v[1] - v[0]) * body.feminine;
        let width = at(sexed(&low.1), sexed(&high.1));
        let depth = at(sexed(&low.2), sexed(&high.2));
        // Neck and shoulders follow the frame of the body more than its weight.
        let girth = 1.0 + (body.girth - 1.0) * (1.0 - 0.6 * ((level - 0.6) / 0.4).clamp(0.0, 1.0));
        let belly = body.belly * (1.0 - ((level - 0.28) / 0.36).powi(2)).max(0.0);
        let turn = if level < 0.5 * WAIST { &self.bones.pelvis_turn } else { &self.bones.trunk_turn };
        let h = body.height;
        let forward = at(low.3, high.3) * h + 0.8 * belly;
        Ring {
            center: self.spine(level) + turn.apply(v3(0.0, 0.0, forward)),
            side: turn.apply(v3(width * girth * h + pad, 0.0, 0.0)),
            front: turn.apply(v3(0.0, 0.0, depth * girth * h + 0.6 * belly + pad)),
        }
    }

    /// A ring around both legs, `level` 0 at the hips, 0.5 at the knees, 1 at the ankles, for skirts and coats.
    pub fn leg_ring(&self, level: f32, pad: f32) -> Ring {
        let b = self.bones;
        let at = |side: usize| {
            if level < 0.5 {
                b.hip[side].lerp(b.knee[side], 2.0 * level)
            } else {
                b.knee[side].lerp(b.ankle[side], 2.0 * level - 1.0)
            }
        };
        let (left, right) = (at(0), at(1));
        let apart = (left - right) * 0.5;
        let h = self.height();
        let radius = h * self.who.body.girth * (0.052 - 0.026 * level.min(0.8));
        let side = b.pelvis_turn.apply(v3(1.0, 0.0, 0.0));
        let front = b.pelvis_turn.apply(v3(0.0, 0.0, 1.0));
        Ring {
            center: left.lerp(right, 0.5),
            side: side * (apart.dot(side).abs() + radius + pad),
            front: front * (0.8 * apart.dot(front).abs() + radius + 0.7 * pad),
        }
    }

    /// Half the width of a ring in the picture along the unit vector `n`, pixels.
    fn extent(&self, ring: &Ring, n: V2) -> f32 {
        let project = |v: V3| {
            let q = self.view.turn(v);
            q.x * n.x - q.y * n.y
        };
        project(ring.side).hypot(project(ring.front)) * self.view.see(ring.center).scale
    }

    /// The silhouette of rings from top to bottom; the lower edge sags as a hem seen from above does.
    pub fn loft(&self, rings: &[Ring]) -> Option<Loft> {
        let centers: Vec<V2> = rings.iter().map(|ring| self.view.see(ring.center).at).collect();
        let last = centers.len().checked_sub(1)?;
        let (mut left, mut right) = (Vec::with_capacity(last + 1), Vec::with_capacity(last + 2));
        let mut half_width = 0.5f32;
        for (i, ring) in rings.iter().enumerate() {
            let along = (centers[(i + 1).min(last)] - centers[i.saturating_sub(1)]).unit();
            let across = along.perp();
            let half = self.extent(ring, across);
            half_width = half_width.max(half);
            left.push(centers[i] + across * half);
            right.push(centers[i] - across * half);
        }
        let down = (centers[last] - centers[last.saturating_sub(1)]).unit();
        let sag = self.extent(&rings[last], down) * 0.8;
        let (a, b) = (left[last], right[last]);
        left.push(a.lerp(b, 0.2) + down * (0.7 * sag));
        left.push(middle(a, b) + down * sag);
        left.push(a.lerp(b, 0.8) + down * (0.7 * sag));
        right.reverse();
        let path = outline(&left, &right)?;
        let scale = self.view.see(rings[0].center).scale;
        Some(Loft { path, frame: Frame { from: centers[0], to: centers[last], half_width, scale } })
    }

    pub fn draw_loft(&mut self, rings: &[Ring], fabric: &Fabric, tag: Tag) {
        if let Some(loft) = self.loft(rings) {
            self.edge(&loft.path, fabric.color);
            self.canvas.cloth(&loft.path, &loft.frame, fabric, tag);
        }
    }

    /// A thin dark rim that sets a shape off from one of the same colour behind it.
    pub fn edge(&mut self, path: &Path, color: Rgb) {
        if self.near {
            let width = 0.012 * self.view.scale;
            self.canvas.stroke(path, color.shade(0.35), 0.5, width.max(0.6), None);
        }
    }

    /// The point of a ring at `angle` from the front (positive to the person's left), and whether it faces the
    /// camera; one that does not is moved to the silhouette.
    pub fn surface(&self, ring: &Ring, angle: f32) -> (V2, bool) {
        let (side, front) = (self.view.turn(ring.side), self.view.turn(ring.front));
        let towards = (side.z / side.dot(side).max(1e-9)).atan2(front.z / front.dot(front).max(1e-9));
        let mut off = (angle - towards + PI).rem_euclid(2.0 * PI) - PI;
        let visible = off.abs() < FRAC_PI_2;
        off = off.clamp(-FRAC_PI_2, FRAC_PI_2);
        let (s, c) = (towards + off).sin_cos();
        (self.view.see(ring.center + ring.side * s + ring.front * c).at, visible)
    }

    /// The visible part of a band on the trunk between two angles, rings from top to bottom.
    pub fn patch(&self, rings: &[Ring], angles: impl Fn(usize) -> (f32, f32)) -> Option<Path> {
        let (mut left, mut right) = (Vec::with_capacity(rings.len()), Vec::with_capacity(rings.len()));
        let mut any = false;
        for (i, ring) in rings.iter().enumerate() {
            let (from, to) = angles(i);
            let (p, seen_p) = self.surface(ring, from);
            let (q, seen_q) = self.surface(ring, to);
            any |= seen_p || seen_q;
            left.push(p);
            right.push(q);
        }
        right.reverse();
        left.extend(right);
        if any { polygon(&left) } else { None }
    }

    /// The label of what covers the trunk.
    pub fn upper_part(&self) -> Part {
        match (self.who.attributes.upper, self.who.attributes.lower) {
            (_, Lower::Dress) => Part::Dress,
            (Upper::Coat | Upper::Jacket | Upper::Vest, _) => Part::Coat,
            _ => Part::UpperClothes,
        }
    }

    pub fn outer(&self) -> bool {
        matches!(self.who.attributes.upper, Upper::Coat | Upper::Jacket | Upper::Vest)
    }

    /// How far the upper garment stands off the body, metres.
    pub fn upper_pad(&self) -> f32 {
        let outer = if self.outer() { 0.011 } else { 0.0 };
        self.height() * (0.002 + 0.007 * self.who.looseness + outer)
    }

    fn pelvis_and_legs(&mut self) {
        let who = self.who;
        let h = self.height();
        let skirt = matches!(who.attributes.lower, Lower::Skirt | Lower::Dress);
        let depth = |side: usize| {
            let b = self.bones;
            self.view.see(b.knee[side]).depth + self.view.see(b.ankle[side]).depth
        };
        let far = if depth(0) < depth(1) { 0 } else { 1 };
        self.leg(far);
        if !skirt {
            let pad = 0.003 * h;
            let rings = [0.40, 0.2, 0.0, -0.1, -0.17].map(|level| self.trunk_ring(level, pad));
            self.draw_loft(&rings, &who.lower, Tag(Part::Pants, Segment::Torso));
        }
        self.leg(1 - far);
        if skirt {
            let flare = h * (0.006 + 0.035 * who.looseness);
            let mut rings: Vec<Ring> =
                [0.40, 0.2, 0.0].iter().map(|l| self.trunk_ring(*l, 0.005 * h)).collect();
            for step in 1..=4 {
                let t = step as f32 / 4.0;
                rings.push(self.leg_ring(who.lower_hem * t, flare * t + 0.008 * h));
            }
            let part = if who.attributes.lower == Lower::Dress { Part::Dress } else { Part::Skirt };
            let fabric = match who.lower.weave {
                // The upper half carries the split; the skirt of the dress is all second colour.
                Weave::Split(_) => Fabric::plain(who.lower.second),
                _ => who.lower,
            };
            self.draw_loft(&rings, &fabric, Tag(part, Segment::Torso));
            self.pleats(&rings[2..], fabric.color);
        }
    }

    fn pleats(&mut self, rings: &[Ring], color: Rgb) {
        if !self.near {
            return;
        }
        for angle in [-2.6f32, -1.5, -0.9, -0.3, 0.35, 1.0, 1.6, 2.5] {
            let points: Vec<(V2, bool)> = rings.iter().map(|ring| self.surface(ring, angle)).collect();
            if points.iter().all(|p| p.1) {
                let line: Vec<V2> = points.iter().map(|p| p.0).collect();
                self.canvas.line(&line, color.shade(0.5), 0.35, 0.010 * self.view.scale, None);
            }
        }
    }

    /// The shadow on the ground: soft, away from the light.
    ///
    /// `sun` from 0 (overcast) to 1 sets how dark it is.
    pub fn shadow(&mut self, sun: f32) {
        let b = self.bones;
        let light = self.view.light;
        let px = self.view.scale;
        let feet = middle(
            self.view.see(middle3(b.heel[0], b.toe[0])).at,
            self.view.see(middle3(b.heel[1], b.toe[1])).at,
        );
        let apart = (self.view.see(b.ankle[0]).at.x - self.view.see(b.ankle[1]).at.x).abs();
        let reach = 0.48 * px + 0.6 * apart;
        let center = feet + v2(-0.25 * light.x * reach, -0.01 * px);
        self.canvas.glow(center, reach, 0.13 * px + 0.08 * apart, BLACK, 0.25 + 0.35 * sun);
        // Contact shadows right under the soles.
        for side in 0..2 {
            let (heel, toe) = (self.view.see(b.heel[side]).at, self.view.see(b.toe[side]).at);
            if b.heel[side].y.min(b.toe[side].y) < 0.05 * self.height() {
                let under = middle(heel, toe) + v2(0.0, 0.025 * px);
                let half = 0.5 * (heel.x - toe.x).abs() + 0.05 * px;
                self.canvas.ellipse(under, half, 0.03 * px, BLACK, 0.35, None);
            }
        }
    }
}

fn middle3(a: V3, b: V3) -> V3 {
    a.lerp(b, 0.5)
}

/// A rounded rectangle with its corners cut by quadratic curves.
pub fn round_rect(x0: f32, y0: f32, x1: f32, y1: f32, radius: f32) -> Option<Path> {
    let r = radius.min(0.5 * (x1 - x0)).min(0.5 * (y1 - y0));
    let mut p = PathBuilder::new();
    p.move_to(x0 + r, y0);
    p.line_to(x1 - r, y0);
    p.quad_to(x1, y0, x1, y0 + r);
    p.line_to(x1, y1 - r);
    p.quad_to(x1, y1, x1 - r, y1);
    p.line_to(x0 + r, y1);
    p.quad_to(x0, y1, x0, y1 - r);
    p.line_to(x0, y0 + r);
    p.quad_to(x0, y0, x0 + r, y0);
    p.close();
    p.finish()
}
