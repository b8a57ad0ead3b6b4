//! Who a synthetic person is: everything that stays the same over all images of one identity.

use super::canvas::{Fabric, Rgb, Weave};
use super::dice::{Dice, Domain};

/// An enum of attribute values with their written names.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),+ }
        impl $name {
            /// The value as written in `attributes.csv`.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

named!(
    /// The silhouette the body was drawn with.
    Figure { Masculine => "masculine", Feminine => "feminine" }
);
named!(AgeGroup { Child => "child", Young => "young", Adult => "adult", Senior => "senior" });
named!(Stature { Short => "short", Medium => "medium", Tall => "tall" });
named!(Build { Slim => "slim", Average => "average", Heavy => "heavy" });
named!(Hair {
    Bald => "bald", Buzz => "buzz", Short => "short", Curly => "curly", Bob => "bob", Long => "long",
    Bun => "bun", Ponytail => "ponytail",
});
named!(Hat { None => "none", Cap => "cap", Beanie => "beanie", SunHat => "sun_hat" });
named!(Eyewear { None => "none", Glasses => "glasses", Sunglasses => "sunglasses" });
named!(Upper {
    TShirt => "t_shirt", LongSleeve => "long_sleeve", Coat => "coat", Jacket => "jacket", Vest => "vest",
});
named!(Lower { Trousers => "trousers", Shorts => "shorts", Skirt => "skirt", Dress => "dress" });
named!(Print {
    Plain => "plain", StripesAcross => "stripes_horizontal", StripesAlong => "stripes_vertical",
    Check => "check", Dots => "dots", Logo => "logo", TwoTone => "two_tone",
});
named!(Shoes { Sneakers => "sneakers", Leather => "leather", Boots => "boots", Sandals => "sandals" });

named!(ColorName {
    Black => "black", White => "white", Grey => "grey", Navy => "navy", Blue => "blue", LightBlue => "light_blue",
    Red => "red", Maroon => "maroon", Pink => "pink", Orange => "orange", Yellow => "yellow", Green => "green",
    Olive => "olive", Brown => "brown", Beige => "beige", Purple => "purple", Teal => "teal",
});

impl ColorName {
    fn rgb(self) -> Rgb {
        match self {
            ColorName::Black => Rgb(0.11, 0.11, 0.12),
            ColorName::White => Rgb(0.90, 0.90, 0.89),
            ColorName::Grey => Rgb(0.52, 0.53, 0.54),
            ColorName::Navy => Rgb(0.13, 0.17, 0.33),
            ColorName::Blue => Rgb(0.20, 0.34, 0.66),
            ColorName::LightBlue => Rgb(0.55, 0.70, 0.86),
            ColorName::Red => Rgb(0.75, 0.15, 0.16),
            ColorName::Maroon => Rgb(0.42, 0.10, 0.16),
            ColorName::Pink => Rgb(0.88, 0.52, 0.63),
            ColorName::Orange => Rgb(0.88, 0.47, 0.15),
            ColorName::Yellow => Rgb(0.90, 0.77, 0.26),
            ColorName::Green => Rgb(0.20, 0.50, 0.28),
            ColorName::Olive => Rgb(0.38, 0.40, 0.23),
            ColorName::Brown => Rgb(0.38, 0.26, 0.18),
            ColorName::Beige => Rgb(0.79, 0.70, 0.56),
            ColorName::Purple => Rgb(0.43, 0.27, 0.55),
            ColorName::Teal => Rgb(0.13, 0.48, 0.50),
        }
    }
}

const UPPER_COLORS: [(ColorName, f32); 17] = [
    (ColorName::Black, 18.0),
    (ColorName::White, 15.0),
    (ColorName::Grey, 11.0),
    (ColorName::Navy, 9.0),
    (ColorName::Blue, 7.0),
    (ColorName::LightBlue, 6.0),
    (ColorName::Red, 7.0),
    (ColorName::Maroon, 3.0),
    (ColorName::Pink, 4.0),
    (ColorName::Orange, 2.5),
    (ColorName::Yellow, 4.0),
    (ColorName::Green, 5.0),
    (ColorName::Olive, 4.0),
    (ColorName::Brown, 4.0),
    (ColorName::Beige, 5.0),
    (ColorName::Purple, 3.0),
    (ColorName::Teal, 3.0),
];
const LOWER_COLORS: [(ColorName, f32); 10] = [
    (ColorName::Black, 26.0),
    (ColorName::Navy, 16.0),
    (ColorName::Blue, 16.0),
    (ColorName::Grey, 13.0),
    (ColorName::LightBlue, 5.0),
    (ColorName::Beige, 9.0),
    (ColorName::Brown, 6.0),
    (ColorName::Olive, 5.0),
    (ColorName::White, 4.0),
    (ColorName::Maroon, 2.0),
];
const SHOE_COLORS: [(ColorName, f32); 6] = [
    (ColorName::Black, 10.0),
    (ColorName::White, 9.0),
    (ColorName::Brown, 5.0),
    (ColorName::Grey, 4.0),
    (ColorName::Red, 2.0),
    (ColorName::Blue, 2.0),
];
const SKINS: [Rgb; 8] = [
    Rgb(0.95, 0.80, 0.71),
    Rgb(0.91, 0.73, 0.61),
    Rgb(0.87, 0.68, 0.54),
    Rgb(0.80, 0.60, 0.45),
    Rgb(0.70, 0.50, 0.36),
    Rgb(0.57, 0.39, 0.27),
    Rgb(0.44, 0.29, 0.20),
    Rgb(0.33, 0.22, 0.16),
];
const HAIR_COLORS: [(&str, Rgb, f32); 7] = [
    ("black", Rgb(0.10, 0.09, 0.09), 30.0),
    ("dark_brown", Rgb(0.23, 0.15, 0.11), 28.0),
    ("brown", Rgb(0.39, 0.26, 0.16), 20.0),
    ("blond", Rgb(0.78, 0.63, 0.38), 14.0),
    ("red", Rgb(0.55, 0.25, 0.12), 5.0),
    ("dyed_pink", Rgb(0.78, 0.35, 0.55), 1.5),
    ("dyed_blue", Rgb(0.25, 0.40, 0.70), 1.5),
];

/// What is known of an identity, the same in all its images.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Attributes {
    pub figure: Figure,
    pub age: AgeGroup,
    pub stature: Stature,
    pub build: Build,
    /// Skin tone from 0 (lightest) to 7 (darkest).
    pub skin: u8,
    pub hair: Hair,
    pub hair_color: &'static str,
    pub beard: bool,
    pub hat: Hat,
    pub eyewear: Eyewear,
    pub upper: Upper,
    pub upper_color: ColorName,
    pub upper_print: Print,
    /// Colour of what shows under an open coat, jacket or vest; of the print otherwise.
    pub second_color: ColorName,
    /// Sleeves reach the wrist.
    pub long_sleeves: bool,
    /// The coat, jacket or vest is worn open.
    pub open_front: bool,
    pub lower: Lower,
    pub lower_color: ColorName,
    pub shoes: Shoes,
    pub shoe_color: ColorName,
    pub scarf: bool,
    pub backpack: bool,
    pub handbag: bool,
    pub shoulder_bag: bool,
    pub umbrella: bool,
    pub phone: bool,
    pub bag_color: ColorName,
}

