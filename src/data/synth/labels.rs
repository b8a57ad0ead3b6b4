//! The label vocabulary: body parts, segments behind keypoint visibility, COCO keypoints.

/// A bounding box in pixels: left, top, width, height (COCO's order).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundingBox {
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
}

/// Labels of the part map. 0 to 19 are those of LIP (Look Into Person), with its meaning: an arm or a leg is labelled
/// as such where the skin shows, a sleeve is upper clothes; left and right are the person's own. 20 is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Part {
    Background = 0,
    Hat = 1,
    Hair = 2,
    Glove = 3,
    Sunglasses = 4,
    UpperClothes = 5,
    Dress = 6,
    /// Coats, jackets and vests worn over the upper clothes.
    Coat = 7,
    Socks = 8,
    /// Trousers and shorts.
    Pants = 9,
    Jumpsuits = 10,
    Scarf = 11,
    Skirt = 12,
    /// Face, ears and neck; the whole bare head of a bald person.
    Face = 13,
    LeftArm = 14,
    RightArm = 15,
    LeftLeg = 16,
    RightLeg = 17,
    LeftShoe = 18,
    RightShoe = 19,
    /// Backpack, bags, umbrella, phone. Not in LIP: map it to background (or ignore) for a 20-class score.
    Carried = 20,
}

/// Names of the labels 0 to 20 of the part map, indexed by label.
pub const PART_NAMES: [&str; 21] = [
    "background",
    "hat",
    "hair",
    "glove",
    "sunglasses",
    "upper_clothes",
    "dress",
    "coat",
    "socks",
    "pants",
    "jumpsuits",
    "scarf",
    "skirt",
    "face",
    "left_arm",
    "right_arm",
    "left_leg",
    "right_leg",
    "left_shoe",
    "right_shoe",
    "carried",
];

/// Which piece of the body, clothed or not, is on top at a pixel. Index 0 of a pair is the person's left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Segment {
    Nothing = 0,
    Face,
    Head,
    Torso,
    UpperArmL,
    UpperArmR,
    ForearmL,
    ForearmR,
    ThighL,
    ThighR,
    ShankL,
    ShankR,
    FootL,
    FootR,
    Carried,
    /// Something in front that does not belong to the person.
    Occluder,
}

impl Segment {
    pub fn upper_arm(side: usize) -> Self {
        if side == 0 { Segment::UpperArmL } else { Segment::UpperArmR }
    }
    pub fn forearm(side: usize) -> Self {
        if side == 0 { Segment::ForearmL } else { Segment::ForearmR }
    }
    pub fn thigh(side: usize) -> Self {
        if side == 0 { Segment::ThighL } else { Segment::ThighR }
    }
    pub fn shank(side: usize) -> Self {
        if side == 0 { Segment::ShankL } else { Segment::ShankR }
    }
    pub fn foot(side: usize) -> Self {
        if side == 0 { Segment::FootL } else { Segment::FootR }
    }
}

impl Part {
    pub fn arm(side: usize) -> Self {
        if side == 0 { Part::LeftArm } else { Part::RightArm }
    }
    pub fn leg(side: usize) -> Self {
        if side == 0 { Part::LeftLeg } else { Part::RightLeg }
    }
    pub fn shoe(side: usize) -> Self {
        if side == 0 { Part::LeftShoe } else { Part::RightShoe }
    }
}

/// The 17 COCO keypoints, in COCO's order.
pub const KEYPOINT_NAMES: [&str; 17] = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
];

/// COCO's skeleton: pairs of keypoints, counted from 1.
pub const SKELETON: [[usize; 2]; 19] = [
    [16, 14],
    [14, 12],
    [17, 15],
    [15, 13],
    [12, 13],
    [6, 12],
    [7, 13],
    [6, 7],
    [6, 8],
    [7, 9],
    [8, 10],
    [9, 11],
    [2, 3],
    [1, 2],
    [1, 3],
    [2, 4],
    [3, 5],
    [4, 6],
    [5, 7],
];

/// A keypoint of a rendered person.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keypoint {
    /// Pixels from the left edge; 0 when the point is outside the picture.
    pub x: f32,
    /// Pixels from the top edge; 0 when the point is outside the picture.
    pub y: f32,
    /// COCO's flag: 0 outside the picture, 1 inside but hidden, 2 visible.
    pub visibility: u8,
}

/// The segments that show keypoint `index` when one of them is on top there.
pub(super) fn showing(index: usize) -> &'static [Segment] {
    use Segment::*;
    match index {
        0..=2 => &[Face],
        3 | 4 => &[Face, Head],
        5 => &[UpperArmL, Torso],
        6 => &[UpperArmR, Torso],
        7 => &[UpperArmL, ForearmL],
        8 => &[UpperArmR, ForearmR],
        9 => &[ForearmL],
        10 => &[ForearmR],
        11 => &[Torso, ThighL],
        12 => &[Torso, ThighR],
        13 => &[ThighL, ShankL],
        14 => &[ThighR, ShankR],
        15 => &[ShankL, FootL],
        _ => &[ShankR, FootR],
    }
}
