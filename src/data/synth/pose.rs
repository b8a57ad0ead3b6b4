//! Poses and the skeleton they put a body in, by forward kinematics.

use super::dice::Dice;
use super::geometry::{Rotation, V3, v3};
use super::identity::{AgeGroup, Body, Identity, Lower, Upper};
use std::f32::consts::PI;

/// What a person is doing in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Walk,
    Stand,
    Run,
    /// One hand at the ear or a phone read in front.
    Phone,
    /// Waving or pointing.
    Gesture,
    /// Hands on the hips, in the pockets, or arms folded.
    HandsAtWaist,
    Sit,
}

impl Action {
    pub const fn name(self) -> &'static str {
        match self {
            Action::Walk => "walk",
            Action::Stand => "stand",
            Action::Run => "run",
            Action::Phone => "phone",
            Action::Gesture => "gesture",
            Action::HandsAtWaist => "hands_at_waist",
            Action::Sit => "sit",
        }
    }
}

/// Joint angles of one arm, radians.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arm {
    /// Forward swing at the shoulder.
    pub flex: f32,
    /// Away from the body.
    pub abduct: f32,
    /// Turns the forearm inwards.
    pub twist: f32,
    pub elbow: f32,
}

/// Joint angles of one leg, radians.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leg {
    /// Forward swing at the hip.
    pub flex: f32,
    pub abduct: f32,
    pub knee: f32,
    /// Toes down.
    pub foot: f32,
    pub toe_out: f32,
}

/// Joint angles of a whole body; index 0 of a pair is the person's left.
#[derive(Clone, Copy, Debug)]
pub struct Pose {
    pub action: Action,
    pub lean: f32,
    pub sway: f32,
    /// Shoulders against the hips, about the vertical.
    pub twist: f32,
    pub head_yaw: f32,
    pub head_pitch: f32,
    pub arms: [Arm; 2],
    pub legs: [Leg; 2],
    /// The hand that holds a phone in this image.
    pub phone: Option<usize>,
    /// The umbrella is open and held up.
    pub umbrella_up: bool,
}

impl Pose {
    /// Draws what `who` does in an image.
    pub fn draw(dice: &mut Dice, who: &Identity) -> Self {
        let a = &who.attributes;
        let can_sit = matches!(a.lower, Lower::Trousers | Lower::Shorts) && a.upper != Upper::Coat;
        let young = if a.age == AgeGroup::Senior { 0.3 } else { 1.0 };
        let action = dice.pick(&[
            (Action::Walk, 48.0),
            (Action::Stand, 18.0),
            (Action::Run, 7.0 * young),
            (Action::Phone, if a.phone { 26.0 } else { 2.0 }),
            (Action::Gesture, 6.0),
            (Action::HandsAtWaist, 9.0),
            (Action::Sit, if can_sit { 5.0 } else { 0.0 }),
        ]);
        let mut pose = match action {
            Action::Walk => walk(dice, who.gait),
            Action::Run => run(dice),
            Action::Sit => sit(dice),
            _ => stand(dice),
        };
        pose.action = action;
        let free = dice.index(2);
        match action {
            Action::Phone => {
                let arm = &mut pose.arms[free];
                *arm = if dice.chance(0.5) {
                    Arm { flex: 0.55, abduct: 0.35, twist: 0.45, elbow: 2.45 }
                } else {
                    Arm { flex: 0.45, abduct: 0.15, twist: 0.55, elbow: 1.75 }
                };
                pose.head_pitch += 0.18;
                pose.phone = Some(free);
            }
            Action::Gesture => gesture(dice, &mut pose, free),
            Action::HandsAtWaist => hands_at_waist(dice, &mut pose),
            _ => {}
        }
        if a.age == AgeGroup::Senior {
            pose.lean += 0.10;
            pose.head_pitch -= 0.06;
        }
        carry(dice, who, &mut pose);
        pose
    }
}