/// Lengths and radii of a body, metres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Body {
    pub height: f32,
    /// Chin to crown.
    pub head: f32,
    /// From the middle to a shoulder joint.
    pub shoulder: f32,
    /// From the middle to a hip joint.
    pub hip: f32,
    pub torso: f32,
    pub neck: f32,
    pub upper_arm: f32,
    pub forearm: f32,
    pub hand: f32,
    pub thigh: f32,
    pub shank: f32,
    /// Ankle to sole.
    pub ankle: f32,
    pub foot: f32,
    /// 0 masculine to 1 feminine silhouette.
    pub feminine: f32,
    /// Width of trunk and limbs relative to the average.
    pub girth: f32,
    /// How far the belly stands out, metres.
    pub belly: f32,
}

/// One person, ready to be dressed and posed.
#[derive(Clone, Debug)]
pub struct Identity {
    pub attributes: Attributes,
    pub body: Body,
    pub skin: Rgb,
    pub hair: Rgb,
    /// Width of the hair over the skull, relative to the head.
    pub hair_volume: f32,
    /// Where long hair ends, metres below the crown.
    pub hair_length: f32,
    pub upper: Fabric,
    pub inner: Fabric,
    pub lower: Fabric,
    pub shoe: Rgb,
    pub sole: Rgb,
    pub bag: Rgb,
    pub hat: Rgb,
    pub scarf: Rgb,
    pub logo: Rgb,
    /// Shape of the logo, 0 to 3.
    pub logo_shape: u8,
    /// 0 skin-tight to 1 baggy.
    pub looseness: f32,
    /// Trouser width at the ankle relative to the knee.
    pub flare: f32,
    /// Where the upper garment ends: 0 at the hips, 1 at the knees.
    pub upper_hem: f32,
    /// Where shorts, skirt or dress end: 0 at the hips, 1 at the ankles.
    pub lower_hem: f32,
    /// Which hand carries (0 left, 1 right).
    pub carry_side: usize,
    /// Backpack height relative to the trunk.
    pub pack_size: f32,
    /// Step length and arm swing relative to the average.
    pub gait: f32,
}

