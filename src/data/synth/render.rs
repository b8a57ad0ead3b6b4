//! From (identity, shot, camera) to a picture with its labels.

use super::camera::Camera;
use super::canvas::{BLACK, Canvas};
use super::dice::{Dice, Domain};
use super::figure::Figure;
use super::geometry::{V2, V3, View, v2, v3};
use super::head::{EARS, EYES, NOSE};
use super::identity::{Attributes, Identity};
use super::labels::{BoundingBox, Keypoint, Segment, showing};
use super::pose::{Action, Pose, Skeleton};
use super::scene::SCALE;
use image::RgbImage;
use tiny_skia::Pixmap;

/// What to draw.
pub struct Render<'a> {
    pub seed: u64,
    pub identity: usize,
    pub shot: usize,
    pub camera: &'a Camera,
    /// Width and height.
    pub size: (u32, u32),
    pub labelled: bool,
}

/// What was drawn.
pub struct Shot {
    pub image: RgbImage,
    pub attributes: Attributes,
    pub action: Action,
    pub yaw: f32,
    pub keypoints: [Keypoint; 17],
    /// (part, segment) of each pixel; empty without labels.
    pub labels: Vec<(u8, u8)>,
}

impl Render<'_> {
    pub fn run(&self) -> Shot {
        let who = Identity::new(self.seed, self.identity);
        // 24 bits for the shot, the rest for the identity: see the limits in `SynthConfig::validate`.
        let key = (self.identity as u64) << 24 | self.shot as u64;
        let mut dice = Dice::new(self.seed, Domain::Image, key);
        let pose = Pose::draw(&mut dice, &who);
        let bones = Skeleton::new(&who.body, &pose);
        let yaw = self.camera.yaw(&mut dice);
        let pitch = (self.camera.pitch + 0.03 * dice.normal()).max(0.0);
        let light = self.camera.light;
        let mut view = View::new(yaw, pitch, 0.5 * who.body.height, self.camera.distance, light);
        self.frame(&mut view, &bones, &who, &mut dice);
        let blank = Shot {
            image: RgbImage::new(self.size.0, self.size.1),
            attributes: who.attributes.clone(),
            action: pose.action,
            yaw,
            keypoints: [Keypoint { x: 0.0, y: 0.0, visibility: 0 }; 17],
            labels: Vec::new(),
        };
        // The size was validated, so there is a pixmap of it.
        let Some(mut pixmap) = Pixmap::new(self.size.0, self.size.1) else { return blank };
        let feet = view.see(v3(bones.pelvis.x, 0.0, bones.pelvis.z)).at;
        let scene = &self.camera.scene;
        let zoom = SCALE / view.scale * dice.range(0.85, 1.1);
        let margin = 0.5 * self.size.0 as f32 * zoom;
        let column = dice.range(margin, scene.width() - margin);
        let row = scene.ground_row(dice.unit());
        scene.window(&mut pixmap, (feet.x, feet.y), (column, row), zoom);
        let mut canvas = Canvas::new(pixmap, light);
        self.passers_by(&mut canvas, &view, &mut dice);
        if self.labelled {
            canvas.start_labels();
        }
        let mut figure =
            Figure { who: &who, pose: &pose, bones: &bones, view: &view, canvas: &mut canvas, near: true };
        figure.shadow(self.camera.sun);
        if pose.action == Action::Sit {
            figure.seat();
        }
        figure.draw();
        if dice.chance(self.camera.occlusion) {
            super::occluder::draw(&mut canvas, &view, &mut dice, self.seed);
        }
        let labels = canvas.label_codes();
        let keypoints =
            if self.labelled { self.keypoints(&bones, &who, &view, &labels) } else { blank.keypoints };
        let film = self.camera.film(&mut dice);
        let image = film.develop(&canvas.picture, &mut dice);
        Shot { image, keypoints, labels, ..blank }
    }

    /// Scales and shifts the view as a person detector crops: nearly tight, a little off.
    fn frame(&self, view: &mut View, bones: &Skeleton, who: &Identity, dice: &mut Dice) {
        let (width, height) = (self.size.0 as f32, self.size.1 as f32);
        let (mut low, mut high) = (v2(f32::MAX, f32::MAX), v2(f32::MIN, f32::MIN));
        for (at, radius) in bones.balls(&who.body) {
            let seen = view.see(at);
            let r = radius * seen.scale;
            low = v2(low.x.min(seen.at.x - r), low.y.min(seen.at.y - r));
            high = v2(high.x.max(seen.at.x + r), high.y.max(seen.at.y + r));
        }
        let size = high - low;
        // One detection in eight cuts off the feet or the crown.
        let fill = if dice.chance(0.125) { dice.range(1.0, 1.18) } else { dice.range(0.82, 0.965) };
        let scale = (fill * height / size.y).min(1.15 * width / size.x);
        view.scale = scale;
        let center = (low + high) * (0.5 * scale);
        let slack = (height - size.y * scale).abs();
        view.origin = v2(0.5 * width - center.x, 0.5 * height - center.y)
            + v2(0.045 * width * dice.normal(), slack * dice.range(-0.4, 0.4));
    }

    /// Other people farther away.
    fn passers_by(&self, canvas: &mut Canvas, view: &View, dice: &mut Dice) {
        let count = dice.weighted(&[0.62, 0.27, 0.11]);
        for _ in 0..count {
            let who = Identity::new(self.seed ^ 0x5eed_0fa5_0000_0000, dice.index(1 << 20));
            let pose = Pose::draw(dice, &who);
            let bones = Skeleton::new(&who.body, &pose);
            let yaw = self.camera.yaw(dice);
            let mut other =
                View::new(yaw, self.camera.pitch, 0.5 * who.body.height, self.camera.distance, view.light);
            let far = dice.range(0.28, 0.62);
            other.scale = view.scale * far;
            let away =
                dice.range(0.20, 0.62) * self.size.0 as f32 * if dice.chance(0.5) { 1.0 } else { -1.0 };
            // Farther people stand higher in the picture, the more so the higher the camera hangs.
            let rise = (1.0 - far) * (0.25 + 0.9 * self.camera.pitch) * view.scale;
            other.origin =
                v2(0.5 * self.size.0 as f32 + away, view.origin.y + 0.9 * view.scale * (1.0 - far) - rise);
            let mut figure = Figure {
                who: &who,
                pose: &pose,
                bones: &bones,
                view: &other,
                canvas: &mut *canvas,
                near: false,
            };
            figure.shadow(self.camera.sun);
            figure.draw();
        }
    }

    fn keypoints(
        &self,
        bones: &Skeleton,
        who: &Identity,
        view: &View,
        labels: &[(u8, u8)],
    ) -> [Keypoint; 17] {
        let head = |p: V3| bones.head + bones.head_turn.apply(p * who.body.head);
        let pairs = [bones.shoulder, bones.elbow, bones.wrist, bones.hip, bones.knee, bones.ankle];
        let (width, height) = (self.size.0 as i32, self.size.1 as i32);
        std::array::from_fn(|index| {
            // Points of the face are on its surface: they show only when it is turned to the camera.
            let (point, turned) = match index {
                0 => (head(NOSE), v3(0.0, 0.0, 1.0)),
                1 | 2 => (head(EYES[index - 1]), v3(0.42 * EYES[index - 1].x.signum(), 0.0, 0.9)),
                3 | 4 => (head(EARS[index - 3]), v3(EARS[index - 3].x.signum(), 0.0, -0.25)),
                _ => (pairs[(index - 5) / 2][(index - 5) % 2], v3(0.0, 0.0, 0.0)),
            };
            let at: V2 = view.see(point).at;
            let (column, row) = (at.x.floor() as i32, at.y.floor() as i32);
            if column < 0 || row < 0 || column >= width || row >= height {
                return Keypoint { x: 0.0, y: 0.0, visibility: 0 };
            }
            let facing = index > 4 || view.turn(bones.head_turn.apply(turned.unit())).z > 0.0;
            let code = labels.get((row * width + column) as usize).map_or(0, |label| label.1);
            let shown = facing && showing(index).iter().any(|segment| *segment as u8 == code);
            Keypoint { x: at.x, y: at.y, visibility: if shown { 2 } else { 1 } }
        })
    }
}

