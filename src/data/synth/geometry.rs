//! Small vectors. Person frame: x to the person's left, y up, z forward, in metres. Camera frame: x right, y up,
//! z towards the camera. Picture frame ([`V2`]): x right, y down, in pixels.

use std::ops::{Add, Mul, Neg, Sub};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct V2 {
    pub x: f32,
    pub y: f32,
}

pub const fn v2(x: f32, y: f32) -> V2 {
    V2 { x, y }
}

impl V2 {
    pub fn length(self) -> f32 {
        self.x.hypot(self.y)
    }
    /// Unit vector; straight down for a vector too short to have a direction.
    pub fn unit(self) -> V2 {
        let length = self.length();
        if length > 1e-4 { self * (1.0 / length) } else { v2(0.0, 1.0) }
    }
    /// Turned a quarter: for a direction pointing down the picture this points left.
    pub fn perp(self) -> V2 {
        v2(-self.y, self.x)
    }
    pub fn lerp(self, to: V2, t: f32) -> V2 {
        self + (to - self) * t
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct V3 {
    pub x: f32,
    pub y: f32,
    pub z: f32,
}

pub const fn v3(x: f32, y: f32, z: f32) -> V3 {
    V3 { x, y, z }
}

impl V3 {
    pub fn dot(self, other: V3) -> f32 {
        self.x * other.x + self.y * other.y + self.z * other.z
    }
    pub fn cross(self, o: V3) -> V3 {
        v3(self.y * o.z - self.z * o.y, self.z * o.x - self.x * o.z, self.x * o.y - self.y * o.x)
    }
    pub fn length(self) -> f32 {
        self.dot(self).sqrt()
    }
    /// Unit vector; +z for a vector too short to have a direction.
    pub fn unit(self) -> V3 {
        let length = self.length();
        if length > 1e-6 { self * (1.0 / length) } else { v3(0.0, 0.0, 1.0) }
    }
    pub fn lerp(self, to: V3, t: f32) -> V3 {
        self + (to - self) * t
    }
}

macro_rules! linear {
    ($t:ty, $($f:ident),+) => {
        impl Add for $t {
            type Output = $t;
            fn add(self, o: $t) -> $t { Self { $($f: self.$f + o.$f),+ } }
        }
        impl Sub for $t {
            type Output = $t;
            fn sub(self, o: $t) -> $t { Self { $($f: self.$f - o.$f),+ } }
        }
        impl Neg for $t {
            type Output = $t;
            fn neg(self) -> $t { Self { $($f: -self.$f),+ } }
        }
        impl Mul<f32> for $t {
            type Output = $t;
            fn mul(self, k: f32) -> $t { Self { $($f: self.$f * k),+ } }
        }
    };
}
linear!(V2, x, y);
linear!(V3, x, y, z);

/// A rotation, by its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotation([V3; 3]);

impl Rotation {
    /// About the x axis; a positive angle leans an upright vector forward (towards +z).
    pub fn x(angle: f32) -> Self {
        let (s, c) = angle.sin_cos();
        Rotation([v3(1.0, 0.0, 0.0), v3(0.0, c, -s), v3(0.0, s, c)])
    }
    /// About the y axis; a positive angle turns the front (+z) to +x.
    pub fn y(angle: f32) -> Self {
        let (s, c) = angle.sin_cos();
        Rotation([v3(c, 0.0, s), v3(0.0, 1.0, 0.0), v3(-s, 0.0, c)])
    }
    /// About the z axis; a positive angle turns a hanging vector to +x.
    pub fn z(angle: f32) -> Self {
        let (s, c) = angle.sin_cos();
        Rotation([v3(c, -s, 0.0), v3(s, c, 0.0), v3(0.0, 0.0, 1.0)])
    }
    pub fn apply(&self, v: V3) -> V3 {
        v3(self.0[0].dot(v), self.0[1].dot(v), self.0[2].dot(v))
    }
    /// `self` after `first`.
    pub fn after(&self, first: &Rotation) -> Rotation {
        let column = |v: V3| self.apply(first.apply(v));
        let (a, b, c) = (column(v3(1.0, 0.0, 0.0)), column(v3(0.0, 1.0, 0.0)), column(v3(0.0, 0.0, 1.0)));
        Rotation([v3(a.x, b.x, c.x), v3(a.y, b.y, c.y), v3(a.z, b.z, c.z)])
    }
}

/// A point seen by the camera.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub at: V2,
    /// Towards the camera, metres from the person's middle.
    pub depth: f32,
    /// Pixels a metre at this depth.
    pub scale: f32,
}

/// How a camera looks at one person: weak perspective about the person's middle.
#[derive(Clone, Copy, Debug)]
pub struct View {
    rotation: Rotation,
    /// Height of the person's middle above the ground, metres.
    pub middle: f32,
    /// Pixels a metre at the middle.
    pub scale: f32,
    /// Where the middle falls in the picture.
    pub origin: V2,
    /// Metres from the camera to the person.
    pub distance: f32,
    /// Direction to the light, camera frame, unit.
    pub light: V3,
}

impl View {
    /// `yaw` 0 faces the camera; `pitch` is the camera's angle of looking down; both in radians.
    pub fn new(yaw: f32, pitch: f32, middle: f32, distance: f32, light: V3) -> Self {
        let rotation = Rotation::x(pitch).after(&Rotation::y(yaw));
        View { rotation, middle, scale: 1.0, origin: v2(0.0, 0.0), distance, light }
    }
    /// A direction (or a difference of points) in the camera frame, metres.
    pub fn turn(&self, v: V3) -> V3 {
        self.rotation.apply(v)
    }
    pub fn see(&self, p: V3) -> Seen {
        let q = self.turn(p - v3(0.0, self.middle, 0.0));
        let scale = self.scale * self.distance / (self.distance - q.z).max(0.3);
        Seen { at: v2(self.origin.x + q.x * scale, self.origin.y - q.y * scale), depth: q.z, scale }
    }
}