/// Colours that a group of identities shares, so that colour alone does not tell them apart.
struct Outfit {
    upper: ColorName,
    second: ColorName,
    lower: ColorName,
}

impl Outfit {
    fn draw(dice: &mut Dice) -> Self {
        let upper = dice.pick(&UPPER_COLORS);
        let mut second = dice.pick(&UPPER_COLORS);
        // A print or an inner layer of the same colour would not show.
        while second == upper {
            second = dice.pick(&UPPER_COLORS);
        }
        Outfit { upper, second, lower: dice.pick(&LOWER_COLORS) }
    }
}

/// Identities that may share an outfit's colours.
const OUTFIT_GROUP: usize = 4;

impl Identity {
    /// Identity `id` of the world `seed`: a pure function of both.
    pub fn new(seed: u64, id: usize) -> Self {
        let mut dice = Dice::new(seed, Domain::Identity, id as u64);
        let outfit = if dice.chance(0.55) {
            Outfit::draw(&mut Dice::new(seed, Domain::Outfit, (id / OUTFIT_GROUP) as u64))
        } else {
            Outfit::draw(&mut dice)
        };
        let age = dice.pick(&[
            (AgeGroup::Child, 7.0),
            (AgeGroup::Young, 36.0),
            (AgeGroup::Adult, 40.0),
            (AgeGroup::Senior, 17.0),
        ]);
        let figure = if dice.chance(0.5) { Figure::Feminine } else { Figure::Masculine };
        let body = draw_body(&mut dice, figure, age);
        let attributes = draw_attributes(&mut dice, figure, age, &body, &outfit);
        dress(&mut dice, attributes, body)
    }
}

fn draw_body(dice: &mut Dice, figure: Figure, age: AgeGroup) -> Body {
    let feminine = match (figure, age) {
        (_, AgeGroup::Child) => 0.4,
        (Figure::Feminine, _) => dice.range(0.75, 1.0),
        (Figure::Masculine, _) => dice.range(0.0, 0.2),
    };
    let height = match age {
        AgeGroup::Child => dice.range(1.15, 1.45),
        AgeGroup::Senior => 1.72 - 0.11 * feminine + 0.055 * dice.normal(),
        _ => 1.78 - 0.12 * feminine + 0.062 * dice.normal(),
    };
    let heads = match age {
        AgeGroup::Child => 5.2 + (height - 1.15) * 3.3,
        _ => dice.range(7.2, 7.8),
    };
    let stocky = dice.normal();
    let girth = (1.0 + 0.11 * stocky + if age == AgeGroup::Senior { 0.05 } else { 0.0 }).clamp(0.80, 1.34);
    let legs = 1.0 + 0.022 * dice.normal() - if age == AgeGroup::Child { 0.03 } else { 0.0 };
    let arms = 1.0 + 0.022 * dice.normal();
    let head = height / heads;
    let leg = height * 0.485 * legs;
    let neck = height * (0.026 - 0.004 * (girth - 1.0)) + 0.012;
    let ankle = height * 0.040;
    Body {
        height,
        head,
        shoulder: height * (0.101 - 0.013 * feminine) * (0.9 + 0.1 * girth),
        hip: height * (0.050 + 0.003 * feminine),
        torso: height - head - neck - leg - ankle,
        neck,
        upper_arm: height * 0.176 * arms,
        forearm: height * 0.148 * arms,
        hand: height * 0.098,
        thigh: leg * 0.503,
        shank: leg * 0.497,
        ankle,
        foot: height * 0.150,
        feminine,
        girth,
        belly: height * 0.035 * (girth - 1.02).max(0.0) / 0.3,
    }
}