fn walk(dice: &mut Dice, gait: f32) -> Pose {
    let t = dice.range(0.0, 2.0 * PI);
    let stride = gait * dice.range(0.75, 1.15);
    let mut pose = neutral(dice, Action::Walk);
    for side in 0..2 {
        let phase = t + PI * side as f32;
        let (s, c) = phase.sin_cos();
        pose.legs[side] = Leg {
            flex: 0.06 + 0.40 * stride * s,
            abduct: 0.015,
            // The knee bends most while the leg swings forward, a little before it passes the other.
            knee: 0.07 + 0.95 * stride * (phase + 0.55).cos().max(0.0).powi(2),
            foot: 0.42 * stride * (-s).max(0.0) + 0.25 * c.max(0.0) * (-s).max(0.0) - 0.26 * s.max(0.0),
            toe_out: 0.10,
        };
        let arm = &mut pose.arms[side];
        arm.flex = -0.42 * stride * s + 0.02;
        arm.elbow = 0.22 + 0.28 * (-s).max(0.0) * stride;
    }
    pose.lean += 0.03;
    pose.twist = -0.10 * stride * t.sin();
    pose
}

fn run(dice: &mut Dice) -> Pose {
    let t = dice.range(0.0, 2.0 * PI);
    let mut pose = neutral(dice, Action::Run);
    for side in 0..2 {
        let phase = t + PI * side as f32;
        let s = phase.sin();
        pose.legs[side] = Leg {
            flex: 0.25 + 0.68 * s,
            abduct: 0.01,
            knee: 0.30 + 1.25 * (phase + 0.65).cos().max(0.0).powi(2),
            foot: 0.6 * (-s).max(0.0),
            toe_out: 0.05,
        };
        pose.arms[side] = Arm { flex: -0.65 * s - 0.05, abduct: 0.16, twist: 0.3, elbow: 1.35 + 0.25 * -s };
    }
    pose.lean += 0.14;
    pose.twist = -0.16 * t.sin();
    pose
}

fn stand(dice: &mut Dice) -> Pose {
    let mut pose = neutral(dice, Action::Stand);
    let relaxed = dice.index(2);
    let bend = dice.range(0.0, 0.35);
    let spread = dice.range(0.02, 0.12);
    for side in 0..2 {
        let leg = &mut pose.legs[side];
        leg.abduct = spread;
        leg.toe_out = 0.25;
        leg.flex = dice.range(-0.06, 0.08);
        leg.knee = 0.04;
    }
    // One leg carries the weight, the other is slack.
    pose.legs[relaxed].flex += 0.6 * bend;
    pose.legs[relaxed].knee += bend;
    pose.sway += 0.05 * if relaxed == 0 { -1.0 } else { 1.0 } * bend / 0.35;
    pose
}

fn sit(dice: &mut Dice) -> Pose {
    let mut pose = neutral(dice, Action::Sit);
    for side in 0..2 {
        let flex = dice.range(1.38, 1.52);
        pose.legs[side] = Leg {
            flex,
            abduct: dice.range(0.05, 0.22),
            knee: flex + dice.range(-0.15, 0.2),
            foot: 0.0,
            toe_out: 0.15,
        };
        pose.arms[side] = Arm { flex: 0.45, abduct: 0.12, twist: 0.35, elbow: 0.95 };
    }
    pose.lean = dice.range(-0.1, 0.25);
    pose
}

fn gesture(dice: &mut Dice, pose: &mut Pose, free: usize) {
    match dice.index(4) {
        0 => pose.arms[free] = Arm { flex: 0.35, abduct: 1.35, twist: -1.4, elbow: 1.5 },
        1 => {
            for arm in &mut pose.arms {
                *arm =
                    Arm { flex: 0.2, abduct: dice.range(2.3, 2.8), twist: 0.0, elbow: dice.range(0.1, 0.5) };
            }
        }
        2 => pose.arms[free] = Arm { flex: 1.45, abduct: dice.range(0.0, 0.5), twist: 0.0, elbow: 0.12 },
        _ => pose.arms[free] = Arm { flex: 2.6, abduct: 0.25, twist: 0.2, elbow: 0.45 },
    }
}

fn hands_at_waist(dice: &mut Dice, pose: &mut Pose) {
    let style = dice.index(3);
    for (side, arm) in pose.arms.iter_mut().enumerate() {
        *arm = match style {
            0 => Arm { flex: -0.35, abduct: 0.75, twist: 0.95, elbow: 1.55 },
            1 => Arm { flex: -0.28, abduct: 0.24, twist: 0.30, elbow: 0.62 },
            _ => Arm { flex: 0.42 + 0.08 * side as f32, abduct: 0.12, twist: 1.15, elbow: 1.72 },
        };
    }
}

