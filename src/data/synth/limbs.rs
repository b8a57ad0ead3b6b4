//! Arms, hands, legs, shoes, and the clothes on them.

use super::canvas::{Cap, Fabric, Frame, Rgb, Tag, Weave, tube};
use super::figure::Figure;
use super::geometry::{V2, V3, v2, v3};
use super::identity::{Lower, Shoes, Upper};
use super::labels::{Part, Segment};

/// A centre and a radius in the person frame, metres.
type Bead = (V3, f32);

impl Figure<'_> {
    /// A limb through beads, with its shading.
    pub fn limb(&mut self, beads: &[Bead], ends: (Cap, Cap), fabric: &Fabric, tag: Tag) {
        let points = self.project(beads);
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let half_width = points.iter().map(|p| p.1).fold(0.5, f32::max);
        let frame = Frame { from: first.0, to: last.0, half_width, scale: self.view.scale };
        if let Some(path) = tube(&points, ends.0, ends.1) {
            self.edge(&path, fabric.color);
            self.canvas.cloth(&path, &frame, fabric, tag);
        }
    }

    /// Two bones of a limb that meet in a joint: both rims first, so that none is drawn across the joint.
    fn jointed(
        &mut self,
        upper: &[Bead],
        lower: &[Bead],
        ends: (Cap, Cap),
        fabric: &Fabric,
        tags: (Tag, Tag),
    ) {
        if self.near {
            for (beads, caps) in [(upper, (ends.0, Cap::Round)), (lower, (Cap::Round, ends.1))] {
                if let Some(path) = tube(&self.project(beads), caps.0, caps.1) {
                    self.edge(&path, fabric.color);
                }
            }
        }
        let near = std::mem::replace(&mut self.near, false);
        self.limb(upper, (ends.0, Cap::Round), fabric, tags.0);
        self.limb(lower, (Cap::Round, ends.1), fabric, tags.1);
        self.near = near;
    }

    fn project(&self, beads: &[Bead]) -> Vec<(V2, f32)> {
        let place = |(at, radius): &Bead| {
            let seen = self.view.see(*at);
            (seen.at, radius * seen.scale)
        };
        beads.iter().map(place).collect()
    }

    pub fn arm(&mut self, side: usize) {
        let who = self.who;
        let a = &who.attributes;
        let h = self.height();
        let b = self.bones;
        let (shoulder, elbow, wrist) = (b.shoulder[side], b.elbow[side], b.wrist[side]);
        let thin = (0.94 - 0.14 * who.body.feminine) * (0.35 + 0.65 * who.body.girth);
        let r = |k: f32| k * h * thin;
        let skin = Fabric::plain(who.skin);
        let part = Part::arm(side);
        let (upper_tag, fore_tag) = (Segment::upper_arm(side), Segment::forearm(side));
        // A little below the joint, so that the sleeve continues the slope of the shoulder.
        let top = shoulder.lerp(elbow, 0.07);
        let covered = a.long_sleeves;
        if !covered {
            let upper = [(top, r(0.0275)), (shoulder.lerp(elbow, 0.5), r(0.027)), (elbow, r(0.022))];
            let fore = [(elbow, r(0.022)), (elbow.lerp(wrist, 0.3), r(0.0235)), (wrist, r(0.0155))];
            let tags = (Tag(part, upper_tag), Tag(part, fore_tag));
            self.jointed(&upper, &fore, (Cap::Round, Cap::Round), &skin, tags);
        }
        self.held(side);
        let hand = b.hand[side];
        let palm = [(wrist, r(0.015)), (wrist.lerp(hand, 0.5), r(0.021)), (hand, r(0.012))];
        self.limb(&palm, (Cap::Round, Cap::Round), &skin, Tag(part, fore_tag));
        let cloth_part = self.upper_part();
        let pad = h * (0.003 + 0.010 * who.looseness) + if self.outer() { 0.005 * h } else { 0.0 };
        // On a vest the sleeves belong to what is worn under it.
        let (fabric, cloth_part) = match a.upper {
            Upper::Vest => (who.inner, Part::UpperClothes),
            _ => (sleeve_fabric(&who.upper), cloth_part),
        };
        if covered {
            let upper = [
                (top, r(0.0285) + 0.3 * pad),
                (shoulder.lerp(elbow, 0.5), r(0.028) + pad),
                (elbow, r(0.023) + 0.9 * pad),
            ];
            let fore = [
                (elbow, r(0.023) + 0.9 * pad),
                (elbow.lerp(wrist, 0.35), r(0.023) + pad),
                (elbow.lerp(wrist, 0.97), r(0.0165) + 0.7 * pad),
            ];
            let tags = (Tag(cloth_part, upper_tag), Tag(cloth_part, fore_tag));
            self.jointed(&upper, &fore, (Cap::Round, Cap::Flat), &fabric, tags);
            self.crease(elbow, shoulder, r(0.02), fabric.color);
        } else {
            let end = shoulder.lerp(elbow, 0.36 + 0.3 * who.looseness);
            let upper = [
                (top, r(0.0285) + 0.3 * pad),
                (shoulder.lerp(end, 0.5), r(0.031) + pad),
                (end, r(0.0285) + 1.3 * pad),
            ];
            self.limb(&upper, (Cap::Round, Cap::Flat), &fabric, Tag(cloth_part, upper_tag));
        }
    }

    /// Two short folds across a bent joint.
    fn crease(&mut self, joint: V3, from: V3, radius: f32, color: Rgb) {
        if !self.near {
            return;
        }
        let (at, above) = (self.view.see(joint), self.view.see(from));
        let along = (at.at - above.at).unit();
        let across = along.perp() * (radius * at.scale);
        for shift in [-0.5f32, 0.45] {
            let middle = at.at + along * (shift * radius * at.scale);
            let line = [middle - across * 0.8, middle + along * 1.0, middle + across * 0.6];
            self.canvas.line(&line, color.shade(0.45), 0.25, 0.011 * self.view.scale, None);
        }
    }

    pub fn leg(&mut self, side: usize) {
        let who = self.who;
        let a = &who.attributes;
        let h = self.height();
        let b = self.bones;
        let (hip, knee, ankle) = (b.hip[side], b.knee[side], b.ankle[side]);
        let girth = 0.97 * (0.3 + 0.7 * who.body.girth) * (1.0 + 0.03 * who.body.feminine);
        let r = |k: f32| k * h * girth;
        let (thigh_tag, shank_tag) = (Segment::thigh(side), Segment::shank(side));
        let skin = Fabric::plain(who.skin.shade(0.97));
        let part = Part::leg(side);
        let trousers = a.lower == Lower::Trousers;
        if !trousers {
            let thigh = [
                (hip, r(0.050)),
                (hip.lerp(knee, 0.45), r(0.047)),
                (hip.lerp(knee, 0.8), r(0.036)),
                (knee, r(0.0315)),
            ];
            let calf = b.shank_turn[side].apply(v3(0.0, 0.0, -0.008 * h));
            let shank = [
                (knee, r(0.0305)),
                (knee.lerp(ankle, 0.25) + calf, r(0.034)),
                (knee.lerp(ankle, 0.6) + calf * 0.5, r(0.026)),
                (ankle, r(0.0175)),
            ];
            let tags = (Tag(part, thigh_tag), Tag(part, shank_tag));
            self.jointed(&thigh, &shank, (Cap::Round, Cap::Round), &skin, tags);
            if a.shoes == Shoes::Sneakers {
                let sock = [(knee.lerp(ankle, 0.84), r(0.0215)), (ankle, r(0.0215))];
                let white = Fabric::plain(Rgb(0.85, 0.85, 0.84));
                self.limb(&sock, (Cap::Flat, Cap::Round), &white, Tag(Part::Socks, shank_tag));
            }
        }
        self.shoe(side, r(0.021));
        let pad = h * (0.002 + 0.010 * who.looseness);
        match a.lower {
            Lower::Trousers => {
                let tag = |segment| Tag(Part::Pants, segment);
                let at_knee = r(0.034) + pad;
                let thigh = [
                    (hip, r(0.049) + 0.3 * pad),
                    (hip.lerp(knee, 0.5), r(0.045) + 0.8 * pad),
                    (knee, at_knee),
                ];
                // Into boots, or over shoes.
                let booted = a.shoes == Shoes::Boots;
                let end = if booted { knee.lerp(ankle, 0.64) } else { ankle + (ankle - knee) * 0.045 };
                let hem = if booted { r(0.031) } else { (at_knee * who.flare).max(r(0.024)) };
                let calf = 0.5 * (at_knee + r(0.034) + pad);
                let shank = [(knee, at_knee), (knee.lerp(end, 0.35), calf), (end, hem)];
                let tags = (tag(thigh_tag), tag(shank_tag));
                self.jointed(&thigh, &shank, (Cap::Round, Cap::Flat), &who.lower, tags);
                self.crease(knee, hip, r(0.03), who.lower.color);
                if !booted {
                    self.crease(ankle, knee, r(0.022), who.lower.color);
                }
            }
            Lower::Shorts => {
                let end = if who.lower_hem < 0.5 { hip.lerp(knee, 2.0 * who.lower_hem) } else { knee };
                let thigh = [
                    (hip, r(0.051) + 0.3 * pad),
                    (hip.lerp(end, 0.5), r(0.049) + pad),
                    (end, r(0.044) + 1.5 * pad),
                ];
                self.limb(&thigh, (Cap::Round, Cap::Flat), &who.lower, Tag(Part::Pants, thigh_tag));
            }
            Lower::Skirt | Lower::Dress => {}
        }
        if a.shoes == Shoes::Boots {
            let top = knee.lerp(ankle, 0.55);
            let shaft = [(top, r(0.033) + 0.4 * pad), (knee.lerp(ankle, 0.85), r(0.028)), (ankle, r(0.026))];
            self.limb(
                &shaft,
                (Cap::Flat, Cap::Round),
                &Fabric::plain(who.shoe),
                Tag(Part::shoe(side), shank_tag),
            );
        }
    }

    fn shoe(&mut self, side: usize, radius: f32) {
        let who = self.who;
        let b = self.bones;
        let (ankle, heel, toe) = (b.ankle[side], b.heel[side], b.toe[side]);
        let tag = Tag(Part::shoe(side), Segment::foot(side));
        let sandals = who.attributes.shoes == Shoes::Sandals;
        let upper = Fabric::plain(if sandals { who.skin } else { who.shoe });
        let ball = heel.lerp(toe, 0.68);
        let instep = ankle.lerp(ball, 0.45);
        // Sole first: it shows below the upper from every side.
        let drop = v2(0.0, 0.42 * radius * self.view.scale);
        let sole = [heel, ball, toe].map(|p| self.view.see(p).at + drop);
        self.canvas.line(&sole, who.sole, 1.0, 1.35 * radius * self.view.scale, Some(tag));
        let neck = [(ankle, 0.98 * radius), (heel.lerp(ankle, 0.35), 1.05 * radius)];
        self.limb(&neck, (Cap::Flat, Cap::Round), &upper, tag);
        let foot = [
            (heel, 0.95 * radius),
            (instep.lerp(heel.lerp(toe, 0.4), 0.5), 1.02 * radius),
            (ball, 0.9 * radius),
            (toe, 0.62 * radius),
        ];
        self.limb(&foot, (Cap::Round, Cap::Round), &upper, tag);
        if sandals {
            let (p, q) = (self.view.see(instep).at, self.view.see(ball).at);
            for at in [p, q] {
                let half = v2(radius * self.view.scale, 0.0);
                self.canvas.line(&[at - half, at + half], who.shoe, 1.0, 0.02 * self.view.scale, Some(tag));
            }
        }
    }
}

/// Sleeves carry the pattern of the garment, but not its split: that lies lower on the trunk.
fn sleeve_fabric(fabric: &Fabric) -> Fabric {
    match fabric.weave {
        Weave::Split(_) => Fabric::plain(fabric.color),
        _ => *fabric,
    }
}