fn draw_attributes(
    dice: &mut Dice,
    figure: Figure,
    age: AgeGroup,
    body: &Body,
    outfit: &Outfit,
) -> Attributes {
    let feminine = figure == Figure::Feminine;
    let f = if feminine { 1.0 } else { 0.0 };
    let m = 1.0 - f;
    let old = if age == AgeGroup::Senior { 1.0 } else { 0.0 };
    let grown = if age == AgeGroup::Child { 0.0 } else { 1.0 };
    let hair = dice.pick(&[
        (Hair::Bald, m * grown * (1.0 + 2.0 * old)),
        (Hair::Buzz, m * 2.5),
        (Hair::Short, m * 5.0 + f * (0.8 + old)),
        (Hair::Curly, 0.9),
        (Hair::Bob, f * 2.4),
        (Hair::Long, f * 3.5 * (1.0 - 0.7 * old) + m * 0.35),
        (Hair::Bun, f * 1.2),
        (Hair::Ponytail, f * 2.0 + m * 0.15),
    ]);
    let hair_color = if age == AgeGroup::Senior && dice.chance(0.75) {
        if dice.chance(0.5) { "grey" } else { "white" }
    } else {
        HAIR_COLORS[dice.weighted(&HAIR_COLORS.map(|color| color.2))].0
    };
    let lower = dice.pick(&[
        (Lower::Trousers, 10.0 - 4.5 * f),
        (Lower::Shorts, 2.6),
        (Lower::Skirt, 2.4 * f),
        (Lower::Dress, 2.2 * f),
    ]);
    let warm = lower != Lower::Shorts;
    let w = if warm { 1.0 } else { 0.0 };
    let upper = if lower == Lower::Dress {
        if dice.chance(0.7) { Upper::TShirt } else { Upper::LongSleeve }
    } else {
        dice.pick(&[
            (Upper::TShirt, 5.0),
            (Upper::LongSleeve, 3.2),
            (Upper::Coat, 1.5 * w),
            (Upper::Jacket, 2.2 * w + 0.3),
            (Upper::Vest, 0.8),
        ])
    };
    let outer = matches!(upper, Upper::Coat | Upper::Jacket | Upper::Vest);
    let upper_print = if outer {
        dice.pick(&[(Print::Plain, 8.0), (Print::TwoTone, 1.2), (Print::Check, 0.8)])
    } else {
        dice.pick(&[
            (Print::Plain, 5.0),
            (Print::StripesAcross, 1.6),
            (Print::StripesAlong, 0.8),
            (Print::Check, 1.0),
            (Print::Dots, 0.8),
            (Print::Logo, 1.8),
            (Print::TwoTone, 1.0),
        ])
    };
    let backpack = dice.chance(0.22);
    let handbag = !backpack && dice.chance(0.10 + 0.14 * f * grown);
    let shoulder_bag = !backpack && !handbag && dice.chance(0.16);
    let umbrella = !handbag && dice.chance(0.06);
    Attributes {
        figure,
        age,
        stature: match body.height {
            h if h < 1.60 => Stature::Short,
            h if h < 1.78 => Stature::Medium,
            _ => Stature::Tall,
        },
        build: match body.girth {
            g if g < 0.95 => Build::Slim,
            g if g < 1.10 => Build::Average,
            _ => Build::Heavy,
        },
        skin: dice.weighted(&[3.0, 4.0, 4.0, 3.0, 2.0, 2.0, 1.5, 1.2]) as u8,
        hair,
        hair_color,
        beard: !feminine && grown > 0.0 && dice.chance(0.27),
        hat: dice.pick(&[
            (Hat::None, 16.0),
            (Hat::Cap, 2.2),
            (Hat::Beanie, 1.2 * w),
            (Hat::SunHat, 0.4 + 0.5 * f),
        ]),
        eyewear: dice.pick(&[
            (Eyewear::None, 14.0),
            (Eyewear::Glasses, 3.0 + 2.0 * old),
            (Eyewear::Sunglasses, 1.5),
        ]),
        upper,
        upper_color: outfit.upper,
        upper_print,
        second_color: outfit.second,
        long_sleeves: match upper {
            Upper::TShirt => false,
            Upper::Vest => dice.chance(0.6),
            _ => true,
        },
        open_front: outer && dice.chance(0.6),
        lower,
        lower_color: if lower == Lower::Dress { outfit.upper } else { outfit.lower },
        shoes: dice.pick(&[
            (Shoes::Sneakers, 6.0),
            (Shoes::Leather, 3.0),
            (Shoes::Boots, 2.0 * w),
            (Shoes::Sandals, 1.2 * (1.0 - w) + 0.6 * f),
        ]),
        shoe_color: dice.pick(&SHOE_COLORS),
        scarf: warm && !matches!(upper, Upper::TShirt) && dice.chance(0.14),
        backpack,
        handbag,
        shoulder_bag,
        umbrella,
        phone: dice.chance(0.15),
        bag_color: dice.pick(&UPPER_COLORS),
    }
}

