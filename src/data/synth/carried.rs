//! What people carry: backpack, bags, umbrella, phone.

use super::canvas::{BLACK, Cap, Fabric, Tag, open_path, polygon, slab};
use super::figure::{Figure, Ring};
use super::geometry::{V2, V3, v2, v3};
use super::labels::{Part, Segment};
use std::f32::consts::PI;

const BAG: Tag = Tag(Part::Carried, Segment::Carried);

impl Figure<'_> {
    pub fn backpack(&mut self) {
        let who = self.who;
        let h = self.height();
        let size = who.pack_size;
        let turn = self.bones.trunk_turn;
        let (half, deep) = (0.088 * h * size.max(0.85), 0.050 * h * size);
        let ring = |f: &Self, level: f32, wide: f32, thick: f32| {
            let body = f.trunk_ring(level, 0.0);
            Ring {
                center: body.center - turn.apply(v3(0.0, 0.0, body.front.length() + 0.9 * deep)),
                side: turn.apply(v3(half * wide, 0.0, 0.0)),
                front: turn.apply(v3(0.0, 0.0, deep * thick)),
            }
        };
        let low = 0.98 - 0.72 * size;
        let at = |t: f32| low + (0.98 - low) * t;
        let rings = [
            ring(self, at(1.0), 0.55, 0.55),
            ring(self, at(0.92), 0.86, 0.85),
            ring(self, at(0.6), 1.0, 1.0),
            ring(self, at(0.2), 1.0, 1.1),
            ring(self, at(0.0), 0.88, 0.9),
        ];
        self.draw_loft(&rings, &Fabric::plain(who.bag), BAG);
        let color = who.bag;
        let px = self.view.scale;
        let pocket = [ring(self, at(0.46), 1.0, 1.12), ring(self, at(0.08), 0.95, 1.12)];
        if let Some(path) = self.patch(&pocket, |_| (PI - 0.85, PI + 0.85)) {
            self.canvas.fill(&path, color.shade(0.8), 1.0, None);
            self.canvas.stroke(&path, color.shade(0.5), 0.8, 0.010 * px, None);
        }
        let zip: Vec<(V2, bool)> =
            [-1.2f32, -0.6, 0.0, 0.6, 1.2].iter().map(|a| self.surface(&rings[1], PI + a)).collect();
        if zip.iter().all(|p| p.1) {
            let line: Vec<V2> = zip.iter().map(|p| p.0).collect();
            self.canvas.line(&line, color.shade(0.45), 0.8, 0.012 * px, None);
        }
    }

    pub fn shoulder_bag(&mut self) {
        let who = self.who;
        let h = self.height();
        let out = if who.carry_side == 0 { 1.0f32 } else { -1.0 };
        let turn = self.bones.pelvis_turn;
        let hip = self.trunk_ring(0.05, self.upper_pad()).side.length();
        let at =
            |f: &Self, level: f32| f.spine(level) + turn.apply(v3(out * (hip + 0.024 * h), 0.0, 0.02 * h));
        let ring = |f: &Self, level: f32, wide: f32| Ring {
            center: at(f, level),
            side: turn.apply(v3(0.024 * h * wide, 0.0, 0.0)),
            front: turn.apply(v3(0.0, 0.0, 0.072 * h * wide)),
        };
        let rings =
            [ring(self, 0.14, 0.92), ring(self, 0.08, 1.0), ring(self, -0.20, 1.0), ring(self, -0.24, 0.9)];
        self.draw_loft(&rings, &Fabric::plain(who.bag), BAG);
        let flap = [ring(self, 0.14, 0.95), ring(self, -0.02, 1.03)];
        let facing = PI * 0.5 * out;
        if let Some(path) = self.patch(&flap, |_| (facing - 1.3, facing + 1.3)) {
            self.canvas.fill(&path, who.bag.shade(0.78), 1.0, None);
        }
    }

    /// Things in a hand, drawn before the hand closes over them.
    pub fn held(&mut self, side: usize) {
        let who = self.who;
        let a = &who.attributes;
        if self.pose.phone == Some(side) {
            self.phone(side);
        } else if a.handbag && side == who.carry_side {
            self.handbag(side);
        } else if a.umbrella && side == who.carry_side && !self.pose.umbrella_up {
            self.closed_umbrella(side);
        }
    }

    fn phone(&mut self, side: usize) {
        let b = self.bones;
        let (wrist, hand) = (self.view.see(b.wrist[side]), self.view.see(b.hand[side]));
        let along = (hand.at - wrist.at).unit();
        let px = self.view.scale;
        if let Some(path) = slab(hand.at + along * (0.02 * px), along, 0.038 * px, 0.075 * px, 1.0) {
            self.canvas.fill(&path, BLACK.shade(4.0), 1.0, Some(BAG));
        }
    }

    fn handbag(&mut self, side: usize) {
        let who = self.who;
        let h = self.height();
        let hand = self.bones.wrist[side].lerp(self.bones.hand[side], 0.6);
        let turn = self.bones.pelvis_turn;
        let ring = |below: f32, wide: f32| Ring {
            center: hand + v3(0.0, -below * h, 0.0),
            side: turn.apply(v3(0.026 * h * wide, 0.0, 0.0)),
            front: turn.apply(v3(0.0, 0.0, 0.085 * h * wide)),
        };
        let rings = [ring(0.075, 0.82), ring(0.10, 0.9), ring(0.19, 1.0), ring(0.205, 0.95)];
        let (from, to) = (self.surface(&rings[0], 0.4).0, self.surface(&rings[0], PI - 0.4).0);
        let top = self.view.see(hand).at;
        for p in [from, to] {
            let bend = v2(p.x, 0.6 * top.y + 0.4 * p.y);
            self.canvas.line(&[top, bend, p], who.bag.shade(0.6), 1.0, 0.016 * self.view.scale, Some(BAG));
        }
        self.draw_loft(&rings, &Fabric::plain(who.bag), BAG);
        let clasp = self.surface(&rings[1], if side == 0 { PI * 0.5 } else { -PI * 0.5 });
        if clasp.1 && self.near {
            let r = 0.012 * self.view.scale;
            self.canvas.ellipse(clasp.0, r, r, super::canvas::Rgb(0.85, 0.75, 0.45), 0.9, None);
        }
    }

    fn closed_umbrella(&mut self, side: usize) {
        let h = self.height();
        let hand = self.bones.wrist[side].lerp(self.bones.hand[side], 0.7);
        let tip = hand + self.bones.pelvis_turn.apply(v3(0.0, -0.36 * h, 0.10 * h));
        let grip = hand + v3(0.0, 0.04 * h, -0.01 * h);
        let fabric = Fabric::plain(self.who.bag);
        self.limb(
            &[(grip, 0.008 * h), (hand, 0.008 * h)],
            (Cap::Round, Cap::Flat),
            &Fabric::plain(BLACK.shade(5.0)),
            BAG,
        );
        let beads = [(hand.lerp(tip, 0.08), 0.018 * h), (hand.lerp(tip, 0.4), 0.020 * h), (tip, 0.006 * h)];
        self.limb(&beads, (Cap::Round, Cap::Round), &fabric, BAG);
    }

    /// The canopy and shaft of an umbrella held up, over everything else.
    pub fn open_umbrella(&mut self) {
        if !self.pose.umbrella_up {
            return;
        }
        let who = self.who;
        let h = self.height();
        let hand = self.bones.wrist[who.carry_side].lerp(self.bones.hand[who.carry_side], 0.7);
        let crown = self.bones.head.y + 0.5 * who.body.head;
        let top = v3(0.6 * hand.x, crown + 0.20 * h, 0.6 * hand.z);
        let px = self.view.scale;
        let shaft = [self.view.see(hand).at, self.view.see(top).at];
        self.canvas.line(&shaft, BLACK.shade(6.0), 1.0, 0.014 * px, Some(BAG));
        let radius = 0.30 * h;
        let rib = |i: usize| {
            let (s, c) = (2.0 * PI * i as f32 / 8.0).sin_cos();
            top + v3(radius * s, -0.15 * h, radius * c)
        };
        // Panels from the far side to the near one.
        let mut panels: Vec<usize> = (0..8).collect();
        let depth = |i: usize| self.view.turn(rib(i) + rib(i + 1)).z;
        panels.sort_by(|p, q| depth(*p).total_cmp(&depth(*q)));
        for i in panels {
            let see = |p: V3| self.view.see(p).at;
            let (a, b) = (rib(i), rib(i + 1));
            let bulge = |p: V3| top.lerp(p, 0.6) + v3(0.0, 0.035 * h, 0.0);
            let sag = a.lerp(b, 0.5) + v3(0.0, 0.02 * h, 0.0);
            let points = [see(top), see(bulge(a)), see(a), see(sag), see(b), see(bulge(b))];
            let normal = self.view.turn(v3(a.x + b.x - 2.0 * top.x, 0.5 * h, a.z + b.z - 2.0 * top.z)).unit();
            let light = 0.65 + 0.5 * normal.dot(self.view.light).max(0.0);
            let inside = if normal.z < 0.0 { 0.7 } else { 1.0 };
            if let Some(path) = polygon(&points) {
                self.canvas.fill(&path, who.bag.shade(light * inside), 1.0, Some(BAG));
            }
            if let Some(path) = open_path(&[see(top), see(bulge(a)), see(a)]) {
                self.canvas.stroke(&path, who.bag.shade(0.5), 0.5, 0.008 * px, None);
            }
        }
    }
}
