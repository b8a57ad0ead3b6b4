//! The cameras of a synthetic world: where each looks from, at what, and how it renders.

use super::dice::{Dice, Domain};
use super::film::Film;
use super::geometry::{V3, v3};
use super::scene::{FAMILIES, Scene};
use std::f32::consts::PI;

/// One camera with the scene it looks at.
#[derive(Clone, Debug)]
pub struct Camera {
    /// Angle of looking down, radians.
    pub pitch: f32,
    /// Metres to the persons.
    pub distance: f32,
    /// Where people walk to, as seen from this camera: 0 is towards it.
    pub heading: f32,
    /// Direction to the light, camera frame.
    pub light: V3,
    /// Share of images in which something stands in front of the person.
    pub occlusion: f32,
    /// How dark the ground shadow is, 0 to 1.
    pub sun: f32,
    film: Film,
    pub scene: Scene,
}

/// Colour casts of the light, before the camera's automatic white balance.
const CASTS: [[f32; 3]; 9] = [
    [1.02, 1.00, 0.97],
    [0.88, 0.98, 1.15],
    [1.16, 0.99, 0.82],
    [0.95, 1.06, 0.92],
    [0.94, 0.97, 1.06],
    [1.10, 0.95, 1.00],
    [1.05, 1.02, 0.86],
    [0.90, 1.03, 1.05],
    [1.00, 0.94, 1.08],
];
/// What automatic white balance leaves of a cast: enough that the same coat is another colour in another camera, too
/// little to outweigh the coat.
const CAST_LEFT: f32 = 0.2;
const BRIGHTNESS: [f32; 9] = [1.00, 0.82, 1.12, 0.92, 1.18, 0.78, 1.05, 0.86, 0.95];

impl Camera {
    /// Camera `index` (from 0) of the world `seed`: a pure function of both.
    pub fn new(seed: u64, index: usize) -> Self {
        let mut dice = Dice::new(seed, Domain::Camera, index as u64);
        let cast =
            CASTS[index % CASTS.len()].map(|gain| 1.0 + CAST_LEFT * (gain - 1.0) + 0.008 * dice.normal());
        let film = Film {
            gain: cast,
            brightness: (0.5 + 0.5 * BRIGHTNESS[index % BRIGHTNESS.len()]) * dice.range(0.95, 1.05),
            contrast: dice.range(0.78, 1.15),
            gamma: dice.range(0.85, 1.18),
            saturation: dice.range(0.80, 1.10),
            blur: dice.range(0.06, 0.26),
            blur_passes: 1 + dice.index(2),
            noise: dice.range(1.5, 6.0),
        };
        let azimuth = dice.range(-1.2, 1.2);
        let elevation = dice.range(0.35, 1.05);
        Camera {
            pitch: dice.range(0.03, 0.42),
            distance: dice.range(5.0, 12.0),
            heading: dice.range(-PI, PI),
            light: v3(azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos())
                .unit(),
            occlusion: dice.range(0.08, 0.30),
            sun: dice.range(0.3, 1.0),
            film,
            // Neighbouring cameras look at different kinds of place.
            scene: Scene::new(&mut dice, index % FAMILIES),
        }
    }

    /// The camera's rendering with one image's deviations: clouds, exposure, motion.
    pub fn film(&self, dice: &mut Dice) -> Film {
        let mut film = self.film;
        film.brightness *= 1.0 + 0.09 * dice.normal();
        film.contrast *= 1.0 + 0.05 * dice.normal();
        film.saturation *= 1.0 + 0.06 * dice.normal();
        for gain in &mut film.gain {
            *gain *= 1.0 + 0.006 * dice.normal();
        }
        film.blur = (film.blur + dice.range(-0.05, 0.06)).clamp(0.0, 0.32);
        film.noise *= dice.range(0.7, 1.3);
        film
    }

    /// Which way a person turns, radians: mostly along the camera's path, either way.
    pub fn yaw(&self, dice: &mut Dice) -> f32 {
        let along = match dice.index(10) {
            0..=3 => self.heading,
            4..=7 => self.heading + PI,
            _ => dice.range(-PI, PI),
        };
        along + 0.35 * dice.normal()
    }
}