/// A named colour as this identity wears it: no two navy coats are quite the same.
fn tint(dice: &mut Dice, name: ColorName) -> Rgb {
    let Rgb(r, g, b) = name.rgb();
    let light = 1.0 + 0.09 * dice.normal();
    Rgb(
        (r * light + 0.014 * dice.normal()).clamp(0.03, 0.97),
        (g * light + 0.014 * dice.normal()).clamp(0.03, 0.97),
        (b * light + 0.014 * dice.normal()).clamp(0.03, 0.97),
    )
}

fn dress(dice: &mut Dice, attributes: Attributes, body: Body) -> Identity {
    let a = &attributes;
    let base = SKINS[usize::from(a.skin)];
    let skin = base.shade(1.0 + 0.03 * dice.normal());
    let hair = match a.hair_color {
        "grey" => Rgb(0.55, 0.55, 0.55),
        "white" => Rgb(0.84, 0.83, 0.80),
        name => HAIR_COLORS.iter().find(|color| color.0 == name).map_or(Rgb(0.1, 0.1, 0.1), |color| color.1),
    };
    let hair = hair.shade(1.0 + 0.08 * dice.normal());
    let (color, second) = (tint(dice, a.upper_color), tint(dice, a.second_color));
    let weave = match a.upper_print {
        Print::Plain | Print::Logo => Weave::Plain,
        Print::StripesAcross => Weave::Across,
        Print::StripesAlong => Weave::Along,
        Print::Check => Weave::Check,
        Print::Dots => Weave::Dots,
        Print::TwoTone => Weave::Split(dice.range(0.34, 0.55)),
    };
    let upper = Fabric { color, second, weave, period: dice.range(0.055, 0.12) };
    let inner_weave = if dice.chance(0.2) { Weave::Across } else { Weave::Plain };
    let inner = Fabric {
        color: second,
        second: second.mix(Rgb(1.0, 1.0, 1.0), 0.5),
        weave: inner_weave,
        period: 0.07,
    };
    let lower_color = if a.lower == Lower::Dress { color } else { tint(dice, a.lower_color) };
    let lower = match a.lower {
        Lower::Dress => Fabric { color: lower_color, ..upper },
        Lower::Skirt if dice.chance(0.3) => Fabric {
            color: lower_color,
            second: lower_color.mix(Rgb(1.0, 1.0, 1.0), 0.55),
            weave: Weave::Check,
            period: 0.1,
        },
        _ => Fabric::plain(lower_color),
    };
    let shoe = tint(dice, a.shoe_color);
    let light_sole = a.shoes == Shoes::Sneakers && dice.chance(0.7);
    let f = body.feminine;
    Identity {
        skin,
        hair,
        hair_volume: 1.06 + 0.05 * dice.unit() + if a.hair == Hair::Curly { 0.13 } else { 0.0 },
        hair_length: match a.hair {
            Hair::Bob => dice.range(0.26, 0.33),
            Hair::Long => dice.range(0.34, 0.50),
            Hair::Ponytail => dice.range(0.30, 0.50),
            _ => 0.0,
        },
        upper,
        inner,
        lower,
        shoe,
        sole: if light_sole { Rgb(0.88, 0.88, 0.86) } else { shoe.shade(0.45) },
        bag: tint(dice, a.bag_color),
        hat: {
            let name = dice.pick(&UPPER_COLORS);
            tint(dice, name)
        },
        scarf: {
            let name = dice.pick(&UPPER_COLORS);
            tint(dice, name)
        },
        logo: second,
        logo_shape: dice.index(4) as u8,
        looseness: (0.4 + 0.22 * dice.normal() - 0.15 * f).clamp(0.05, 1.0),
        flare: if dice.chance(0.2) { dice.range(1.15, 1.5) } else { dice.range(0.72, 1.02) },
        upper_hem: match a.upper {
            Upper::Coat => dice.range(0.55, 1.0),
            Upper::Jacket | Upper::Vest => dice.range(0.10, 0.24),
            _ if a.lower == Lower::Skirt => dice.range(-0.42, -0.2),
            _ => dice.range(0.02, 0.26),
        },
        lower_hem: match a.lower {
            Lower::Shorts => dice.range(0.26, 0.50),
            Lower::Skirt | Lower::Dress => {
                dice.pick(&[(0.34, 3.0), (0.50, 4.0), (0.80, 1.5)]) + dice.range(-0.06, 0.06)
            }
            Lower::Trousers => 1.0,
        },
        carry_side: dice.index(2),
        pack_size: dice.range(0.72, 1.0),
        gait: 1.0 + 0.1 * dice.normal(),
        attributes,
        body,
    }
}