/// Arms that hold something do not swing freely.
fn carry(dice: &mut Dice, who: &Identity, pose: &mut Pose) {
    let a = &who.attributes;
    let side = who.carry_side;
    pose.umbrella_up = a.umbrella && dice.chance(0.45) && !matches!(pose.action, Action::Sit | Action::Run);
    if pose.umbrella_up {
        pose.arms[side] = Arm { flex: 0.42, abduct: 0.12, twist: 0.15, elbow: 1.9 };
        if pose.phone == Some(side) {
            pose.phone = None;
        }
    } else if a.handbag && pose.phone != Some(side) {
        pose.arms[side] = Arm {
            flex: 0.04 + 0.3 * pose.arms[side].flex.clamp(-0.5, 0.5),
            abduct: 0.10,
            twist: 0.0,
            elbow: 0.12,
        };
    }
}

/// Upright, with the small asymmetries that everybody has.
fn neutral(dice: &mut Dice, action: Action) -> Pose {
    let mut arms = [Arm::default(); 2];
    for arm in &mut arms {
        *arm = Arm {
            flex: 0.05 * dice.normal(),
            abduct: dice.range(0.08, 0.19),
            twist: 0.25,
            elbow: dice.range(0.12, 0.4),
        };
    }
    Pose {
        action,
        lean: 0.02 * dice.normal(),
        sway: 0.015 * dice.normal(),
        twist: 0.05 * dice.normal(),
        head_yaw: 0.24 * dice.normal(),
        head_pitch: 0.05 + 0.09 * dice.normal(),
        arms,
        legs: [Leg::default(); 2],
        phone: None,
        umbrella_up: false,
    }
}

/// Joints of a posed body in the person frame: the ground is y = 0, the pelvis is above the origin.
#[derive(Clone, Copy, Debug)]
pub struct Skeleton {
    pub pelvis: V3,
    pub pelvis_turn: Rotation,
    pub waist: V3,
    /// Base of the neck.
    pub neck: V3,
    pub trunk_turn: Rotation,
    pub head: V3,
    pub head_turn: Rotation,
    pub shoulder: [V3; 2],
    pub elbow: [V3; 2],
    pub wrist: [V3; 2],
    pub hand: [V3; 2],
    pub hip: [V3; 2],
    pub knee: [V3; 2],
    pub ankle: [V3; 2],
    pub shank_turn: [Rotation; 2],
    pub heel: [V3; 2],
    pub toe: [V3; 2],
}

/// Share of the trunk between pelvis and waist.
pub const WAIST: f32 = 0.36;

impl Skeleton {
    pub fn new(body: &Body, pose: &Pose) -> Self {
        let pelvis_turn = Rotation::z(0.6 * pose.sway).after(&Rotation::x(0.4 * pose.lean));
        let trunk_turn =
            Rotation::y(pose.twist).after(&Rotation::z(-pose.sway)).after(&Rotation::x(pose.lean));
        let head_turn = trunk_turn
            .after(&Rotation::y(pose.head_yaw))
            .after(&Rotation::x(pose.head_pitch - pose.lean * 0.8));
        let up = |turn: &Rotation, length: f32| turn.apply(v3(0.0, length, 0.0));
        let pelvis = v3(0.0, 0.0, 0.0);
        let waist = pelvis + up(&pelvis_turn, WAIST * body.torso);
        let neck = waist + up(&trunk_turn, (1.0 - WAIST) * body.torso);
        let head = neck
            + trunk_turn.apply(v3(0.0, body.neck, 0.008 * body.height))
            + head_turn.apply(v3(0.0, 0.5 * body.head, 0.010 * body.height));
        let mut s = Skeleton {
            pelvis,
            pelvis_turn,
            waist,
            neck,
            trunk_turn,
            head,
            head_turn,
            shoulder: [neck; 2],
            elbow: [neck; 2],
            wrist: [neck; 2],
            hand: [neck; 2],
            hip: [pelvis; 2],
            knee: [pelvis; 2],
            ankle: [pelvis; 2],
            shank_turn: [pelvis_turn; 2],
            heel: [pelvis; 2],
            toe: [pelvis; 2],
        };
        for side in 0..2 {
            s.place_arm(body, &pose.arms[side], side);
            s.place_leg(body, &pose.legs[side], side);
        }
        s.stand_on_ground(body);
        s
    }

