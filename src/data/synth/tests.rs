use super::geometry::{V3, v3};
use super::labels::Segment;
use super::pose::{Pose, Skeleton};
use super::*;
use rayon::prelude::*;
use std::collections::{BTreeSet, HashSet};

fn world(identities: usize, images_per_identity: usize) -> SynthPersons {
    SynthPersons::new(SynthConfig { seed: 11, identities, images_per_identity, ..Default::default() })
        .unwrap()
}

#[test]
fn an_image_depends_on_seed_and_index_only() {
    let one = world(4, 3);
    let forward: Vec<RgbImage> = (0..one.len()).map(|index| one.image(index)).collect();
    let two = world(4, 3);
    for index in (0..two.len()).rev() {
        assert_eq!(two.person(index).image.as_raw(), forward[index].as_raw(), "labels change image {index}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let parallel: Vec<RgbImage> = pool.install(|| {
        let three = world(4, 3);
        (0..three.len()).into_par_iter().map(|index| three.image(index)).collect()
    });
    assert!(parallel == forward);
    let other = SynthPersons::new(SynthConfig { seed: 12, ..one.config().clone() }).unwrap();
    assert_ne!(other.image(0).as_raw(), forward[0].as_raw());
}

#[test]
fn ranges_of_identities_are_windows_of_one_world() {
    let all = world(6, 2);
    let config = SynthConfig { first_identity: 4, identities: 2, ..all.config().clone() };
    let rest = SynthPersons::new(config).unwrap();
    assert_eq!(rest.identity_of(0), 5);
    for index in 0..rest.len() {
        assert_eq!(rest.image(index).as_raw(), all.image(index + 8).as_raw());
        assert_eq!(rest.name(index), all.name(index + 8));
    }
    assert_eq!(all.name(3), "0002_c4s1_000001_00.jpg");
    let names: HashSet<String> = (0..all.len()).map(|index| all.name(index)).collect();
    assert_eq!(names.len(), all.len());
}

/// Part labels that may lie at a visible keypoint.
fn parts_at(keypoint: usize) -> &'static [Part] {
    use Part::*;
    match keypoint {
        0..=4 => &[Face, Sunglasses, Hair, Hat],
        7 | 9 => &[LeftArm, UpperClothes, Coat, Dress],
        8 | 10 => &[RightArm, UpperClothes, Coat, Dress],
        13 => &[LeftLeg, Pants, LeftShoe],
        14 => &[RightLeg, Pants, RightShoe],
        15 => &[LeftLeg, Pants, LeftShoe, Socks],
        16 => &[RightLeg, Pants, RightShoe, Socks],
        _ => &[
            UpperClothes,
            Coat,
            Dress,
            Pants,
            Skirt,
            LeftArm,
            RightArm,
            LeftLeg,
            RightLeg,
            Face,
            Scarf,
            Carried,
        ],
    }
}

#[test]
fn keypoints_lie_inside_and_agree_with_the_part_map() {
    let world = world(20, 5);
    let (mut visible, mut hidden) = (0, 0);
    for index in 0..world.len() {
        let person = world.person(index);
        for (keypoint, p) in person.keypoints.iter().enumerate() {
            if p.visibility == 0 {
                assert_eq!((p.x, p.y), (0.0, 0.0));
                continue;
            }
            assert!(p.x >= 0.0 && p.x < 128.0 && p.y >= 0.0 && p.y < 256.0);
            if p.visibility == 1 {
                hidden += 1;
                continue;
            }
            visible += 1;
            let label = person.part_mask.get_pixel(p.x as u32, p.y as u32).0[0];
            let fits = parts_at(keypoint).iter().any(|part| *part as u8 == label);
            let (name, part) = (KEYPOINT_NAMES[keypoint], PART_NAMES[usize::from(label)]);
            assert!(fits, "image {index}: {name} is visible on {part}");
        }
    }
    let share = visible as f32 / (visible + hidden) as f32;
    assert!((0.5..0.9).contains(&share), "{share} of the keypoints in the picture are visible");
}

#[test]
fn part_maps_are_filled_and_boxed() {
    let world = world(20, 4);
    let mut seen = BTreeSet::new();
    for index in 0..world.len() {
        let person = world.person(index);
        let b = person.bbox;
        let mut area = 0;
        for (x, y, label) in person.part_mask.enumerate_pixels() {
            seen.insert(label.0[0]);
            if label.0[0] != 0 {
                area += 1;
                let (x, y) = (x as f32, y as f32);
                assert!(x >= b.x && y >= b.y && x < b.x + b.width && y < b.y + b.height);
            }
        }
        assert!(area > 128 * 256 / 30, "image {index}: the person covers {area} pixels");
        assert!(b.width > 8.0 && b.height > 100.0 && b.x + b.width <= 128.0 && b.y + b.height <= 256.0);
    }
    assert!(seen.iter().all(|label| usize::from(*label) < PART_NAMES.len()));
    assert!(seen.len() >= 15, "only {seen:?}");
}

