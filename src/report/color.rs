//! Colours of the report, and the colour map of every heat map.

use plotters::style::RGBColor;

/// Colours of curves: mid tones that stand out on light and on dark ground, told apart by readers with a
/// colour-vision deficiency through lightness as well as hue.
pub(super) const PALETTE: [RGBColor; 6] = [
    RGBColor(0x3B, 0x82, 0xD6),
    RGBColor(0xE0, 0x7B, 0x39),
    RGBColor(0x2F, 0xA3, 0x7C),
    RGBColor(0x9A, 0x6B, 0xD0),
    RGBColor(0xC9, 0x9A, 0x1E),
    RGBColor(0xD0, 0x5A, 0x8A),
];
/// Axis text and lines; the style sheet swaps it in the dark scheme.
pub(super) const INK: RGBColor = RGBColor(0x5F, 0x69, 0x74);
/// Grid lines; the style sheet swaps it in the dark scheme.
pub(super) const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEB);
/// Marks of values that are not finite.
pub(super) const ALARM: RGBColor = RGBColor(0xD9, 0x3F, 0x3F);

/// `#RRGGBB`.
pub(super) fn hex(color: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2)
}

/// Viridis at `t` (clipped to 0..1; NaN counts as 0), as a polynomial fit of degree 6 per channel that stays within
/// 2/255 of matplotlib's table.
pub(super) fn viridis(t: f32) -> [u8; 3] {
    const COEFFICIENTS: [[f32; 3]; 7] = [
        [0.277_727_33, 0.005_407_344_5, 0.334_099_8],
        [0.105_093_04, 1.404_613_5, 1.384_590_1],
        [-0.330_861_83, 0.214_847_56, 0.095_095_16],
        [-4.634_230_5, -5.799_101, -19.332_441],
        [6.228_27, 14.179_933, 56.690_55],
        [4.776_385, -13.745_145, -65.353_03],
        [-5.435_456, 4.645_852_6, 26.312_435],
    ];
    let t = if t.is_nan() { 0.0 } else { t.clamp(0.0, 1.0) };
    std::array::from_fn(|c| {
        let value = COEFFICIENTS.iter().rev().fold(0.0, |sum, k| sum * t + k[c]);
        (value * 255.0).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridis_matches_its_published_anchors_and_gets_lighter() {
        for (t, expected) in
            [(0.0, [68, 1, 84]), (0.25, [59, 82, 139]), (0.5, [33, 145, 140]), (1.0, [253, 231, 37])]
        {
            let found = viridis(t);
            let worst = found.iter().zip(expected).map(|(a, b): (&u8, u8)| a.abs_diff(b)).max().unwrap();
            assert!(worst <= 4, "{t}: {found:?} for {expected:?}");
        }
        let light = |t: f32| {
            let [r, g, b] = viridis(t).map(f32::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((1..64).all(|i| light(i as f32 / 63.0) > light((i - 1) as f32 / 63.0)));
        assert_eq!(viridis(f32::NAN), viridis(-3.0));
    }
}
