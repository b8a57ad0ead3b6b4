//! Things between the camera and the person.

use super::canvas::{BLACK, Canvas, Rgb, Tag, polygon};
use super::dice::Dice;
use super::figure::{Figure, round_rect};
use super::geometry::{View, v2};
use super::identity::Identity;
use super::labels::{Part, Segment};
use super::pose::{Pose, Skeleton};
use std::f32::consts::PI;

const FRONT: Option<Tag> = Some(Tag(Part::Background, Segment::Occluder));

/// Draws one thing in front of the person, hiding up to about half of it.
pub fn draw(canvas: &mut Canvas, view: &View, dice: &mut Dice, seed: u64) {
    let (width, height) = (canvas.picture.width() as f32, canvas.picture.height() as f32);
    match dice.index(6) {
        0 => pole(canvas, dice, width, height),
        1 => bin(canvas, dice, width, height),
        2 => car(canvas, dice, width, height),
        3 => leaves(canvas, dice, width, height),
        4 => railing(canvas, dice, width, height),
        _ => person(canvas, view, dice, seed),
    }
}

fn any_color(dice: &mut Dice) -> Rgb {
    Rgb(dice.range(0.12, 0.8), dice.range(0.12, 0.8), dice.range(0.12, 0.8))
}

fn pole(canvas: &mut Canvas, dice: &mut Dice, width: f32, height: f32) {
    let half = width * dice.range(0.03, 0.075);
    let x = width * dice.range(0.12, 0.88);
    let color = Rgb(0.42, 0.42, 0.41).shade(dice.range(0.6, 1.3));
    canvas.rect(v2(x - half, 0.0), v2(x + half, height), color, 1.0, FRONT);
    canvas.rect(v2(x - half, 0.0), v2(x - 0.3 * half, height), color.shade(1.25), 1.0, None);
    canvas.rect(v2(x + 0.5 * half, 0.0), v2(x + half, height), color.shade(0.7), 1.0, None);
}

fn bin(canvas: &mut Canvas, dice: &mut Dice, width: f32, height: f32) {
    let x = width * dice.range(-0.15, 0.65);
    let top = height * dice.range(0.66, 0.86);
    let w = width * dice.range(0.35, 0.6);
    let color = any_color(dice).shade(0.7);
    if let Some(path) =
        polygon(&[v2(x, top), v2(x + w, top), v2(x + 0.93 * w, height), v2(x + 0.07 * w, height)])
    {
        canvas.fill(&path, color, 1.0, FRONT);
    }
    canvas.rect(
        v2(x - 2.0, top - 0.025 * height),
        v2(x + w + 2.0, top + 0.01 * height),
        color.shade(0.65),
        1.0,
        FRONT,
    );
    canvas.rect(v2(x + 0.1 * w, top), v2(x + 0.22 * w, height), color.shade(1.25), 0.6, None);
}

fn car(canvas: &mut Canvas, dice: &mut Dice, width: f32, height: f32) {
    let top = height * dice.range(0.62, 0.80);
    let color = any_color(dice);
    let slope = height * 0.06 * if dice.chance(0.5) { 1.0 } else { -1.0 };
    let body = [
        v2(-2.0, top + slope),
        v2(0.4 * width, top - 0.01 * height),
        v2(width + 2.0, top - slope),
        v2(width + 2.0, height + 2.0),
        v2(-2.0, height + 2.0),
    ];
    if let Some(path) = polygon(&body) {
        canvas.fill(&path, color, 1.0, FRONT);
        canvas.stroke(&path, color.shade(1.5), 0.8, 1.5, None);
    }
    canvas.rect(v2(0.0, top + 0.13 * height), v2(width, top + 0.15 * height), color.shade(0.55), 0.8, None);
    canvas.ellipse(
        v2(0.8 * width, top + 0.09 * height),
        0.09 * width,
        0.022 * height,
        Rgb(0.93, 0.92, 0.85),
        0.9,
        None,
    );
    canvas.ellipse(v2(0.2 * width, height), 0.24 * width, 0.10 * height, BLACK, 1.0, None);
}

fn leaves(canvas: &mut Canvas, dice: &mut Dice, width: f32, height: f32) {
    let left = dice.chance(0.5);
    let leaf = Rgb(dice.range(0.12, 0.35), dice.range(0.3, 0.5), dice.range(0.1, 0.22));
    let middle = height * dice.range(0.45, 0.95);
    for _ in 0..34 {
        let reach = width * (0.24 * dice.normal().abs());
        let at = v2(if left { reach } else { width - reach }, middle + 0.13 * height * dice.normal());
        let r = width * dice.range(0.025, 0.07);
        canvas.ellipse(at, r, 0.7 * r, leaf.shade(dice.range(0.55, 1.35)), 1.0, FRONT);
    }
}

fn railing(canvas: &mut Canvas, dice: &mut Dice, width: f32, height: f32) {
    let top = height * dice.range(0.55, 0.75);
    let color = Rgb(0.35, 0.36, 0.38).shade(dice.range(0.5, 1.6));
    let bar = width * 0.022;
    for y in [top, top + 0.12 * height, top + 0.24 * height] {
        if let Some(path) = round_rect(-4.0, y, width + 4.0, y + 0.016 * height, 1.0) {
            canvas.fill(&path, color, 1.0, FRONT);
        }
    }
    let step = width * dice.range(0.28, 0.5);
    let mut x = step * dice.unit();
    while x < width {
        canvas.rect(v2(x, top), v2(x + bar, height), color.shade(0.8), 1.0, FRONT);
        x += step;
    }
}

/// Somebody else, nearer, cut by the edge of the picture.
fn person(canvas: &mut Canvas, view: &View, dice: &mut Dice, seed: u64) {
    let who = Identity::new(seed ^ 0x0cc1_0de5_0000_0000, dice.index(1 << 20));
    let pose = Pose::draw(dice, &who);
    let bones = Skeleton::new(&who.body, &pose);
    let width = canvas.picture.width() as f32;
    let mut other = View::new(dice.range(-PI, PI), 0.1, 0.5 * who.body.height, view.distance, view.light);
    other.scale = view.scale * dice.range(1.02, 1.25);
    let edge = if dice.chance(0.5) { dice.range(-0.10, 0.14) } else { dice.range(0.86, 1.10) };
    other.origin = v2(edge * width, view.origin.y + 0.10 * view.scale);
    let blank = tiny_skia::Pixmap::new(canvas.picture.width(), canvas.picture.height());
    let Some(layer) = blank else { return };
    // Drawn apart, then laid over: whatever it covers is occluded, not a second person's labels.
    let mut apart = Canvas::new(layer, canvas.light);
    Figure { who: &who, pose: &pose, bones: &bones, view: &other, canvas: &mut apart, near: true }.draw();
    canvas.overlay(&apart.picture, FRONT);
}