/// Mean column of a label.
fn column(mask: &GrayImage, part: Part) -> Option<f32> {
    let columns: Vec<f32> =
        mask.enumerate_pixels().filter(|p| p.2.0[0] == part as u8).map(|p| p.0 as f32).collect();
    if columns.len() < 12 { None } else { Some(columns.iter().sum::<f32>() / columns.len() as f32) }
}

#[test]
fn left_is_the_persons_left_and_backs_show_no_face() {
    let world = world(30, 4);
    let (mut front, mut back) = (0, 0);
    for index in 0..world.len() {
        let person = world.person(index);
        let facing = person.yaw.cos();
        if person.action == Action::Stand && facing.abs() > 0.85 {
            let shoes =
                (column(&person.part_mask, Part::LeftShoe), column(&person.part_mask, Part::RightShoe));
            if let (Some(left), Some(right)) = shoes {
                assert_eq!(left > right, facing > 0.0, "image {index}, yaw {}", person.yaw);
            }
        }
        if facing < -0.9 {
            back += 1;
            assert!(
                person.keypoints[..3].iter().all(|p| p.visibility < 2),
                "image {index}: a face on the back"
            );
        } else if facing > 0.9 && person.keypoints[0].visibility == 2 {
            front += 1;
        }
    }
    assert!(front > 5 && back > 5, "{front} front and {back} back views");
}

#[test]
fn attributes_belong_to_the_identity() {
    let world = world(60, 3);
    let mut distinct = HashSet::new();
    for identity in 0..60 {
        let attributes = world.attributes(identity * 3);
        assert_eq!(attributes, world.attributes(identity * 3 + 2));
        assert_eq!(attributes, world.person(identity * 3 + 1).attributes);
        distinct.insert(format!("{attributes:?}"));
    }
    assert_eq!(distinct.len(), 60, "two identities with the same attributes");
    // Colour alone must not tell identities apart.
    let colors: HashSet<String> = (0..60)
        .map(|identity| world.attributes(identity * 3))
        .map(|a| format!("{:?} {:?}", a.upper_color, a.lower_color))
        .collect();
    assert!((25..55).contains(&colors.len()), "{} outfits", colors.len());
}

#[test]
fn part_map_shows_the_attributes() {
    let world = world(40, 3);
    let has = |person: &SynthPerson, part: Part| person.part_mask.as_raw().contains(&(part as u8));
    for index in 0..world.len() {
        let person = world.person(index);
        let a = &person.attributes;
        let skirt = a.lower == Lower::Skirt;
        assert!(!has(&person, Part::Skirt) || skirt, "image {index}");
        assert!(!has(&person, Part::Dress) || a.lower == Lower::Dress, "image {index}");
        assert!(!has(&person, Part::Hat) || a.hat != Hat::None, "image {index}");
        assert!(!has(&person, Part::Hair) || a.hair != Hair::Bald, "image {index}");
        let carries =
            a.backpack || a.handbag || a.shoulder_bag || a.umbrella || person.action == Action::Phone;
        assert!(!has(&person, Part::Carried) || carries, "image {index}");
        let long_trousers = a.lower == Lower::Trousers;
        assert!(!has(&person, Part::LeftLeg) || !long_trousers, "image {index}: a bare leg under trousers");
    }
}

#[test]
fn kinematics_keep_bone_lengths_and_stand_on_the_ground() {
    for id in 1..200 {
        let who = Identity::new(3, id);
        let mut dice = dice::Dice::new(3, dice::Domain::Image, id as u64);
        let bones = Skeleton::new(&who.body, &Pose::draw(&mut dice, &who));
        let long = |a: V3, b: V3| (a - b).length();
        let lowest = bones.heel.iter().chain(&bones.toe).map(|p| p.y).fold(f32::MAX, f32::min);
        assert!((lowest - 0.2 * who.body.ankle).abs() < 1e-4);
        for side in 0..2 {
            for (got, want) in [
                (long(bones.shoulder[side], bones.elbow[side]), who.body.upper_arm),
                (long(bones.elbow[side], bones.wrist[side]), who.body.forearm),
                (long(bones.hip[side], bones.knee[side]), who.body.thigh),
                (long(bones.knee[side], bones.ankle[side]), who.body.shank),
            ] {
                assert!((got - want).abs() < 1e-4, "{got} {want}");
            }
        }
        let body = &who.body;
        let sum = body.head + body.neck + body.torso + body.thigh + body.shank + body.ankle;
        assert!((sum - body.height).abs() < 1e-4 && body.torso > 0.2 * body.height);
        let heads = body.height / body.head;
        let child = who.attributes.age == AgeGroup::Child;
        assert!(if child { (5.0..6.4).contains(&heads) } else { (7.1..7.9).contains(&heads) });
    }
}