impl Figure<'_> {
    /// A block to sit on.
    fn seat(&mut self) {
        let h = self.height();
        let hips = self.bones.pelvis;
        let top = hips.y - 0.055 * h;
        let corner = |x: f32, y: f32, z: f32| self.view.see(v3(x * 0.2 * h, y, hips.z + z * 0.11 * h)).at;
        let color = super::canvas::Rgb(0.42, 0.36, 0.30);
        for (corners, shade) in [
            (
                [
                    corner(-1.0, 0.0, -1.0),
                    corner(1.0, 0.0, -1.0),
                    corner(1.0, top, -1.0),
                    corner(-1.0, top, -1.0),
                ],
                0.5,
            ),
            (
                [
                    corner(-1.0, 0.0, -1.0),
                    corner(-1.0, 0.0, 1.0),
                    corner(-1.0, top, 1.0),
                    corner(-1.0, top, -1.0),
                ],
                0.6,
            ),
            (
                [
                    corner(1.0, 0.0, -1.0),
                    corner(1.0, 0.0, 1.0),
                    corner(1.0, top, 1.0),
                    corner(1.0, top, -1.0),
                ],
                0.6,
            ),
            (
                [
                    corner(-1.0, 0.0, 1.0),
                    corner(1.0, 0.0, 1.0),
                    corner(1.0, top, 1.0),
                    corner(-1.0, top, 1.0),
                ],
                0.75,
            ),
            (
                [
                    corner(-1.0, top, -1.0),
                    corner(1.0, top, -1.0),
                    corner(1.0, top, 1.0),
                    corner(-1.0, top, 1.0),
                ],
                1.0,
            ),
        ] {
            if let Some(path) = super::canvas::polygon(&corners) {
                self.canvas.fill(&path, color.shade(shade), 1.0, None);
                self.canvas.stroke(&path, BLACK, 0.3, 0.8, None);
            }
        }
    }
}

/// The box around all pixels of the person; zero when none shows.
pub fn enclosing_box(labels: &[(u8, u8)], width: usize) -> BoundingBox {
    let (mut x0, mut y0, mut x1, mut y1) = (usize::MAX, usize::MAX, 0, 0);
    for (index, (_, segment)) in labels.iter().enumerate() {
        if *segment == Segment::Nothing as u8 || *segment == Segment::Occluder as u8 {
            continue;
        }
        let (x, y) = (index % width, index / width);
        (x0, y0, x1, y1) = (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1));
    }
    if x0 == usize::MAX {
        return BoundingBox { x: 0.0, y: 0.0, width: 0.0, height: 0.0 };
    }
    BoundingBox { x: x0 as f32, y: y0 as f32, width: (x1 - x0) as f32, height: (y1 - y0) as f32 }
}
