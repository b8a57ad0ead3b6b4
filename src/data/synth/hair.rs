//! Hair and hats.

use super::canvas::{BLACK, Cap, Fabric, Frame, Rgb, Tag, open_path, polygon, tube};
use super::figure::{Figure, Ring};
use super::geometry::{V2, V3, v2, v3};
use super::head::{Ball, SKULL, circle, run};
use super::identity::{Hair, Hat};
use super::labels::{Part, Segment};
use std::f32::consts::PI;

impl Figure<'_> {
    pub fn hair_cap(&mut self) {
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

    pub fn bun(&mut self) {
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
    pub fn locks(&mut self) {
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

    pub fn hat(&mut self) {
        let who = self.who;
        let tag = Tag(Part::Hat, Segment::Head);
        let grow = match who.attributes.hair {
            Hair::Bald | Hair::Buzz => 1.08,
            // Over the hair, not inside it.
            _ => (who.hair_volume + 0.03).max(1.13),
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
        if self.near
            && self.head_facing() > 0.3
            && let Some(path) = tube(&shadow[1..4], Cap::Round, Cap::Round)
        {
            self.canvas.fill(&path, BLACK, 0.35, None);
        }
    }
}