#[test]
fn visibility_follows_occlusion() {
    // Every segment that can show a keypoint is a body segment, never an occluder or the background.
    for keypoint in 0..17 {
        for segment in labels::showing(keypoint) {
            assert!(!matches!(segment, Segment::Nothing | Segment::Occluder | Segment::Carried));
        }
    }
    let v = geometry::View::new(std::f32::consts::PI, 0.0, 0.0, 8.0, v3(0.0, 0.0, 1.0));
    assert!(v.turn(v3(0.0, 0.0, 1.0)).z < -0.99, "half a turn shows the back");
    assert!(v.see(v3(1.0, 0.0, 0.0)).at.x < 0.0);
}

#[test]
fn bad_configurations_name_their_key() {
    let base = SynthConfig::default();
    for (key, config) in [
        ("identities", SynthConfig { identities: 0, ..base.clone() }),
        ("first_identity", SynthConfig { first_identity: usize::MAX, ..base.clone() }),
        ("images_per_identity", SynthConfig { images_per_identity: 0, ..base.clone() }),
        ("cameras", SynthConfig { cameras: 1000, ..base.clone() }),
        ("height", SynthConfig { height: 5000, ..base.clone() }),
        ("width", SynthConfig { width: 0, ..base.clone() }),
    ] {
        let error = SynthPersons::new(config).err().unwrap().to_string();
        assert!(error.contains(&format!("`synth.{key}`")), "{error}");
    }
}

/// With many cameras hardly two images of a person share one, and who has the first of them sees nothing change.
#[test]
fn hundreds_of_cameras_take_turns() {
    let config =
        |cameras| SynthConfig { identities: 3, images_per_identity: 2, cameras, ..Default::default() };
    let many = SynthPersons::new(config(999)).unwrap();
    let cameras: Vec<usize> = (0..6).map(|i| many.camera_of(i)).collect();
    assert_eq!(cameras, [2, 3, 3, 4, 4, 5]);
    let few = SynthPersons::new(config(6)).unwrap();
    assert!((0..6).all(|i| many.image(i) == few.image(i)));
    let last = SynthPersons::new(SynthConfig { first_identity: 998, ..config(999) }).unwrap();
    assert_eq!([last.camera_of(0), last.camera_of(1)], [1, 2], "after the last comes the first");
}

#[test]
fn other_sizes_draw_too() {
    for (height, width) in [(64, 32), (300, 300), (97, 211)] {
        let config =
            SynthConfig { identities: 2, images_per_identity: 1, height, width, ..Default::default() };
        let person = SynthPersons::new(config).unwrap().person(1);
        assert_eq!(person.image.dimensions(), (width as u32, height as u32));
        assert_eq!(person.part_mask.dimensions(), (width as u32, height as u32));
        assert!(person.bbox.height > 0.4 * height as f32);
    }
}

/// Rank-1 of the mean colours of a 6 x 2 grid, gallery from other cameras only.
#[test]
fn raw_colours_are_a_mediocre_cue() {
    let world = world(30, 5);
    let feature = |index: usize| -> Vec<f32> {
        // The middle columns: mostly person.
        let picture = world.image(index);
        let middle = image::imageops::crop_imm(&picture, 32, 16, 64, 224).to_image();
        let small = image::imageops::thumbnail(&middle, 2, 6);
        small.as_raw().iter().map(|v| f32::from(*v)).collect()
    };
    let features: Vec<Vec<f32>> = (0..world.len()).into_par_iter().map(feature).collect();
    let mut hits = 0;
    for q in 0..world.len() {
        let distance =
            |g: &usize| -> f32 { features[q].iter().zip(&features[*g]).map(|(a, b)| (a - b).powi(2)).sum() };
        let best = (0..world.len())
            .filter(|g| world.camera_of(*g) != world.camera_of(q))
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
            .unwrap();
        hits += usize::from(world.identity_of(best) == world.identity_of(q));
    }
    let rank1 = hits as f32 / world.len() as f32;
    println!("rank-1 of raw colours: {rank1}");
    assert!((0.05..0.5).contains(&rank1), "rank-1 {rank1}: too easy or no signal at all");
}