    fn place_arm(&mut self, body: &Body, arm: &Arm, side: usize) {
        let out = if side == 0 { 1.0 } else { -1.0 };
        // The shoulder blade lifts the joint when the arm goes up.
        let lift = 0.035 * body.height * (arm.flex.max(arm.abduct) - 1.0).clamp(0.0, 1.0);
        self.shoulder[side] = self.neck
            + self.trunk_turn.apply(v3(
                out * body.shoulder,
                -0.034 * body.height + lift,
                -0.004 * body.height,
            ));
        let upper = self
            .trunk_turn
            .after(&Rotation::z(out * arm.abduct))
            .after(&Rotation::x(-arm.flex))
            .after(&Rotation::y(-out * arm.twist));
        let fore = upper.after(&Rotation::x(-arm.elbow));
        self.elbow[side] = self.shoulder[side] + upper.apply(v3(0.0, -body.upper_arm, 0.0));
        self.wrist[side] = self.elbow[side] + fore.apply(v3(0.0, -body.forearm, 0.0));
        let hand = fore.after(&Rotation::x(-0.15));
        self.hand[side] = self.wrist[side] + hand.apply(v3(0.0, -0.74 * body.hand, 0.0));
    }

    fn place_leg(&mut self, body: &Body, leg: &Leg, side: usize) {
        let out = if side == 0 { 1.0 } else { -1.0 };
        self.hip[side] = self.pelvis + self.pelvis_turn.apply(v3(out * body.hip, 0.0, 0.0));
        let thigh = Rotation::z(out * leg.abduct)
            .after(&Rotation::x(-leg.flex))
            .after(&Rotation::y(out * leg.toe_out * 0.5));
        let shank = thigh.after(&Rotation::x(leg.knee));
        self.knee[side] = self.hip[side] + thigh.apply(v3(0.0, -body.thigh, 0.0));
        self.ankle[side] = self.knee[side] + shank.apply(v3(0.0, -body.shank, 0.0));
        self.shank_turn[side] = shank;
        // A swinging foot follows the shank in part; a planted one lies flat.
        let follow = (leg.knee - leg.flex).max(0.0) * 0.75;
        let foot = Rotation::y(out * leg.toe_out).after(&Rotation::x(leg.foot + follow));
        self.heel[side] = self.ankle[side] + foot.apply(v3(0.0, -0.8 * body.ankle, -0.22 * body.foot));
        self.toe[side] = self.ankle[side] + foot.apply(v3(0.0, -0.8 * body.ankle, 0.72 * body.foot));
    }

    fn stand_on_ground(&mut self, body: &Body) {
        let lowest =
            self.heel.iter().chain(&self.toe).map(|p| p.y).fold(f32::INFINITY, f32::min) - 0.2 * body.ankle;
        let shift = v3(0.0, -lowest, 0.0);
        for p in [&mut self.pelvis, &mut self.waist, &mut self.neck, &mut self.head] {
            *p = *p + shift;
        }
        let pairs = [
            &mut self.shoulder,
            &mut self.elbow,
            &mut self.wrist,
            &mut self.hand,
            &mut self.hip,
            &mut self.knee,
            &mut self.ankle,
            &mut self.heel,
            &mut self.toe,
        ];
        for pair in pairs {
            for p in pair {
                *p = *p + shift;
            }
        }
    }

    /// Balls that enclose the body: centre and radius, metres.
    pub fn balls(&self, body: &Body) -> Vec<(V3, f32)> {
        let h = body.height;
        let mut balls = vec![(self.head, 0.52 * body.head), (self.pelvis, 0.10 * h), (self.waist, 0.08 * h)];
        for side in 0..2 {
            balls.push((self.shoulder[side], 0.035 * h));
            balls.push((self.elbow[side], 0.025 * h));
            balls.push((self.hand[side], 0.015 * h));
            balls.push((self.knee[side], 0.035 * h));
            balls.push((self.heel[side], 0.015 * h));
            balls.push((self.toe[side], 0.015 * h));
        }
        balls
    }
}
