//! The trunk: neck, upper garment, collars and prints, straps, scarf.

use super::canvas::{Cap, Fabric, Frame, Tag, middle, tube};
use super::figure::{Figure, Ring};
use super::geometry::{V2, v2, v3};
use super::identity::{Lower, Print, Upper};
use super::labels::{Part, Segment};
use super::pose::WAIST;
use std::f32::consts::PI;

impl Figure<'_> {
    pub fn trunk(&mut self) {
        let who = self.who;
        self.neck();
        let pad = self.upper_pad();
        let part = self.upper_part();
        let inner_pad = 0.004 * self.height();
        if self.outer() {
            let rings =
                [1.03, 0.98, 0.9, 0.76, 0.58, WAIST, 0.18, 0.0].map(|l| self.trunk_ring(l, inner_pad));
            self.draw_loft(&rings, &who.inner, Tag(Part::UpperClothes, Segment::Torso));
        }
        let rings = self.upper_rings(pad);
        let tag = Tag(part, Segment::Torso);
        self.draw_loft(&rings, &who.upper, tag);
        if self.outer() {
            self.front_opening(&rings);
        } else {
            self.neckline(&rings);
            if who.attributes.upper_print == Print::Logo {
                self.logo();
            }
        }
        self.folds(pad);
        self.belt_of_straps(pad);
        if who.attributes.scarf {
            self.scarf();
        }
    }

    /// Rings of the upper garment, top to bottom.
    fn upper_rings(&self, pad: f32) -> Vec<Ring> {
        let hem = if self.who.attributes.lower == Lower::Dress { -0.3 } else { self.who.upper_hem };
        let lowest = if hem < 0.0 { -hem } else { 0.0 };
        let mut rings: Vec<Ring> = [1.025, 0.985, 0.95, 0.89, 0.76, 0.58, WAIST, 0.18, 0.0]
            .iter()
            .filter(|level| **level >= lowest)
            .map(|level| self.trunk_ring(*level, if *level > 0.93 { 0.5 * pad } else { pad }))
            .collect();
        if hem > 0.0 {
            let steps = if hem > 0.3 { 3 } else { 1 };
            let hips = rings[rings.len() - 1];
            for step in 1..=steps {
                let t = step as f32 / steps as f32;
                let mut ring = self.leg_ring(0.5 * hem * t, 1.6 * pad + 0.012 * self.height() * t);
                // Cloth falls from the hips: it does not draw in below them.
                let (now, least) = (ring.side.length(), hips.side.length() * 0.97);
                ring.side = ring.side * (least.max(now) / now.max(1e-6));
                let (now, least) = (ring.front.length(), hips.front.length() * 0.97);
                ring.front = ring.front * (least.max(now) / now.max(1e-6));
                rings.push(ring);
            }
        }
        rings
    }

    fn neck(&mut self) {
        let h = self.height();
        let body = &self.who.body;
        let radius = h * (0.033 - 0.005 * body.feminine) * (0.6 + 0.4 * body.girth);
        let bottom = self.view.see(self.spine(0.95));
        let top = self
            .view
            .see(self.bones.head - self.bones.head_turn.apply(v3(0.0, 0.12 * body.head, 0.1 * body.head)));
        let points = [(top.at, radius * top.scale), (bottom.at, 1.15 * radius * bottom.scale)];
        let frame = Frame { from: top.at, to: bottom.at, half_width: radius * top.scale, scale: top.scale };
        if let Some(path) = tube(&points, Cap::Flat, Cap::Round) {
            let tag = Tag(Part::Face, Segment::Torso);
            self.canvas.cloth(&path, &frame, &Fabric::plain(self.who.skin.shade(0.86)), tag);
        }
    }

    /// Skin at the neck of a shirt, or the collar behind.
    fn neckline(&mut self, rings: &[Ring]) {
        let depth = if self.who.attributes.upper == Upper::TShirt { 0.875 } else { 0.92 };
        let deep = if self.who.body.feminine > 0.5 { depth - 0.035 } else { depth };
        let band = [1.03, 0.99, 0.5 * (0.99 + deep), deep].map(|level| self.trunk_ring(level, 0.004));
        let widths = [0.95, 0.62, 0.34, 0.05];
        if let Some(path) = self.patch(&band, |i| (-widths[i], widths[i])) {
            self.canvas.stroke(&path, self.who.upper.color.shade(0.6), 0.8, 0.014 * self.view.scale, None);
            self.canvas.fill(&path, self.who.skin.shade(0.93), 1.0, Some(Tag(Part::Face, Segment::Torso)));
        }
        if let Some(first) = rings.first() {
            let rim: Vec<V2> =
                [-1.2f32, -0.6, 0.0, 0.6, 1.2].iter().map(|a| self.surface(first, a + PI).0).collect();
            if self.facing() < 0.0 {
                self.canvas.line(&rim, self.who.upper.color.shade(0.6), 0.7, 0.014 * self.view.scale, None);
            }
        }
    }

    /// The front of a coat: the opening with the garment under it, lapels, or the closed seam with buttons.
    fn front_opening(&mut self, rings: &[Ring]) {
        let who = self.who;
        let n = rings.len() as f32;
        let color = who.upper.color;
        let px = self.view.scale;
        if who.attributes.open_front {
            let gap = |i: usize| {
                let t = i as f32 / n;
                (-0.20 - 0.34 * t, 0.20 + 0.34 * t)
            };
            // The garment under it ends at the hips; below, the opening shows what is worn there.
            let shown = rings.len().min(9);
            if let Some(path) = self.patch(&rings[..shown], gap) {
                self.canvas.stroke(&path, color.shade(0.45), 0.9, 0.018 * px, None);
                let frame = Frame {
                    from: self.view.see(rings[0].center).at,
                    to: self.view.see(rings[shown - 1].center).at,
                    half_width: 0.1 * px,
                    scale: px,
                };
                self.canvas.cloth(&path, &frame, &who.inner, Tag(Part::UpperClothes, Segment::Torso));
            }
            if rings.len() > shown + 1
                && let Some(path) = self.patch(&rings[shown - 1..], |i| gap(i + shown - 1))
            {
                let part = if who.attributes.lower == Lower::Skirt { Part::Skirt } else { Part::Pants };
                self.canvas.fill(&path, who.lower.color.shade(0.85), 1.0, Some(Tag(part, Segment::Torso)));
            }
        } else {
            let seam: Vec<(V2, bool)> = rings[1..].iter().map(|ring| self.surface(ring, 0.03)).collect();
            if seam.iter().all(|p| p.1) {
                let line: Vec<V2> = seam.iter().map(|p| p.0).collect();
                self.canvas.line(&line, color.shade(0.4), 0.9, 0.012 * px, None);
                if self.near && who.attributes.upper == Upper::Coat {
                    for p in &line[2..] {
                        self.canvas.ellipse(
                            *p + v2(0.02 * px, 0.0),
                            0.010 * px,
                            0.010 * px,
                            color.shade(0.3),
                            1.0,
                            None,
                        );
                    }
                }
            }
        }
        // Lapels or collar: two slanted patches beside the neck.
        let collar = [1.05, 1.0, 0.93].map(|level| self.trunk_ring(level, 0.012));
        let tag = Some(Tag(self.upper_part(), Segment::Torso));
        for side in [-1.0f32, 1.0] {
            let angles = [(0.5, 2.4), (0.28, 1.5), (0.2, 0.75)];
            if let Some(path) = self.patch(&collar, |i| (side * angles[i].0, side * angles[i].1)) {
                self.canvas.fill(&path, color.shade(0.72), 1.0, tag);
            }
        }
    }

    fn logo(&mut self) {
        let who = self.who;
        let top = self.trunk_ring(0.80, self.upper_pad());
        let bottom = self.trunk_ring(0.64, self.upper_pad());
        let rings = [top, bottom];
        let tag = None;
        let half = 0.34;
        if !self.surface(&top, 0.0).1 {
            return;
        }
        match who.logo_shape {
            0 => {
                if let Some(path) = self.patch(&rings, |_| (-half, half)) {
                    self.canvas.fill(&path, who.logo, 1.0, tag);
                }
            }
            1 => {
                let (a, b) = (self.surface(&top, 0.0).0, self.surface(&bottom, 0.0).0);
                let radius = 0.5 * (b - a).length();
                let width = (self.surface(&top, half).0 - self.surface(&top, -half).0).length() * 0.5;
                self.canvas.ellipse(middle(a, b), width.min(radius), radius, who.logo, 1.0, tag);
            }
            2 => {
                if let Some(path) = self.patch(&rings, |i| if i == 0 { (-0.06, 0.06) } else { (-half, half) })
                {
                    self.canvas.fill(&path, who.logo, 1.0, tag);
                }
            }
            _ => {
                for (from, to) in [(0.82, 0.78), (0.745, 0.705), (0.67, 0.63)] {
                    let rings = [from, to].map(|level| self.trunk_ring(level, self.upper_pad()));
                    if let Some(path) = self.patch(&rings, |_| (-0.42, 0.42)) {
                        self.canvas.fill(&path, who.logo, 0.95, tag);
                    }
                }
            }
        }
    }

    /// Creases where cloth gathers: at the waist and under the arms.
    fn folds(&mut self, pad: f32) {
        if !self.near {
            return;
        }
        let color = self.who.upper.color;
        let px = self.view.scale;
        for (level, angle, drop) in [
            (0.44f32, 0.75f32, 0.05f32),
            (0.30, -0.8, -0.06),
            (0.86, 0.95, 0.10),
            (0.86, -0.95, 0.10),
            (0.2, 0.3, 0.04),
        ] {
            for turned in [angle, angle + PI] {
                let at = |t: f32| self.surface(&self.trunk_ring(level - drop * t, pad), turned - 0.45 * t);
                let points = [at(0.0), at(0.5), at(1.0)];
                if points.iter().all(|p| p.1) {
                    let line = points.map(|p| p.0);
                    self.canvas.line(&line, color.shade(0.45), 0.32, 0.016 * px, None);
                    let lit = line.map(|p| p + v2(0.0, 0.014 * px));
                    self.canvas.line(&lit, color.shade(1.35), 0.22, 0.010 * px, None);
                }
            }
        }
    }

    /// Straps over the trunk: both of a backpack, the one of a shoulder bag.
    fn belt_of_straps(&mut self, pad: f32) {
        let a = &self.who.attributes;
        let color = self.who.bag.shade(0.8);
        let tag = Some(Tag(Part::Carried, Segment::Torso));
        if a.backpack {
            let rings = [1.0, 0.93, 0.82, 0.7, 0.6].map(|level| self.trunk_ring(level, pad + 0.006));
            for side in [-1.0f32, 1.0] {
                let angles = [(0.75, 1.25), (0.55, 0.82), (0.55, 0.78), (0.72, 0.95), (1.05, 1.3)];
                if let Some(path) = self.patch(&rings, |i| (side * angles[i].0, side * angles[i].1)) {
                    self.canvas.fill(&path, color, 1.0, tag);
                }
            }
        }
        if a.shoulder_bag {
            let side = if self.who.carry_side == 0 { 1.0f32 } else { -1.0 };
            let rings = [1.0, 0.85, 0.65, 0.45, 0.25, 0.05].map(|level| self.trunk_ring(level, pad + 0.005));
            for back in [false, true] {
                let angle = |i: usize| {
                    let across = side * (-1.0 + 2.2 * i as f32 / 5.0);
                    let angle = if back { PI - across } else { across };
                    (angle - 0.09, angle + 0.09)
                };
                if let Some(path) = self.patch(&rings, angle) {
                    self.canvas.fill(&path, color, 1.0, tag);
                }
            }
        }
    }

    fn scarf(&mut self) {
        let color = self.who.scarf;
        let tag = Tag(Part::Scarf, Segment::Torso);
        let pad = 0.025;
        let rings = [1.10, 1.04, 0.99, 0.96]
            .map(|level| self.trunk_ring(level, if level < 0.98 { 0.0 } else { pad }));
        self.draw_loft(&rings, &Fabric::plain(color), tag);
        let tail = [0.98, 0.85, 0.70, 0.60].map(|level| self.trunk_ring(level, self.upper_pad() + 0.01));
        if let Some(path) = self.patch(&tail, |_| (0.05, 0.42)) {
            self.canvas.fill(&path, color.shade(0.85), 1.0, Some(tag));
        }
    }
}
